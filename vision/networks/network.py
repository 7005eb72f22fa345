"""Networks by name, and the team they form: one delegator, k experts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import timm
import torch
import torchvision
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import interpolate

from coe_core import Delegation, confidence, infer
from coe_core.inference import ConfidenceKind
from vision.errors import nearest
from vision.networks.activations import replace_activations
from vision.networks.condconv import replace_convolutions
from vision.networks.own.cifar import CifarResNet, cifar_densenet
from vision.networks.own.ofa import ofa_mobilenetv3
from vision.networks.own.scaled import deep_stem_resnext, scaled_efficientnet
from vision.networks.own.shaken import PyramidNet, ShakeShake
from vision.networks.own.small_resnet import SmallResNet

_OWN = {
    "small_resnet": SmallResNet,
    "cifar_resnet": CifarResNet,
    "cifar_densenet": cifar_densenet,
    "shake_shake": ShakeShake,
    "pyramidnet": PyramidNet,
    "scaled_efficientnet": scaled_efficientnet,
    "deep_stem_resnext": deep_stem_resnext,
    "ofa_mobilenetv3": ofa_mobilenetv3,
}


_HOW_TO_GET_WEIGHTS = (
    "; fetch them once where there is a network, python -c \"import timm; timm.create_model('{}', "
    'pretrained=True)", and keep its cache (HF_HOME), or set pretrained to false'
)


@dataclass(frozen=True)
class Network:
    """A classifier by name.

    Args:
        name: one of our own, such as "small_resnet" or "cifar_resnet", any timm model or any
            torchvision classifier; "timm/NAME" or "torchvision/NAME" where both have it (timm
            otherwise goes first).
        pretrained: start from the library's published weights, all but the classifier.
        options: further arguments of the network's constructor, such as width or drop_rate.
        size: side in pixels at which this network sees the images, of which it makes a smaller (or
            larger) copy; null: as they come, data.size.
        activation: replaces the network's ReLU-like activations: pwlu (learned, per channel), prelu, relu,
            relu6, silu, hardswish, gelu, mish or leaky_relu; null: its own.
        activation_options: of the activation, such as ``{intervals: 8, per_channel: false}`` of pwlu.
        condconv: number of kernels that are mixed for each image in place of one; 0: plain convolutions.
        condconv_where: regular expression: convolutions whose dotted name it finds, such as
            ``^blocks\\.[4-6]``; null: the later half.

    Example:
        >>> Network("ofa_mobilenetv3", options={"preset": "110m"}, size=176, activation="pwlu").shown
        'ofa_mobilenetv3 preset=110m at 176 pwlu'
    """

    name: str
    pretrained: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    size: int | None = None
    activation: str | None = None
    activation_options: dict[str, Any] = field(default_factory=dict)
    condconv: int = 0
    condconv_where: str | None = None

    @property
    def shown(self) -> str:
        """In one line, for tables."""
        options = ", ".join(f"{key}={value}" for key, value in self.options.items())
        parts = [self.name, options, f"at {self.size}" if self.size else ""]
        parts += [self.activation or "", f"condconv {self.condconv}" if self.condconv else ""]
        return " ".join(part for part in parts if part)


def build_network(network: Network, num_outputs: int, channels: int = 3) -> nn.Module:
    """The network with ``num_outputs`` logits, its activations and convolutions replaced if asked.

    Args:
        network: name and options.
        num_outputs: of the last layer.
        channels: of the images; torchvision's networks take 3.

    Raises:
        ValueError: unknown name (names the nearest), options that the constructor does not take,
            channels that the network cannot take, or nothing to replace.

    Example:
        >>> sum(p.numel() for p in build_network(Network("small_resnet"), 10).parameters())
        78042
    """
    built = _named(network, num_outputs, channels)
    try:
        if network.condconv:
            replace_convolutions(
                built,
                network.condconv,
                where=network.condconv_where,
                keep_weights=network.pretrained,
            )
        if network.activation is not None:
            replace_activations(built, network.activation, **network.activation_options)
    except ValueError as error:
        raise ValueError(f"network {network.name!r}: {error}") from error
    return built if network.size is None else AtSize(built, network.size)


class AtSize(nn.Module):
    """A network that sees the images at a size of its own.

    Args:
        network: any classifier.
        size: side in pixels.

    Raises:
        ValueError: size below 1.
    """

    def __init__(self, network: nn.Module, size: int):
        super().__init__()
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        self.network, self.size = network, size

    def forward(self, images: Float[Tensor, "n ch h w"]) -> Float[Tensor, "n c"]:
        """Logits."""
        if images.shape[-1] != self.size:
            images = interpolate(
                images.float(), (self.size, self.size), mode="bilinear", antialias=True
            ).to(images.dtype)
        return self.network(images)


def _named(network: Network, num_outputs: int, channels: int) -> nn.Module:
    library, _, short = network.name.rpartition("/")
    try:
        if not library and short in _OWN:
            return _OWN[short](num_classes=num_outputs, in_chans=channels, **network.options)
        if library in ("", "timm") and timm.is_model(short):
            return timm.create_model(
                short,
                pretrained=network.pretrained,
                num_classes=num_outputs,
                in_chans=channels,
                **network.options,
            )
        if library in ("", "torchvision") and short in torchvision.models.list_models(
            torchvision.models
        ):
            return _torchvision(network, short, num_outputs, channels)
    except OSError as error:
        raise ValueError(
            f"the weights of {network.name} cannot be had: {' '.join(str(error).split())[:300]}"
            + _HOW_TO_GET_WEIGHTS.format(short) * network.pretrained
        ) from error
    except (TypeError, RuntimeError) as error:  # options it does not take; no published weights
        raise ValueError(
            f"network {network.name!r} with options {network.options}: {error}"
        ) from error
    known = [*_OWN, *timm.list_models(), *torchvision.models.list_models(torchvision.models)]
    raise ValueError(
        f"unknown network {network.name!r}{nearest(short, known)}; any classifier of timm or "
        f"torchvision goes by its name there, and our own are {', '.join(_OWN)}"
    )


def _torchvision(network: Network, name: str, num_outputs: int, channels: int) -> nn.Module:
    if channels != 3:
        raise ValueError(
            f"torchvision's {name} takes images of 3 channels, the data have {channels}; "
            "set data.channels=3 (grey images are repeated) or use a timm network"
        )
    options = dict(network.options)
    if name in ("googlenet", "inception_v3"):
        options.setdefault("aux_logits", False)  # in training they would return several outputs
        options.setdefault("init_weights", True)
    model = torchvision.models.get_model(name, weights=None, num_classes=num_outputs, **options)
    if network.pretrained:
        published = torchvision.models.get_model(name, weights="DEFAULT").state_dict()
        own = model.state_dict()
        fitting = {
            key: value
            for key, value in published.items()
            if key in own and value.shape == own[key].shape
        }
        model.load_state_dict(fitting, strict=False)
    return model


class TeamOutput(NamedTuple):
    """Everything a training step needs: all networks on all samples."""

    rough_logits: Float[Tensor, "n c"]
    selection_logits: Float[Tensor, "n k"]
    expert_logits: Float[Tensor, "n k c"]


class TeamInference(NamedTuple):
    """`coe_core.Inference` of a classifier, with the rough predictions beside it."""

    prediction: Float[Tensor, "n c"]  # logits
    exits: Bool[Tensor, " n"]  # ended with the rough prediction
    selected_expert: Int[Tensor, " n"]  # also told for exits, where it did not run
    confidence: Float[Tensor, " n"]
    rough: Float[Tensor, "n c"]  # the delegator's logits


class Team(nn.Module):
    """A delegator and k experts, each a whole network; nothing is shared between them.

    The delegator is any classifier with c + k outputs: c rough logits, then k selection logits,
    both linear in its features.

    Args:
        delegator: network with num_classes + k outputs.
        experts: k networks with num_classes outputs each; they may differ.
        num_classes: c.

    Example:
        >>> build = lambda outputs: build_network(Network("small_resnet", options={"width": 2}), outputs)
        >>> team = Team(build(10 + 3), [build(10) for _ in range(3)], num_classes=10).eval()
        >>> team.infer(torch.zeros(5, 3, 32, 32), threshold=0.0).exits.tolist()
        [True, True, True, True, True]
    """

    def __init__(self, delegator: nn.Module, experts: Sequence[nn.Module], num_classes: int):
        super().__init__()
        self.delegator = delegator
        self.experts = nn.ModuleList(experts)
        self.num_classes = num_classes

    @property
    def num_experts(self) -> int:
        return len(self.experts)

    def delegate(
        self, images: Float[Tensor, "n ch h w"]
    ) -> tuple[Float[Tensor, "n c"], Float[Tensor, "n k"]]:
        """Rough logits and selection logits."""
        outputs = self.delegator(images)
        return outputs[:, : self.num_classes], outputs[:, self.num_classes :]

    def forward(self, images: Float[Tensor, "n ch h w"]) -> TeamOutput:
        """All networks on all images: for training and for tables, not for deployment."""
        rough, selection = self.delegate(images)
        return TeamOutput(rough, selection, torch.stack([e(images) for e in self.experts], 1))

    def infer(
        self,
        images: Float[Tensor, "n ch h w"],
        threshold: float | Float[Tensor, " n"],
        confidence_kind: ConfidenceKind = "max_probability",
        rough_weight: float | Float[Tensor, " n"] = 0.0,
        *,
        streams: bool = False,
    ) -> TeamInference:
        """Logits with early termination: the delegator for all, one expert for those that stay.

        Where an expert runs, the prediction is its logits + ``rough_weight`` * the rough logits.

        Args:
            images: prepared, see `vision.recipe_networks.Networks.prepare`.
            threshold: exit when confidence >= threshold; one number, or one per image.
            confidence_kind: see `coe_core.confidence`.
            rough_weight: one number, or one per image; see `coe_core.fit_rough_weight`.
            streams: see `coe_core.infer`.
        """
        rough, selection = self.delegate(images)
        rough, selection = rough.float(), selection.float()
        delegation = Delegation(rough, confidence(rough, confidence_kind), selection)
        prediction, exits, *route = infer(
            lambda _: delegation, list(self.experts), images, threshold, streams=streams
        )
        if isinstance(rough_weight, Tensor) or rough_weight:
            pooled = prediction.float() + _per_row(rough_weight) * rough
            prediction = torch.where(exits[:, None], rough, pooled)
        return TeamInference(prediction, exits, *route, rough)


def _per_row(weight: float | Tensor) -> float | Tensor:
    return weight[:, None] if isinstance(weight, Tensor) and weight.ndim == 1 else weight
