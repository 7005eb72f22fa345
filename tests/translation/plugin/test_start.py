"""Experts that start as a plain transformer; BLEU of a validation where nothing was translated yet."""

import pytest
import torch
from fairseq.logging import metrics

from translation.plugin.checkpoints import load_state, take_network
from translation.plugin.start import copy_into_experts


@pytest.fixture(scope="module")
def loaded(load_team, team):
    return load_team(team / "checkpoint_last.pt")


def test_every_expert_becomes_the_plain_transformer(loaded, team, tmp_path):
    model, _ = loaded
    path = tmp_path / "plain.pt"
    torch.save(take_network(load_state(team / "checkpoint_last.pt"), "expert-0"), path)
    expert = model.experts[0]
    kept = {name: value.clone() for name, value in expert.state_dict().items()}
    with torch.no_grad():
        for parameter in expert.parameters():
            parameter.zero_()
    copy_into_experts([expert], path)
    assert all(torch.equal(value, kept[name]) for name, value in expert.state_dict().items())


def test_other_sizes_and_other_files_are_refused(loaded, team, tmp_path):
    model, _ = loaded
    path = tmp_path / "plain.pt"
    torch.save(take_network(load_state(team / "checkpoint_last.pt"), "expert-0"), path)
    with pytest.raises(
        ValueError, match=r"cannot start the experts: its decoder\.layers\.1\.\S+ is \["
    ):
        copy_into_experts([model.experts[1]], path)  # of one decoder layer
    with pytest.raises(ValueError, match="no such file"):
        copy_into_experts([model.experts[0]], tmp_path / "none.pt")


def test_bleu_of_empty_translations_is_0(loaded):
    from fairseq.criterions.label_smoothed_cross_entropy import LabelSmoothedCrossEntropyCriterion

    _, task = loaded
    criterion = LabelSmoothedCrossEntropyCriterion(task, sentence_avg=False, label_smoothing=0.1)
    log = {"loss": 1.0, "nll_loss": 1.0, "ntokens": 2, "sample_size": 2, "nsentences": 1}
    nothing = {f"_bleu_{kind}_{n}": 0 for kind in ("counts", "totals") for n in range(4)}
    for logged, expected in (
        (log | nothing | {"_bleu_sys_len": 0, "_bleu_ref_len": 3}, 0.0),
        (log, None),
    ):
        with metrics.aggregate(new_root=True) as meters:
            task.reduce_metrics([logged], criterion)
        assert meters.get_smoothed_values().get("bleu") == expected
