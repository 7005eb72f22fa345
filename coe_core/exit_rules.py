"""What exits are decided by: the rough prediction's confidence, or what an expert is expected to gain."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from coe_core._checks import check_targets
from coe_core.inference import ConfidenceKind, confidence
from coe_core.support.files import as_number

ExitKind = ConfidenceKind | Literal["gain"]
EXIT_KINDS: tuple[str, ...] = (*get_args(ConfidenceKind), "gain")
_NUM_FEATURES = 6
_PENALTIES = (1.0, 1e-1, 1e-2, 1e-3)  # of the squared weights, per sample; one of them is chosen
_FOLDS = 4
_LEAST = 1e-6  # of a probability whose odds are taken


@dataclass(frozen=True)
class GainModel:
    """Chances that an expert changes a rough prediction for the better, and for the worse. OURS.

    A multinomial logistic regression on six numbers of the rough and selection logits, the predicted class
    and the selected expert. Plain numbers only: it is stored as data.

    Attributes:
        mean: of the six numbers, on the data it was fitted on.
        deviation: of the six numbers.
        weights: for better and for worse, of the six numbers and a constant.
        classes: for better and for worse, of each predicted class.
        experts: for better and for worse, of each selected expert.

    Example:
        >>> six, pair = (0.0,) * 6, ((0.0, 0.0), (0.0, 0.0))
        >>> model = GainModel(six, (1.0,) * 6, ((*six, 1.0), (*six, -1.0)), pair, pair)
        >>> model.gain(torch.zeros(1, 2), torch.zeros(1, 2))  # better has odds of e to 1, worse 1 to e
        tensor([0.5752])
    """

    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    weights: tuple[tuple[float, ...], tuple[float, ...]]
    classes: tuple[tuple[float, ...], tuple[float, ...]]
    experts: tuple[tuple[float, ...], tuple[float, ...]]

    def gain(
        self, rough_logits: Float[Tensor, "n c"], selection_logits: Float[Tensor, "n k"]
    ) -> Float[Tensor, " n"]:
        """Expected gain in accuracy, in [-1, 1], if the selected expert runs.

        Raises:
            ValueError: logits of other numbers of classes or experts than it was fitted with.
        """
        for what, logits, fitted in (
            ("classes", rough_logits, self.classes),
            ("experts", selection_logits, self.experts),
        ):
            if logits.shape[1] != len(fitted[0]):
                raise ValueError(
                    f"the exit rule was fitted with {len(fitted[0])} {what}, not {logits.shape[1]}: "
                    "calibrate again"
                )
        features = _features(rough_logits, selection_logits)
        scores = self._scores(features, rough_logits.argmax(1), selection_logits.argmax(1))
        better, worse, _ = scores.softmax(1).unbind(1)
        return better - worse

    def _scores(self, features: Tensor, predicted: Tensor, selected: Tensor) -> Tensor:
        mean, deviation, weights, classes, experts = (part.to(features) for part in self._tensors)
        scaled = (features - mean) / deviation
        constant = torch.ones_like(scaled[:, :1])
        parts = torch.cat([scaled, constant], 1) @ weights.T
        parts = parts + classes.T[predicted] + experts.T[selected]
        return torch.cat([parts, torch.zeros_like(constant)], 1)

    @cached_property
    def _tensors(self) -> tuple[Tensor, ...]:
        numbers = (self.mean, self.deviation, self.weights, self.classes, self.experts)
        return tuple(torch.tensor(part, dtype=torch.float64) for part in numbers)


@dataclass(frozen=True)
class ExitRule:
    """What a sample's exit is decided by; it exits where `confidence` is at least a threshold.

    Args:
        kind: max_probability (default), margin or entropy of the rough prediction, see
            `coe_core.confidence`; or gain (OURS), 1/2 - 1/2 of the accuracy that the selected expert is
            expected to gain: 1/2 where it gains nothing, above where it harms.
        model: of the gain.

    Raises:
        ValueError: an unknown kind; a gain without its model, or a model of another kind.

    Example:
        >>> rule = ExitRule("margin")
        >>> rule.confidence(torch.tensor([[0.0, 0.0]]), torch.zeros(1, 2)).tolist()
        [0.0]
        >>> ExitRule.from_dict(rule.to_dict()) == rule
        True
    """

    kind: ExitKind = "max_probability"
    model: GainModel | None = None

    def __post_init__(self) -> None:
        if self.kind not in EXIT_KINDS:
            known = ", ".join(map(repr, EXIT_KINDS))
            raise ValueError(f"unknown confidence {self.kind!r}; known: {known}")
        if (self.kind == "gain") != (self.model is not None):
            raise ValueError(
                "an exit rule has a model of the gain where it goes by gain, and only there"
            )

    def confidence(
        self, rough_logits: Float[Tensor, "n c"], selection_logits: Float[Tensor, "n k"]
    ) -> Float[Tensor, " n"]:
        """Confidence of each sample, in [0, 1]."""
        if self.kind == "gain":
            assert self.model is not None, "checked"
            return (0.5 - 0.5 * self.model.gain(rough_logits, selection_logits)).clamp(0, 1)
        return confidence(rough_logits, self.kind)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; nothing for the default, so that what older versions wrote is what it is now."""
        if self == ExitRule():
            return {}
        return {"kind": self.kind} | ({} if self.model is None else asdict(self.model))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ExitRule:
        """Inverse of `to_dict`.

        Raises:
            ValueError: fields that are missing, unknown, or no finite numbers of the right count.
        """
        if not values:
            return cls()
        names = [entry.name for entry in fields(GainModel)]
        expected = {"kind", *(names if values.get("kind") == "gain" else ())}
        if set(values) != expected:
            raise ValueError(
                f"not an exit rule: it has the fields {', '.join(map(str, values))}, expected "
                f"{', '.join(sorted(expected))}"
            )
        if values["kind"] != "gain":
            return cls(values["kind"])
        mean, deviation = (_numbers(name, values[name]) for name in ("mean", "deviation"))
        weights, classes, experts = (
            _two_rows(name, values[name]) for name in ("weights", "classes", "experts")
        )
        lengths = {len(mean), len(deviation), len(weights[0]) - 1}
        if lengths != {_NUM_FEATURES} or not all(number > 0 for number in deviation):
            raise ValueError(
                f"an exit rule goes by {_NUM_FEATURES} numbers with deviations above 0"
            )
        return cls("gain", GainModel(mean, deviation, weights, classes, experts))


def _two_rows(name: str, pair: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        raise ValueError(f"{name} must be two lists of numbers, for better and for worse")
    better, worse = (_numbers(name, row) for row in pair)
    if len(better) != len(worse) or not better:
        raise ValueError(f"{name} must be two lists of equal length, at least 1")
    return better, worse


def _numbers(name: str, values: Any) -> tuple[float, ...]:
    if not isinstance(values, list | tuple):
        raise ValueError(f"{name} must be a list of numbers")
    numbers = tuple(as_number(value, name) for value in values)
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"{name} must be finite numbers")
    return numbers


def _features(rough_logits: Tensor, selection_logits: Tensor) -> Tensor:
    """[n, 6]: of the rough prediction its largest log-probability, log odds, lead and entropy; of the
    selection its largest log-probability and its entropy."""
    precise = torch.promote_types(rough_logits.dtype, torch.float32)
    rough = rough_logits.to(precise).log_softmax(1)
    selection = selection_logits.to(precise).log_softmax(1)
    best = rough.amax(1)
    second = rough.topk(min(2, rough.shape[1]), 1).values[:, -1]
    odds = best - (1 - best.exp()).clamp(min=_LEAST).log()
    columns = [best, odds, best - second, _entropy(rough), selection.amax(1), _entropy(selection)]
    return torch.stack(columns, 1).clamp(-50, 50)


def _entropy(log_probs: Tensor) -> Tensor:
    return -(log_probs.exp() * log_probs.clamp(min=-100)).sum(1)


def fit_gain(
    rough_logits: Float[Tensor, "n c"],
    selection_logits: Float[Tensor, "n k"],
    rough_right: Float[Tensor, " n"] | Bool[Tensor, " n"],
    final_right: Float[Tensor, " n"] | Bool[Tensor, " n"],
) -> ExitRule:
    """Exit rule by the expected gain: who would change the answer for the better runs an expert. OURS.

    Fits the chances of better, worse and no change, with the penalty on the squared weights that predicts
    left-out quarters best. Deterministic. Thresholds for it must be fitted on other samples: those that it
    was fitted on look surer than they are.

    Args:
        rough_logits: of the delegator, on held-out data.
        selection_logits: of the delegator.
        rough_right: 1 where the rough prediction is right, else 0.
        final_right: 1 where the final one is, the selected expert's with the rough one pooled into it.

    Raises:
        ValueError: fewer than 8 samples, shapes that disagree, logits that are not finite, or rights other
            than 0 and 1.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> rough = torch.randn(200, 3)
        >>> sure = rough.softmax(1).amax(1) > 0.6
        >>> rule = fit_gain(rough, torch.zeros(200, 2), sure, torch.ones(200))
        >>> confidence = rule.confidence(rough, torch.zeros(200, 2))
        >>> bool(confidence[sure].mean() > 0.4 > confidence[~sure].mean())
        True
    """
    outcome = _outcome(rough_logits, selection_logits, rough_right, final_right)
    rough_logits, selection_logits = rough_logits.detach().cpu(), selection_logits.detach().cpu()
    features = _features(rough_logits.double(), selection_logits.double())
    mean, deviation = features.mean(0), features.std(0, correction=0)
    deviation = deviation.where(deviation > 1e-9, 1.0)
    (n, c), k = rough_logits.shape, selection_logits.shape[1]
    constant = torch.ones(n, 1, dtype=torch.float64)
    shared = torch.cat([(features - mean) / deviation, constant], 1).numpy()
    predicted, selected = rough_logits.argmax(1), selection_logits.argmax(1)
    columns = _columns(shared, predicted.numpy(), selected.numpy(), c, k)
    weights = _fit(columns, outcome.numpy(), _NUM_FEATURES)
    rows = _NUM_FEATURES + 1
    model = GainModel(
        tuple(mean.tolist()),
        tuple(deviation.tolist()),
        _pair(weights[:rows]),
        _pair(weights[rows : rows + c]),
        _pair(weights[rows + c :]),
    )
    return ExitRule("gain", model)


def _pair(columns: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Weights [m, 2] as plain numbers: for better and for worse."""
    better, worse = columns.T.tolist()
    return tuple(better), tuple(worse)


def _outcome(
    rough_logits: Tensor, selection_logits: Tensor, rough_right: Tensor, final_right: Tensor
) -> Tensor:
    """Of each sample 0, better; 1, worse; 2, neither."""
    n = len(rough_logits)
    if n < 2 * _FOLDS:
        raise ValueError(
            f"{n} samples are too few to fit an exit rule on: give {2 * _FOLDS} at least"
        )
    for name, logits in (("rough_logits", rough_logits), ("selection_logits", selection_logits)):
        if logits.ndim != 2 or len(logits) != n or logits.shape[1] == 0:
            raise ValueError(f"{name} has shape {tuple(logits.shape)}, but there are {n} samples")
        bad = int((~logits.isfinite()).any(1).sum())
        if bad:
            raise ValueError(f"{name} are not finite in {bad} of {n} samples; the network diverged")
    for name, right in (("rough_right", rough_right), ("final_right", final_right)):
        if right.shape != (n,) or not bool(((right == 0) | (right == 1)).all()):
            raise ValueError(f"{name} must be 1 (right) or 0 (wrong) for each of {n} samples")
    change = final_right.cpu().long() - rough_right.cpu().long()
    outcome = torch.full((n,), 2)
    outcome[change > 0], outcome[change < 0] = 0, 1
    check_targets(outcome, n, 3)
    return outcome


def _columns(
    shared: np.ndarray, predicted: np.ndarray, selected: np.ndarray, c: int, k: int
) -> Any:
    """A sparse matrix [n, 7 + c + k]: numbers and a constant, the predicted class, the selected expert."""
    from scipy.sparse import csr_matrix, hstack

    rows, ones = np.arange(len(shared)), np.ones(len(shared))
    classes = csr_matrix((ones, (rows, predicted)), shape=(len(shared), c))
    experts = csr_matrix((ones, (rows, selected)), shape=(len(shared), k))
    return hstack([csr_matrix(shared), classes, experts], format="csr")


def _fit(columns: Any, outcome: np.ndarray, constant: int) -> np.ndarray:
    """Weights [m, 2] for better and for worse, with the penalty that predicts left-out quarters best."""
    fold = np.arange(len(outcome)) % _FOLDS
    losses = dict.fromkeys(_PENALTIES, 0.0)
    for j in range(_FOLDS):
        start = np.zeros((columns.shape[1], 2))
        for penalty in _PENALTIES:  # from the smoothest on, each from the one before
            start = _regression(columns[fold != j], outcome[fold != j], penalty, constant, start)
            losses[penalty] += _loss(columns[fold == j], outcome[fold == j], start)[0]
    best = min(losses, key=losses.__getitem__)
    return _regression(columns, outcome, best, constant, np.zeros((columns.shape[1], 2)))


def _loss(columns: Any, outcome: np.ndarray, weights: np.ndarray) -> tuple[float, np.ndarray]:
    """Mean cross-entropy of the outcomes and its gradient."""
    scores = np.concatenate([columns @ weights, np.zeros((len(outcome), 1))], 1)
    scores -= scores.max(1, keepdims=True)
    scores -= np.log(np.exp(scores).sum(1, keepdims=True))
    chances = np.exp(scores)
    rows = np.arange(len(outcome))
    chances[rows, outcome] -= 1
    return float(-scores[rows, outcome].mean()), columns.T @ chances[:, :2] / len(outcome)


def _regression(
    columns: Any, outcome: np.ndarray, penalty: float, constant: int, start: np.ndarray
) -> np.ndarray:
    """The weights of least loss plus penalty / 2 * their squares: a strictly convex problem."""
    from scipy.optimize import minimize

    scale = np.full((columns.shape[1], 1), penalty)
    scale[constant] = 1e-6  # hardly: but finite where an outcome never happens

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat.reshape(-1, 2)
        loss, gradient = _loss(columns, outcome, weights)
        return loss + float((scale * weights**2).sum()) / 2, (gradient + scale * weights).ravel()

    optimum = minimize(
        objective, start.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": 200}
    )
    fitted: np.ndarray = optimum.x.reshape(-1, 2)
    return fitted
