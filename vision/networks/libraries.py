"""Classifiers of timm and torchvision, by the names that these list."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import timm
import torchvision
from torch import Tensor, nn

from vision.errors import nearest
from vision.networks.own import OWN

if TYPE_CHECKING:
    from vision.networks.network import Network

_FETCH = {
    "timm": ("timm; timm.create_model('{}', pretrained=True)", "HF_HOME"),
    "torchvision": (
        "torchvision; torchvision.models.get_model('{}', weights='DEFAULT')",
        "TORCH_HOME",
    ),
}


class Listed(NamedTuple):
    """Who has a network, and its name there."""

    library: str  # timm or torchvision
    name: str


def listed(network: Network) -> Listed | None:
    """Where a network is listed, timm first; None: nowhere."""
    prefix, _, name = network.name.rpartition("/")
    # Registered names alone: no "hf-hub:", no "local-dir:", no path.
    if prefix in ("", "timm") and name.split(".")[0] in timm.list_models():
        return Listed("timm", name)
    if prefix in ("", "torchvision") and name in torchvision_names():
        return Listed("torchvision", name)
    return None


def library_network(
    network: Network, num_outputs: int, channels: int, hub: bool = False
) -> nn.Module:
    """A network that timm or torchvision lists; timm goes first where both do.

    Args:
        network: name and options.
        num_outputs: of the last layer.
        channels: of the images.
        hub: with the weights that timm publishes, from its cache or fetched; torchvision's are loaded
            by `hub_state`.

    Raises:
        ValueError: unknown (names the nearest), or weights that cannot be had.
    """
    found = listed(network)
    if found is None:
        name = network.name.rpartition("/")[2]
        known = [*OWN, *timm.list_models(), *torchvision_names()]
        raise ValueError(
            f"unknown network {network.name[:100]!r}{nearest(name[:100], known)}; any classifier of "
            f"timm or torchvision goes by its name there, and our own are {', '.join(OWN)}"
        )
    library, name = found
    if library == "torchvision" and channels != 3:
        raise ValueError(
            f"torchvision's {name} takes images of 3 channels, the data have {channels}; "
            "set data.channels=3 (grey images are repeated) or use a timm network"
        )
    try:
        if library == "torchvision":
            return _torchvision(network, name, num_outputs)
        return timm.create_model(
            name,
            pretrained=hub,
            num_classes=num_outputs,
            in_chans=channels,
            **network.options,
        )
    except OSError as error:
        raise _not_had(network, found, error, hub) from error
    except ValueError as error:
        raise ValueError(
            f"network {network.name!r} with options {network.options}: {' '.join(str(error).split())[:300]}"
        ) from error


def _not_had(network: Network, found: Listed, error: OSError, hub: bool) -> ValueError:
    call, cache = _FETCH[found.library]
    advice = (
        f'; fetch them once where there is a network, python -c "import {call.format(found.name)}", and '
        f"keep its cache ({cache}), or set pretrained to false or to a file of weights"
    )
    return ValueError(
        f"the weights of {network.name} cannot be had: {' '.join(str(error).split())[:300]}"
        + advice * hub
    )


def hub_state(network: Network) -> dict[str, Tensor]:
    """The weights that torchvision publishes for a network of its own, from its cache or fetched.

    Raises:
        ValueError: they cannot be had.
    """
    found = Listed("torchvision", network.name.rpartition("/")[2])
    published = torchvision.models.get_model_weights(found.name)
    if not len(published):
        raise ValueError(f"torchvision publishes no weights of {found.name}: set pretrained: false")
    try:
        return published["DEFAULT"].get_state_dict(progress=False, check_hash=True)
    except OSError as error:
        raise _not_had(network, found, error, hub=True) from error


def published_statistics(network: Network) -> tuple[list[float], list[float]] | None:
    """Mean and std of each of three channels that the library's weights need; None: it does not say.

    Example:
        >>> from vision.networks.network import Network
        >>> published_statistics(Network("tf_efficientnet_lite0"))
        ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5])
    """
    found = listed(network)
    if found is None:
        return None
    if found.library == "timm":
        config = timm.get_pretrained_cfg(found.name)
        return None if config is None else (list(config.mean), list(config.std))
    published = torchvision.models.get_model_weights(found.name)
    if not len(published):
        return None
    transforms = published["DEFAULT"].transforms()
    return list(transforms.mean), list(transforms.std)


def torchvision_names() -> list[str]:
    """Classifiers of torchvision."""
    return torchvision.models.list_models(torchvision.models)


def _torchvision(network: Network, name: str, num_outputs: int) -> nn.Module:
    options = dict(network.options)
    if name in ("googlenet", "inception_v3"):
        options.setdefault("aux_logits", False)  # in training they would return several outputs
        options.setdefault("init_weights", True)
    return torchvision.models.get_model(name, weights=None, num_classes=num_outputs, **options)
