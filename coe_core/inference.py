"""Early-terminating inference for any task: exits leave, each needed expert runs once on its group."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from coe_core._checks import real
from coe_core.routing import EXITS, UNDECIDED, diverged, group_places

ConfidenceKind = Literal["max_probability", "margin", "entropy"]


class Delegation(NamedTuple):
    """The delegator's answer for a batch: all that is known before an expert runs."""

    rough: Any  # [n, ...] tensor, or a list of n
    confidence: Float[Tensor, " n"]
    selection_logits: Float[Tensor, "n k"]
    # What the experts see in place of the batch (OURS): features that the delegator has computed, say;
    # a tensor [n, ...], or what ``take`` can index. None: they see the batch itself, whole networks.
    handed: Any = None


class Inference(NamedTuple):
    """Predictions in the order of the input, and how each came about."""

    prediction: Any  # tensor or list, as ``Delegation.rough``
    exits: Bool[Tensor, " n"]  # ended with the rough prediction
    selected_expert: Int[Tensor, " n"]  # also told for exits, where it did not run
    confidence: Float[Tensor, " n"]


def confidence(
    logits: Float[Tensor, "n c"], kind: ConfidenceKind = "max_probability"
) -> Float[Tensor, " n"]:
    """Confidence of a prediction from its logits, in [0, 1]; higher is surer. Method section 4.

    Args:
        logits: of a classifier over c classes.
        kind: "max_probability" (default; PAPER leaves it open), "margin" (best minus second best
            probability), or "entropy" (1 - H / log c).

    Raises:
        ValueError: unknown kind, or no classes.

    Example:
        >>> confidence(torch.tensor([[0.0, 0.0], [9.0, 0.0]])).tolist()
        [0.5, 0.9998...]
    """
    if kind not in get_args(ConfidenceKind):
        raise ValueError(
            f"unknown confidence {kind!r}; known: 'max_probability', 'margin', 'entropy'"
        )
    num_classes = logits.shape[1]
    if num_classes == 0:
        raise ValueError("logits over 0 classes have no confidence")
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if kind == "max_probability" or num_classes == 1:
        return logits.softmax(1).amax(1)
    log_probs = logits.log_softmax(1)
    if kind == "margin":
        best = log_probs.topk(2, 1).values.exp()
        return best[:, 0] - best[:, 1]
    surprise: Tensor = torch.special.entr(log_probs.exp()).sum(1)
    return (1 - surprise / math.log(num_classes)).clamp(0, 1)


def _take(batch: Any, rows: Tensor) -> Any:
    if not isinstance(batch, Tensor):
        return [batch[i] for i in rows.tolist()]
    if batch.ndim == 4 and not batch.is_contiguous():
        # index_select forgets channels_last, and every convolution would have to restore it.
        return batch.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2)
    return batch.index_select(0, rows)


def infer(
    delegate: Callable[[Any], Delegation],
    experts: Sequence[Callable[[Any], Any]],
    batch: Any,
    threshold: float | Float[Tensor, " n"],
    *,
    take: Callable[[Any, Tensor], Any] = _take,
    combine: Callable[[Any, Any], Any] | None = None,
    select: Callable[[Tensor], Tensor] | None = None,
    streams: bool = False,
) -> Inference:
    """Run the delegator on all samples and, for those that do not end early, one expert each.

    PAPER: confident samples end with the rough prediction, the others run exactly the selected
    expert. A sample exits when its confidence >= threshold: a higher threshold means fewer exits;
    0 exits all, anything above 1 none (for confidences in [0, 1]). Work that is not needed is not
    done: no expert runs on an exited sample, an expert without samples is not called.
    The result equals running the samples one at a time. The host waits for the device once, for the
    routes of the whole batch.

    Args:
        delegate: batch -> `Delegation`.
        experts: k functions, group of samples -> predictions, tensor [group, ...] or list.
        batch: anything ``take`` can index: a tensor [n, ...] or a sequence by default.
        threshold: one number, or one per sample.
        take: how to take rows out of a batch that is neither (such as a dict of tensors).
        combine: (rough, expert prediction) of a group -> its prediction; default: the expert's. OURS.
        select: selection logits -> expert of each sample; default `select_expert`.
        streams: on CUDA, run every expert on a stream of its own. OURS.

    Returns:
        Inference: predictions in the order of the input, of the rough predictions' dtype.

    Raises:
        ValueError: a threshold that is NaN, or not one per sample; confidences that are not one per
            sample; no experts, or a number of them that differs from the selection logits'; NaN in the
            logits; an expert whose predictions are not as many as its samples, of another shape than
            the rough ones, or of a kind of number that these cannot hold.

    Example:
        >>> delegate = lambda x: Delegation(x * 0, x.abs(), torch.stack([x, -x], 1))
        >>> double, negate = (lambda x: 2 * x), (lambda x: -x)
        >>> infer(delegate, [double, negate], torch.tensor([0.5, -0.2, 0.9]), threshold=0.8).prediction
        tensor([1.0000, 0.2000, 0.0000])
    """
    rough, confidences, selection_logits, handed = delegate(batch)
    n, k = selection_logits.shape
    if handed is not None:
        batch = handed
        if len(handed) != n:
            raise ValueError(
                f"the delegator hands {len(handed)} rows to the experts, but there are {n} samples"
            )
    if k != len(experts):
        raise ValueError(f"the delegator selects among {k} experts, but {len(experts)} were given")
    if k == 0:
        raise ValueError("there are no experts; give one at least")
    if confidences.shape != (n,):
        raise ValueError(
            f"confidence has shape {tuple(confidences.shape)}, but there are {n} samples"
        )
    exits = confidences >= _checked_limit(threshold, confidences)
    if n == 1 and select is None and confidences.device.type == "cpu":
        return _infer_one(
            exits, rough, confidences, selection_logits, experts, batch, take, combine
        )
    if select is None:
        best, selected = selection_logits.max(1)  # NaN wins every maximum
        place = selected.masked_fill(exits, EXITS).masked_fill_(best.isnan(), UNDECIDED)
    else:
        selected = select(selection_logits)
        if selected.shape != (n,):
            raise ValueError(
                f"select gave shape {tuple(selected.shape)} for {n} samples; one expert each is due"
            )
        place = selected.long().masked_fill(exits, EXITS)
    groups = group_places(place, k).by_expert
    calls = {
        j: partial(_answer, j, experts[j], batch, rough, rows, n, take, combine)
        for j, rows in groups.items()
    }
    if streams and confidences.is_cuda and len(calls) > 1:
        answers = _on_streams(calls, confidences.device)
    else:
        answers = {j: call() for j, call in calls.items()}
    return Inference(_in_order(rough, answers, groups, n), exits, selected, confidences)


def _infer_one(
    exits: Tensor,
    rough: Any,
    confidences: Tensor,
    selection_logits: Tensor,
    experts: Sequence[Callable[[Any], Any]],
    batch: Any,
    take: Callable[[Any, Tensor], Any],
    combine: Callable[[Any, Any], Any] | None,
) -> Inference:
    """A single sample on the host: nothing to group, to gather or to put back in order."""
    best, selected = selection_logits.max(1)
    if math.isnan(best.item()):
        raise diverged(1, 1)
    if exits.item():
        return Inference(rough, exits, selected, confidences)
    j = int(selected)
    answer = _answer(j, experts[j], batch, rough, selected, 1, take, combine)
    prediction = answer.to(rough) if isinstance(rough, Tensor) else list(answer)
    return Inference(prediction, exits, selected, confidences)


def _on_streams(calls: Mapping[int, Callable[[], Any]], device: torch.device) -> dict[int, Any]:
    """Every call on a CUDA stream of its own; the caller's stream goes on when all are done."""
    here = torch.cuda.current_stream(device)
    answers, streams = {}, []
    for j, call in calls.items():
        stream = torch.cuda.Stream(device)
        stream.wait_stream(here)
        with torch.cuda.stream(stream):
            answers[j] = call()
        streams.append(stream)
    for stream in streams:
        here.wait_stream(stream)
    return answers


def _checked_limit(threshold: float | Tensor, confidences: Tensor) -> float | Tensor:
    """The threshold, refused where it could not be compared with every confidence."""
    n = len(confidences)
    shape: tuple[int, ...] = ()
    if isinstance(threshold, Tensor):
        shape, undefined = tuple(threshold.shape), bool(threshold.isnan().any())
    else:
        threshold = real("threshold", threshold) if isinstance(threshold, int) else threshold
        undefined = math.isnan(threshold)
    if undefined or shape not in ((), (n,)):
        raise ValueError(
            f"threshold must be one number or {n} numbers (one per sample), none NaN; "
            f"got shape {shape}"
        )
    return threshold.to(confidences) if isinstance(threshold, Tensor) else threshold


def _answer(
    j: int,
    expert: Callable[[Any], Any],
    batch: Any,
    rough: Any,
    rows: Tensor,
    n: int,
    take: Callable[[Any, Tensor], Any],
    combine: Callable[[Any, Any], Any] | None,
) -> Any:
    """Predictions of expert j for its rows."""
    everything = len(rows) == n  # nothing to regroup: spare the copies
    answer = expert(batch if everything else take(batch, rows))
    if len(answer) != len(rows):
        raise ValueError(
            f"expert {j} gave {len(answer)} predictions for {len(rows)} samples; "
            "an expert answers once for each"
        )
    if combine is not None:
        answer = combine(rough if everything else _take(rough, rows), answer)
    if isinstance(rough, Tensor) and answer.shape[1:] != rough.shape[1:]:
        raise ValueError(
            f"expert {j} predicts shape {tuple(answer.shape[1:])} for a sample, the rough predictions have "
            f"{tuple(rough.shape[1:])}; both must be alike"
        )
    if isinstance(rough, Tensor) and not torch.can_cast(answer.dtype, rough.dtype):
        raise ValueError(
            f"expert {j} predicts {answer.dtype}, which rough predictions of "
            f"{rough.dtype} cannot hold; give both the same dtype"
        )
    return answer


def _in_order(rough: Any, answers: dict[int, Any], groups: dict[int, Tensor], n: int) -> Any:
    """Rough predictions with the experts' answers in their places; what was given is not written to."""
    if not isinstance(rough, Tensor):
        items = list(rough)
        for j, answer in answers.items():
            for row, value in zip(groups[j].tolist(), answer, strict=True):
                items[row] = value
        return items
    for answer in answers.values():
        if len(answer) == n:
            return answer.to(rough)
    prediction = rough.clone()
    for j, answer in answers.items():
        prediction.index_copy_(0, groups[j], answer.to(prediction))
    return prediction
