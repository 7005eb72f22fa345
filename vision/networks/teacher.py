"""Distillation: a frozen network with published weights, whose probabilities become part of the targets."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn.functional import interpolate, one_hot

from vision.networks.network import Network, build_network, check_options

# Among a teacher's options, read here and not by its constructor; other networks have no such options.
OWN_WEIGHTS, OWN_SETTINGS = "checkpoint_path", "pretrained_cfg_overlay"
_SETTINGS = ("mean", "std", "input_size")


class Teacher:
    """What a recipe's ``train.teacher`` says of each training view. OURS: the paper names no distillation.

    Targets become (1 - weight) * truth + weight * the teacher's probabilities, for every network of
    the recipe alike, controls too: cross-entropy against them is the usual sum of both losses at
    temperature 1. The teacher is frozen, in evaluation mode, and sees the view that the networks see
    (MixUp included) through its own preprocessing: its mean and std, and its image size (or
    ``size``, where given), to which a view of another size is resized. It is no part of checkpoints.

    Args:
        network: a timm network with weights, see `check_teacher`.
        weight: in (0, 1].
        classes: of the data, in the order of the labels.

    Raises:
        ValueError: weights that cannot be had, or classes that are not the data's.
    """

    def __init__(self, network: Network, weight: float, classes: list[str]):
        self.weight = weight
        import timm  # a second; a recipe without a teacher needs none of it
        from timm.data import resolve_model_data_config

        if isinstance(network.pretrained, str) and not network.from_hub:
            raise ValueError(
                f"train.teacher.pretrained {network.pretrained!r}: a teacher's weights are its library's "
                f"(true), or a file of your own in options.{OWN_WEIGHTS}"
            )
        weights = None
        if network.pretrained:
            from vision.networks.pretrained import Weights

            weights = Weights()
            published = timm.get_pretrained_cfg(network.name.removeprefix("timm/"))
            count = published.num_classes if published else None
            if count not in (None, len(classes)):
                raise ValueError(
                    f"train.teacher {network.name} tells {count} classes apart, the data have "
                    f"{len(classes)}: choose a teacher of these classes"
                )
            _check_order(network.name, classes)
        reserved = (OWN_WEIGHTS, OWN_SETTINGS)
        options = {name: v for name, v in network.options.items() if name not in reserved}
        built = build_network(
            replace(network, size=None, mean=None, std=None, options=options),
            len(classes),
            weights=weights,
        )
        settings: dict[str, Any] = network.options.get(OWN_SETTINGS, {})
        timm_network = cast(Any, built)
        timm_network.pretrained_cfg = {**timm_network.pretrained_cfg, **settings}
        if OWN_WEIGHTS in network.options:
            _load_weights(built, network.options[OWN_WEIGHTS])
        self.network = built.eval().requires_grad_(False)
        settings = resolve_model_data_config(self.network)
        own_size = (network.size,) * 2 if network.size else settings["input_size"][1:]
        self.size: tuple[int, int] = tuple(own_size)
        self._mean = torch.tensor(settings["mean"]).view(-1, 1, 1)
        self._std = torch.tensor(settings["std"]).view(-1, 1, 1)

    def __deepcopy__(self, memo: dict[int, Any]) -> Teacher:
        return self  # the moving average copies the module that holds it; one teacher is enough

    @torch.no_grad()
    def __call__(self, images: UInt8[Tensor, "n ch h w"]) -> Float[Tensor, "n c"]:
        """Probabilities for images as they come from the loader."""
        device = images.device
        if next(self.network.parameters()).device != device:
            self.network.to(device)
            self._mean, self._std = self._mean.to(device), self._std.to(device)
        pixels = images.float() / 255
        if images.shape[-2:] != self.size:
            pixels = interpolate(pixels, self.size, mode="bicubic", antialias=True).clamp(0, 1)
        # Grey images are repeated by the same broadcast.
        return self.network((pixels - self._mean) / self._std).float().softmax(1)

    def mix(
        self, images: UInt8[Tensor, "n ch h w"], target: Int[Tensor, " n"] | Float[Tensor, "n c"]
    ) -> Float[Tensor, "n c"]:
        """Targets with the teacher's part in them; ``target`` holds labels, or shares after MixUp."""
        taught = self(images)
        truth = one_hot(target, taught.shape[1]) if target.ndim == 1 else target
        return torch.lerp(truth.to(taught.dtype), taught, self.weight)


def _load_weights(network: nn.Module, path: str) -> None:
    """A file of the user's own, of numbers alone: nothing in it runs."""
    from timm.models import load_checkpoint

    try:
        load_checkpoint(network, path, weights_only=True)
    except Exception as error:  # unpickling raises almost anything on a damaged file
        raise ValueError(
            f"train.teacher: the weights {path} cannot be used ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]})"
        ) from error


def _check_order(name: str, classes: list[str]) -> None:
    """Check the order of ImageNet's 1000 classes: the sorted synsets, unless the data's are numbered."""
    from timm.data import ImageNetInfo

    known = ImageNetInfo("imagenet-1k").label_names()
    if len(classes) != len(known) or classes in (known, [str(i) for i in range(len(known))]):
        return
    first = next(i for i, pair in enumerate(zip(classes, known, strict=True)) if pair[0] != pair[1])
    raise ValueError(
        f"train.teacher {name} knows ImageNet's classes in the order of their synsets; the data's class "
        f"{first} is {classes[first]!r}, not {known[first]!r}: name the class folders by their synsets"
    )


def check_teacher(network: Network | None, weight: float) -> None:
    """Refuse a teacher that has learned nothing, or a weight without effect.

    Raises:
        ValueError: see above.

    Example:
        >>> check_teacher(Network("resnet50"), 0.5)
        Traceback (most recent call last):
        ...
        ValueError: train.teacher resnet50 has random weights: set pretrained: true, or \
options.checkpoint_path to weights of your own
    """
    if network is None:
        return
    import timm

    check_options(network, "train.teacher", allowed=(OWN_WEIGHTS, OWN_SETTINGS))
    settings = network.options.get(OWN_SETTINGS, {})
    if not (isinstance(settings, dict) and set(settings) <= set(_SETTINGS)):
        raise ValueError(
            f"train.teacher.options.{OWN_SETTINGS} has keys of {', '.join(_SETTINGS)}; got {settings}"
        )
    if not 0 < weight <= 1:
        raise ValueError(f"train.teacher_weight must be above 0 and at most 1, got {weight}")
    if network.name.startswith("torchvision/") or not timm.is_model(
        network.name.removeprefix("timm/")
    ):
        raise ValueError(
            f"train.teacher {network.name!r} is not a network of timm, which alone tells the "
            "preprocessing that its weights need"
        )
    if not network.pretrained and OWN_WEIGHTS not in network.options:
        raise ValueError(
            f"train.teacher {network.name} has random weights: set pretrained: true, or "
            "options.checkpoint_path to weights of your own"
        )
