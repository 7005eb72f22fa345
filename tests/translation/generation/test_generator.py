"""Generation over made-up networks: what runs on what, and nothing else."""

import math

import pytest
import torch

from translation.generation.generator import CollaborativeGenerator, hypothesis_confidence
from translation.generation.routers import Router, check_threshold, parse_router

PAD, EOS = 1, 2


class Network:
    """Repeats its source, surer of shorter ones; remembers what it was given."""

    def __init__(self, name):
        self.name = name
        self.seen = []
        self.symbols_to_strip_from_output = {EOS}

    def generate(self, models, sample, **options):
        source = sample["net_input"]["src_tokens"]
        assert sample["net_input"]["src_lengths"].tolist() == source.ne(PAD).sum(1).tolist()
        assert not source.eq(PAD).all(0).any()  # no column that is padding in all
        self.seen.append(source)
        self.options = options
        rows = [row[row != PAD] for row in source]
        return [
            [
                {
                    "tokens": row,
                    "by": self.name,
                    "positional_scores": torch.full((3,), -0.1 * len(row)),
                }
            ]
            for row in rows
        ]


def team(num_experts, threshold, router=Router("learned"), **more):  # noqa: B008
    """Sentences select the expert that their first word, less 10, names."""
    delegator, experts = Network("delegator"), [Network(str(j)) for j in range(num_experts)]

    def select(source, length):
        first = torch.stack([row[row != PAD][0] for row in source])
        return torch.nn.functional.one_hot(first - 10, max(num_experts, 3)).float()[:, :num_experts]

    generator = CollaborativeGenerator(
        delegator,
        lambda: select(delegator.seen[-1], None),
        select,
        experts,
        router,
        threshold=threshold,
        confidence="probability",
        pad=PAD,
        eos=EOS,
        **more,
    )
    return generator, delegator, experts


def batch(*sentences):
    width = max(map(len, sentences))
    padded = [
        [PAD] * (width - len(sentence)) + list(sentence) for sentence in sentences
    ]  # on the left, as fairseq
    return {"net_input": {"src_tokens": torch.tensor(padded)}}


SENTENCES = ((12, 5, 5, 5, EOS), (10, EOS), (EOS,), (12, 6, 6, EOS), (10, 7, 7, 7, 7, EOS))


def test_only_what_is_needed_runs_and_order_is_kept():
    generator, delegator, experts = team(3, threshold=0.7)
    hypotheses = generator.generate(None, batch(*SENTENCES))
    assert [sentence[0]["tokens"].tolist() for sentence in hypotheses] == [
        list(sentence) for sentence in SENTENCES
    ]
    assert [route.network for route in generator.routes] == [
        *("expert-2", "delegator", "empty", "expert-2", "expert-0")
    ]
    assert [len(seen) for seen in delegator.seen] == [4]  # the empty line does not run
    assert [tuple(seen.shape) for seen in experts[2].seen] == [(2, 5)]  # once, on its group
    assert [tuple(seen.shape) for seen in experts[0].seen] == [(1, 6)]
    assert experts[1].seen == []
    assert generator.routes[1].confidence == pytest.approx(2.718281828**-0.2)


def test_all_exit_or_none():
    generator, _, experts = team(3, threshold=0.0)
    generator.generate(None, batch(*SENTENCES))
    assert all(expert.seen == [] for expert in experts)
    for threshold, translates in ((float("inf"), False), (1.1, False), (1.0, True)):
        generator, delegator, experts = team(3, threshold=threshold)
        generator.generate(None, batch(*SENTENCES))
        assert sum(len(seen) for expert in experts for seen in expert.seen) == 4
        assert bool(delegator.seen) == translates  # what none can end with is not made
        assert math.isnan(generator.routes[0].confidence) != translates
        assert [route.network for route in generator.routes] == [
            *("expert-2", "expert-0", "empty", "expert-2", "expert-0")
        ]


def test_nothing_but_empty_lines():
    generator, delegator, _ = team(2, threshold=0.5)
    hypotheses = generator.generate(None, batch((EOS,), (EOS,)))
    assert [sentence[0]["tokens"].tolist() for sentence in hypotheses] == [[EOS], [EOS]]
    assert delegator.seen == []


def test_lengths_apart():
    generator, delegator, _ = team(3, threshold=0.0, by_length=True)
    hypotheses = generator.generate(None, batch(*SENTENCES, (11, 5, 5, EOS)))
    assert sorted(seen.shape[1] for seen in delegator.seen) == [2, 4, 5, 6]
    assert [sentence[0]["tokens"][0] for sentence in hypotheses] == [12, 10, EOS, 12, 10, 11]


def test_prefix_and_constraints_go_with_their_sentence():
    generator, delegator, experts = team(3, threshold=0.7)
    forced = torch.arange(10).view(5, 2)
    generator.generate(None, batch(*SENTENCES), prefix_tokens=forced, constraints=forced + 100)
    assert delegator.options["prefix_tokens"].tolist() == forced[[0, 1, 3, 4]].tolist()
    assert experts[2].options["prefix_tokens"].tolist() == forced[[0, 3]].tolist()
    assert experts[0].options["constraints"].tolist() == (forced[[4]] + 100).tolist()


def test_one_for_all_experts():
    generator, _, experts = team(1, threshold=0.7, router=Router("cascade"))
    generator.generate(None, batch(*SENTENCES))
    assert [route.network for route in generator.routes].count("cascade") == 3
    assert [len(seen) for seen in experts[0].seen] == [3]


def test_a_confidence_that_is_not_finite_is_none():
    for value in (float("nan"), float("-inf")):
        best = {"positional_scores": torch.tensor([-0.1, value])}
        assert hypothesis_confidence(best, "probability") == 0
        assert hypothesis_confidence(best, "log_probability") == float("-inf")


def test_routers_and_thresholds_by_name():
    assert parse_router("always-0", 1) == Router("always", 0)
    for name in ("always-1", "always", "always--1", "Learned", ""):
        with pytest.raises(ValueError, match="router"):
            parse_router(name, 1)
    assert check_threshold(-3.0, "log_probability") == -3
    with pytest.raises(ValueError, match="unknown confidence 'p'"):
        check_threshold(0.5, "p")


def test_a_random_expert_depends_on_the_words_alone():
    router, logits = Router("random"), torch.zeros(3, 4)
    source = torch.tensor([[PAD, 5, 6], [7, 8, 9], [5, 6, PAD]])
    chosen = router.select(logits, source, PAD)
    assert chosen[0] == chosen[2]
    many = torch.randint(4, 1000, (400, 7), generator=torch.Generator().manual_seed(0))
    load = router.select(torch.zeros(400, 4), many, PAD).bincount(minlength=4)
    assert load.min() > 70
