"""Classifiers of timm and torchvision, by the names that these list."""

from __future__ import annotations

from typing import TYPE_CHECKING

import timm
import torchvision
from torch import nn

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


def library_network(network: Network, num_outputs: int, channels: int) -> nn.Module:
    """A network that timm or torchvision lists; timm goes first where both do.

    Raises:
        ValueError: unknown (names the nearest), or weights that cannot be had.
    """
    prefix, _, name = network.name.rpartition("/")
    library = ""
    # Registered names alone: no "hf-hub:", no "local-dir:", no path.
    if prefix in ("", "timm") and name.split(".")[0] in timm.list_models():
        library = "timm"
    elif prefix in ("", "torchvision") and name in torchvision_names():
        library = "torchvision"
    else:
        known = [*OWN, *timm.list_models(), *torchvision_names()]
        raise ValueError(
            f"unknown network {network.name[:100]!r}{nearest(name[:100], known)}; any classifier of "
            f"timm or torchvision goes by its name there, and our own are {', '.join(OWN)}"
        )
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
            pretrained=network.pretrained,
            num_classes=num_outputs,
            in_chans=channels,
            **network.options,
        )
    except OSError as error:
        call, cache = _FETCH[library]
        advice = (
            f'; fetch them once where there is a network, python -c "import {call.format(name)}", and '
            f"keep its cache ({cache}), or set pretrained to false"
        )
        raise ValueError(
            f"the weights of {network.name} cannot be had: {' '.join(str(error).split())[:300]}"
            + advice * network.pretrained
        ) from error
    except ValueError as error:
        raise ValueError(
            f"network {network.name!r} with options {network.options}: {' '.join(str(error).split())[:300]}"
        ) from error


def torchvision_names() -> list[str]:
    """Classifiers of torchvision."""
    return torchvision.models.list_models(torchvision.models)


def _torchvision(network: Network, name: str, num_outputs: int) -> nn.Module:
    options = dict(network.options)
    if name in ("googlenet", "inception_v3"):
        options.setdefault("aux_logits", False)  # in training they would return several outputs
        options.setdefault("init_weights", True)
    model = torchvision.models.get_model(name, weights=None, num_classes=num_outputs, **options)
    if network.pretrained:
        published = torchvision.models.get_model(name, weights="DEFAULT").state_dict()
        expected = model.state_dict()
        fitting = {
            key: value
            for key, value in published.items()
            if key in expected and value.shape == expected[key].shape
        }
        model.load_state_dict(fitting, strict=False)
    return model
