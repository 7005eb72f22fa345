"""Early-terminating inference: equal to one sample at a time, and nothing runs that is not needed."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.overrides import TorchFunctionMode

from coe_core import Delegation, confidence, infer, select_expert


class Networks:
    """A random delegator and experts; counts the rows that every expert sees."""

    def __init__(self, k, seed=0, features=6, classes=4):
        torch.manual_seed(seed)
        self.delegator = nn.Sequential(nn.Linear(features, 8), nn.Tanh(), nn.Linear(8, classes + k))
        self.nets = [
            nn.Sequential(nn.Linear(features, 5 + j), nn.ReLU(), nn.Linear(5 + j, classes))
            for j in range(k)
        ]
        self.seen = [[] for _ in range(k)]
        self.delegated = []
        self.classes = classes
        self.experts = [self.counting(j) for j in range(k)]

    def counting(self, j):
        def expert(x):
            self.seen[j].append(len(x))
            return self.nets[j](x)

        return expert

    def delegate(self, x):
        self.delegated.append(len(x))
        out = self.delegator(x)
        rough = out[:, : self.classes]
        return Delegation(rough, confidence(rough), out[:, self.classes :])

    def infer(self, x, threshold, **more):
        with torch.no_grad():
            return infer(self.delegate, self.experts, x, threshold, **more)

    def middle(self, x):
        """A threshold that half of the samples pass."""
        return self.infer(x, 0).confidence.median().item()


def inputs(n, seed=0):
    return torch.randn(n, 6, generator=torch.manual_seed(seed))


@given(
    n=st.integers(1, 25),
    k=st.integers(1, 5),
    seed=st.integers(0, 10**6),
    threshold=st.floats(0.2, 0.9),
)
def test_grouped_equals_one_by_one(n, k, seed, threshold):
    networks, x = Networks(k, seed), inputs(n, seed)
    grouped = networks.infer(x, threshold)
    single = [networks.infer(x[i : i + 1], threshold) for i in range(n)]
    for name in ("exits", "selected_expert"):
        joined = torch.cat([getattr(alone, name) for alone in single])
        assert getattr(grouped, name).tolist() == joined.tolist()
    for name in ("prediction", "confidence"):
        joined = torch.cat([getattr(alone, name) for alone in single])
        torch.testing.assert_close(getattr(grouped, name), joined, rtol=0, atol=1e-5)


def test_each_sample_gets_the_prediction_that_its_way_leads_to():
    networks, x = Networks(3), inputs(40)
    with torch.no_grad():
        rough, confidences, logits, _ = networks.delegate(x)
        answers = torch.stack([net(x) for net in networks.nets], 1)
    threshold = networks.middle(x)
    result = networks.infer(x, threshold)
    exits = confidences >= threshold
    assert 0 < int(exits.sum()) < 40
    assert result.exits.tolist() == exits.tolist()
    assert result.selected_expert.tolist() == logits.argmax(1).tolist()
    expected = torch.where(exits[:, None], rough, answers[torch.arange(40), logits.argmax(1)])
    torch.testing.assert_close(result.prediction, expected)


def test_threshold_zero_exits_all_and_runs_no_expert():
    networks, x = Networks(3), inputs(20)
    result = networks.infer(x, 0)
    assert result.exits.all()
    assert networks.seen == [[], [], []]
    torch.testing.assert_close(result.prediction, networks.delegate(x).rough)


@pytest.mark.parametrize("threshold", [1.001, math.inf])
def test_threshold_above_the_top_exits_none(threshold):
    networks = Networks(3)
    result = networks.infer(inputs(20), threshold)
    assert not result.exits.any()
    assert sum(map(sum, networks.seen)) == 20


def test_a_sample_as_sure_as_the_threshold_exits():
    networks, x = Networks(2), inputs(5)
    confidences = networks.infer(x, 0).confidence
    assert networks.infer(x, confidences.max().item()).exits.sum() == 1


def test_every_needed_expert_runs_once_on_its_rows_and_no_other_runs():
    networks, x = Networks(4), inputs(30)
    threshold = networks.middle(x)
    networks.delegated.clear()
    result = networks.infer(x, threshold)
    stays = result.selected_expert[~result.exits]
    assert 5 < len(stays) < 25
    rows = [(stays == j).sum().item() for j in range(4)]
    assert networks.seen == [[count] if count else [] for count in rows]
    assert networks.delegated == [30]


def test_batch_of_one_runs_at_most_one_expert():
    networks = Networks(4)
    networks.infer(inputs(1), 0.0)
    assert networks.seen == [[]] * 4
    networks.infer(inputs(1), 2.0)
    assert sorted(networks.seen) == [[], [], [], [1]]


def test_thresholds_per_sample():
    networks, x = Networks(2), inputs(4)
    limits = torch.tensor([0.0, 2.0, 0.0, 2.0])
    assert networks.infer(x, limits).exits.tolist() == [True, False, True, False]


def test_no_samples():
    networks = Networks(3)
    result = networks.infer(inputs(0), 0.5)
    assert result.prediction.shape == (0, 4)
    assert result.exits.shape == result.selected_expert.shape == (0,)
    assert networks.seen == [[], [], []]


def test_combine_sees_the_rough_predictions_of_its_group():
    networks, x = Networks(3), inputs(30)
    plain = networks.infer(x, networks.middle(x))
    mixed = networks.infer(
        x, networks.middle(x), combine=lambda rough, answer: 0.25 * rough + 0.75 * answer
    )
    rough = networks.infer(x, 0).prediction
    mean = 0.25 * rough + 0.75 * plain.prediction
    assert 5 < plain.exits.sum() < 25
    expected = torch.where(plain.exits[:, None], rough, mean)
    torch.testing.assert_close(mixed.prediction, expected)


def test_another_selection():
    networks, x = Networks(3), inputs(10)
    result = networks.infer(x, 2.0, select=lambda logits: logits.argmin(1))
    logits = networks.delegate(x).selection_logits
    assert result.selected_expert.tolist() == select_expert(-logits).tolist()
    assert [sum(rows) for rows in networks.seen] == torch.bincount(
        logits.argmin(1), minlength=3
    ).tolist()


def words(sentences, confidences, chosen, k=2):
    """A delegator of sentences: its rough prediction is the sentence in capitals."""
    return Delegation(
        [sentence.upper() for sentence in sentences],
        torch.tensor([confidences[sentence] for sentence in sentences]),
        torch.eye(k)[[chosen[sentence] for sentence in sentences]],
    )


def test_lists_as_batches_and_predictions_keep_their_order():
    confidences = {"a": 0.9, "b": 0.1, "c": 0.2, "d": 0.3}
    chosen = {"a": 0, "b": 1, "c": 0, "d": 1}
    groups = []

    def expert(name):
        def run(sentences):
            groups.append((name, sentences))
            return [sentence + name for sentence in sentences]

        return run

    result = infer(
        lambda batch: words(batch, confidences, chosen),
        [expert("0"), expert("1")],
        ["d", "a", "c", "b"],
        threshold=0.5,
        combine=lambda rough, answer: [f"{r}{a}" for r, a in zip(rough, answer, strict=True)],
    )
    assert result.prediction == ["Dd1", "A", "Cc0", "Bb1"]
    assert groups == [("0", ["c"]), ("1", ["d", "b"])]


def test_a_batch_of_another_kind_needs_only_a_take():
    networks, x = Networks(3), inputs(30)
    result = infer(
        lambda batch: networks.delegate(batch["x"]),
        [lambda batch, net=net: net(batch["x"]) for net in networks.nets],
        {"x": x},
        networks.middle(x),
        take=lambda batch, rows: {name: value[rows] for name, value in batch.items()},
        combine=lambda rough, answer: rough + answer,
    )
    expected = networks.infer(x, networks.middle(x), combine=lambda rough, answer: rough + answer)
    torch.testing.assert_close(result.prediction, expected.prediction)


def test_the_rough_predictions_are_not_written_to():
    rough = torch.zeros(3, 2)
    delegation = Delegation(rough, torch.zeros(3), torch.zeros(3, 1))
    result = infer(lambda _: delegation, [lambda x: x + 1], torch.zeros(3, 2), 0.5)
    assert result.prediction.tolist() == [[1, 1]] * 3
    assert rough.tolist() == [[0, 0]] * 3


def test_predictions_have_the_dtype_of_the_rough_ones():
    delegation = Delegation(torch.zeros(2, 1), torch.tensor([0.0, 1.0]), torch.zeros(2, 1))
    result = infer(lambda _: delegation, [lambda x: x], torch.ones(2, 1).bfloat16(), 0.5)
    assert result.prediction.dtype == torch.float32
    assert result.prediction.tolist() == [[1.0], [0.0]]


def test_a_number_of_experts_that_differs_is_an_error():
    networks = Networks(3)
    with pytest.raises(ValueError, match="selects among 3 experts, but 2 were given"):
        infer(networks.delegate, networks.experts[:2], inputs(4), 0.5)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("threshold", [math.nan, torch.tensor([0.1, math.nan, 0.2, 0.3])])
def test_a_threshold_that_is_nan_is_an_error(threshold):
    with pytest.raises(ValueError, match=r"threshold must be one number or 4 numbers .* none NaN"):
        Networks(2).infer(inputs(4), threshold)


@pytest.mark.usefixtures("unchecked")
def test_another_number_of_thresholds_is_an_error():
    with pytest.raises(ValueError, match=r"or 4 numbers \(one per sample\).*got shape \(3,\)"):
        Networks(2).infer(inputs(4), torch.tensor([0.1, 0.2, 0.3]))


@pytest.mark.usefixtures("unchecked")
def test_confidences_of_another_shape_are_an_error():
    delegation = Delegation(torch.zeros(2, 1), torch.zeros(2, 1), torch.zeros(2, 1))
    with pytest.raises(ValueError, match=r"confidence has shape \(2, 1\), but there are 2 samples"):
        infer(lambda _: delegation, [lambda x: x], torch.zeros(2, 1), 0.5)


@pytest.mark.parametrize("n", [1, 2])
def test_selection_logits_that_are_nan_are_an_error(n):
    delegation = Delegation(torch.zeros(n, 1), torch.zeros(n), torch.full((n, 1), math.nan))
    with pytest.raises(ValueError, match=f"selection_logits hold NaN in {n} of {n} samples"):
        infer(lambda _: delegation, [lambda x: x], torch.zeros(n, 1), 0.5)


@pytest.mark.parametrize("rough", [torch.zeros(3, 2), ["a", "b", "c"]])
def test_an_expert_that_does_not_answer_for_each_sample_is_an_error(rough):
    delegation = Delegation(rough, torch.zeros(3), torch.zeros(3, 1))
    with pytest.raises(ValueError, match="expert 0 gave 1 predictions for 3 samples"):
        infer(lambda _: delegation, [lambda x: x[:1]], torch.zeros(3, 2), 0.5)


def test_predictions_that_the_rough_ones_cannot_hold_are_an_error():
    delegation = Delegation(torch.zeros(2, dtype=torch.long), torch.zeros(2), torch.zeros(2, 1))
    with pytest.raises(ValueError, match=r"expert 0 predicts torch.float32, which .* torch.int64"):
        infer(lambda _: delegation, [lambda x: x], torch.rand(2), 0.5)


class Waits(TorchFunctionMode):
    """Records the calls for which a host waits until a CUDA device has caught up."""

    names = ("cpu", "item", "tolist", "nonzero", "bincount", "masked_select", "unique")
    names += ("__bool__", "__int__", "__float__", "__index__")

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__name__", "") in self.names:
            self.seen.append(function.__name__)
        return function(*args, **(kwargs or {}))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("n", [1, 2, 64])
def test_the_host_waits_once_however_many_experts(n):
    networks, x = Networks(4), inputs(n)
    threshold = networks.middle(x)
    # A single sample on the host takes a shorter way; with a selection of one's own it takes this one.
    select = (lambda logits: logits.argmax(1)) if n == 1 else None
    with Waits() as waits:
        networks.infer(x, threshold, select=select)
    assert waits.seen == ["cpu"]


@pytest.mark.parametrize("rough", [torch.zeros(1, 2), ["a"]])
@pytest.mark.parametrize("threshold", [0.0, 2.0])
def test_a_single_sample_takes_a_shorter_way_to_the_same(rough, threshold):
    tensors = isinstance(rough, torch.Tensor)
    answer = torch.ones(1, 2, dtype=torch.bfloat16) if tensors else ("b",)
    delegation = Delegation(rough, torch.tensor([0.5]), torch.tensor([[0.0, 1.0]]))
    never = lambda batch: pytest.fail("the other expert ran")  # noqa: E731
    arguments = (lambda _: delegation, [never, lambda batch: answer], torch.zeros(1, 3), threshold)
    short, long = infer(*arguments), infer(*arguments, select=select_expert)
    assert type(short.prediction) is type(long.prediction)
    if tensors:
        assert short.prediction.dtype == torch.float32
        torch.testing.assert_close(short.prediction, long.prediction)
    else:
        assert short.prediction == long.prediction == (["a"] if threshold == 0 else ["b"])
    assert [column.tolist() for column in short[1:]] == [column.tolist() for column in long[1:]]


def test_waits_are_seen():
    with Waits() as waits:
        assert bool(torch.ones(2).isnan().any()) is False
        torch.ones(2).sum().item()
    assert waits.seen == ["__bool__", "item"]


def test_groups_keep_channels_last():
    layouts = []

    def expert(x):
        layouts.append(x.is_contiguous(memory_format=torch.channels_last))
        return x.sum((1, 2, 3))[:, None]

    x = torch.randn(6, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    delegation = Delegation(torch.zeros(6, 1), torch.zeros(6), torch.eye(2)[[0, 1, 1, 0, 1, 0]])
    result = infer(lambda _: delegation, [expert, expert], x, 0.5)
    assert layouts == [True, True]
    torch.testing.assert_close(result.prediction, x.sum((1, 2, 3))[:, None])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("streams", [False, True])
def test_on_cuda_one_wait_and_equal_to_the_cpu(streams):
    networks, x = Networks(4), inputs(64)
    threshold = networks.middle(x)
    expected = networks.infer(x, threshold)
    networks.delegator.cuda()
    for net in networks.nets:
        net.cuda()
    x = x.cuda()
    networks.infer(x, threshold, streams=streams)  # the libraries' own set-up waits
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with pytest.warns(UserWarning, match="called a synchronizing CUDA operation") as waits:
            inference = networks.infer(x, threshold, streams=streams)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(waits) == 1
    torch.testing.assert_close(inference.prediction.cpu(), expected.prediction, rtol=0, atol=1e-4)
