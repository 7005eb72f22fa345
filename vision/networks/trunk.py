"""A network cut in two at a named stage: a trunk that several networks share, and the rest of each."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn

from vision.errors import nearest


class Parts(NamedTuple):
    """Trunk and rest: ``rest(trunk(images))`` is what the whole network computes."""

    trunk: nn.Module
    rest: nn.Module


class Part(nn.Module):
    """A part of a network, with the network's own modules and names.

    What a network does may depend on whether it is trained (dropout by a function, say), so the part
    keeps both forms.

    Args:
        network: whose modules the graphs call.
        graphs: of training (True) and of evaluation (False).
    """

    def __init__(self, network: nn.Module, graphs: dict[bool, fx.Graph]):
        super().__init__()
        self.body = fx.GraphModule(network, graphs[network.training])
        self._graphs = graphs
        self.train(network.training)

    def train(self, mode: bool = True) -> Part:
        super().train(mode)
        if self.body.graph is not self._graphs[mode]:
            self.body.graph = self._graphs[mode]
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Features of images, or logits of features."""
        return self.body(x)


class _Tracer(fx.Tracer):
    """Looks into the modules that hold the place, and into no other."""

    def __init__(self, place: str):
        super().__init__()
        names = place.split(".")
        self.holders = {".".join(names[:depth]) for depth in range(1, len(names))}

    def is_leaf_module(self, module: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name not in self.holders


def cut_network(network: nn.Module, place: str) -> Parts:
    """Cut a network behind a module: the trunk ends with that module's output, the rest begins with it. OURS.

    The parts hold the network's own modules: nothing is copied, and parameters keep their names within
    ``body``. Only the modules that hold the place are looked into (by `torch.fx`), so anything may
    happen within the others.

    Args:
        network: any classifier of images, of timm, torchvision or our own.
        place: dotted name of one of its modules, such as "layer1" or "blocks.2".

    Raises:
        ValueError: no module of this name (names the nearest), a place where more than its output
            goes on (names the places where the network can be cut), or a network whose forward
            cannot be followed.

    Example:
        >>> from vision.networks.own.small_resnet import SmallResNet
        >>> network = SmallResNet(10, width=4).eval()
        >>> trunk, rest = cut_network(network, "blocks.0")
        >>> images = torch.rand(2, 3, 32, 32)
        >>> torch.equal(rest(trunk(images)), network(images))
        True
    """
    names = [name for name, _ in network.named_modules() if name]
    if place not in names:
        raise ValueError(
            f"the network has no module {place!r}{nearest(place, names)}; it can be cut behind "
            f"{_places_shown(network)}"
        )
    mode, graphs = network.training, {}
    try:
        for training in (True, False):
            network.train(training)
            graphs[training] = _cut(_trace(network, place), place)
    finally:
        network.train(mode)
    if None in graphs.values():
        raise ValueError(
            f"the network cannot be cut behind {place!r}, as more than its output goes on from there; "
            f"it can be cut behind {_places_shown(network)}"
        )
    both = {mode: graph for mode, graph in graphs.items() if graph is not None}
    first, second = ({m: both[m][part] for m in both} for part in (0, 1))
    return Parts(Part(network, first), Part(network, second))


def places_to_cut(network: nn.Module) -> list[str]:
    """Names of the modules, one or two levels deep, behind which `cut_network` can cut.

    Example:
        >>> from vision.networks.own.small_resnet import SmallResNet
        >>> places_to_cut(SmallResNet(10, width=4))
        ['stem', 'blocks', 'stem.0', 'stem.1', 'stem.2', 'blocks.0', 'blocks.1', 'blocks.2', ...]
    """
    places = [name for name, _ in network.named_modules() if name and name.count(".") < 2]
    places.sort(key=lambda name: name.count("."))
    return [place for place in places if _can_be_cut(network, place)]


def _can_be_cut(network: nn.Module, place: str) -> bool:
    try:
        return _cut(_trace(network, place), place) is not None
    except ValueError:
        return False


def _places_shown(network: nn.Module) -> str:
    places = [place for place in places_to_cut(network) if "." not in place or "head" not in place]
    return ", ".join(places[:24]) + (", ..." if len(places) > 24 else "") if places else "no module"


def _trace(network: nn.Module, place: str) -> fx.Graph:
    # What forward takes beside the images stays at its default.
    others = list(inspect.signature(network.forward).parameters.values())[1:]
    try:
        graph = _Tracer(place).trace(network, {other.name: other.default for other in others})
    except Exception as error:  # whatever a forward may do with a stand-in for its input
        raise ValueError(
            f"the network cannot be cut: its forward cannot be followed "
            f"({type(error).__name__}: {' '.join(str(error).split())[:150]})"
        ) from error
    _, *unused = (node for node in graph.nodes if node.op == "placeholder")
    for node in unused:
        _erase(graph, node)
    return graph


def _erase(graph: fx.Graph, node: fx.Node) -> None:
    """An argument at its default, with the checks that it is."""
    for user in list(node.users):
        _erase(graph, user)
    graph.erase_node(node)


def _cut(graph: fx.Graph, place: str) -> tuple[fx.Graph, fx.Graph] | None:
    """Graph up to the place's output, and graph from there; None where more than that output goes on."""
    nodes = list(graph.nodes)
    calls = [node for node in nodes if node.op == "call_module" and node.target == place]
    if len(calls) != 1 or nodes[-1].args[0] is calls[0]:
        return None
    border = nodes.index(calls[0])
    constants = [node for node in nodes[:border] if node.op == "get_attr"]
    before = set(nodes[: border + 1]) - set(constants)
    needed = {source for node in nodes[border + 1 :] for source in node.all_input_nodes}
    if needed & before != {calls[0]}:
        return None
    trunk, rest = fx.Graph(), fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in nodes[: border + 1]:
        copies[node] = trunk.node_copy(node, copies.__getitem__)
    trunk.output(copies[calls[0]])
    copies = {calls[0]: rest.placeholder("features")}
    for node in [constant for constant in constants if constant in needed] + nodes[border + 1 :]:
        copies[node] = rest.node_copy(node, copies.__getitem__)
    for part in (trunk, rest):
        for node in reversed(part.nodes):
            if not node.users and node.op in ("call_function", "call_method", "get_attr"):
                part.erase_node(node)
    return trunk, rest


class Adapted(nn.Module):
    """The rest of a delegator behind a trunk that has other channels than its own: a 1x1 convolution between.

    Args:
        rest: of the delegator.
        channels_in: of the trunk's output.
        channels: that the rest expects.
    """

    def __init__(self, rest: nn.Module, channels_in: int, channels: int):
        super().__init__()
        self.adapter = nn.Sequential(
            nn.Conv2d(channels_in, channels, 1, bias=False), nn.BatchNorm2d(channels)
        )
        self.rest = rest

    def forward(self, features: Float[Tensor, "n d h w"]) -> Float[Tensor, "n c"]:
        """The logits of the classes."""
        return self.rest(self.adapter(features))


@torch.no_grad()
def feature_shape(trunk: nn.Module, images: tuple[int, int, int]) -> tuple[int, ...]:
    """Shape of a trunk's output for one image of the shape given, without the batch.

    Example:
        >>> from vision.networks.own.small_resnet import SmallResNet
        >>> feature_shape(cut_network(SmallResNet(10, width=4), "blocks.1").trunk, (3, 32, 32))
        (8, 16, 16)
    """
    mode = trunk.training
    try:
        device = next((p.device for p in trunk.parameters()), None)
        return tuple(trunk.eval()(torch.zeros(1, *images, device=device)).shape[1:])
    finally:
        trunk.train(mode)


def fitting_rests(parts: Sequence[Parts], image: tuple[int, int, int]) -> list[nn.Module]:
    """The rests of several networks behind the first one's trunk.

    Args:
        parts: of the networks.
        image: (channels, height, width).

    Raises:
        ValueError: a network whose own trunk gives features of another shape.
    """
    wanted = feature_shape(parts[0].trunk, image)
    for j, part in enumerate(parts):
        features = feature_shape(part.trunk, image)
        if features != wanted:
            raise ValueError(
                f"experts[{j}] does not fit the trunk, which is expert 0's: its rest takes features of "
                f"{_shown(features)}, the trunk gives {_shown(wanted)}"
            )
    return [part.rest for part in parts]


def branch_behind(trunk: nn.Module, parts: Parts, image: tuple[int, int, int]) -> nn.Module:
    """The rest of a delegator's own network behind a trunk that is not its own.

    Other numbers of channels are met by a 1x1 convolution, which is counted like every layer.

    Args:
        trunk: of the experts.
        parts: of the delegator's network; its trunk is not used but for its shape.
        image: (channels, height, width).

    Raises:
        ValueError: features of another side.
    """
    given, wanted = feature_shape(trunk, image), feature_shape(parts.trunk, image)
    if given == wanted:
        return parts.rest
    if len(given) != 3 or len(wanted) != 3 or given[1:] != wanted[1:]:
        raise ValueError(
            f"hand_over.branch: the delegator's rest takes features of {_shown(wanted)}, the trunk gives "
            f"{_shown(given)}; cut the delegator where its side is the same, or use another delegator"
        )
    return Adapted(parts.rest, given[0], wanted[0])


def _shown(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
