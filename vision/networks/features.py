"""What a network's classifier sees: the pooled features of each image, read off while it runs."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class ClassifierInput:
    """Keeps what reaches a network's last layer, without its gradient.

    Args:
        network: a classifier, or the rest of one behind a shared trunk.
        num_outputs: of its last layer.

    Raises:
        ValueError: no linear layer (or 1x1 convolution) of so many outputs.

    Example:
        >>> import torch
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> seen = ClassifierInput(network, 2)
        >>> _ = network(torch.zeros(5, 1, 2, 2))
        >>> seen.num_features, seen.features.shape
        (3, torch.Size([5, 3]))
    """

    def __init__(self, network: nn.Module, num_outputs: int):
        layers = output_layers(network, num_outputs)
        if not layers:
            raise ValueError(
                f"it has no last layer of {num_outputs} outputs (linear, or a 1 x 1 convolution) whose input "
                "could be clustered: take another delegator, or portions.follow: selection"
            )
        _, last = layers[-1]
        self.num_features = int(last.weight.shape[1])  # type: ignore[index]
        self.features: Tensor | None = None
        last.register_forward_pre_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        features = inputs[0].detach()
        self.features = features.flatten(2).mean(2) if features.ndim > 2 else features


def output_layers(network: nn.Module, num_outputs: int) -> list[tuple[str, nn.Module]]:
    """Dotted name and module of the layers (linear, or 1 x 1 convolutions) of so many outputs, in order.

    The last is the classifier.

    Example:
        >>> output_layers(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3)), 3)[-1]
        ('1', Linear(in_features=3, out_features=3, bias=True))
    """
    return [(name, m) for name, m in network.named_modules() if _outputs(m) == num_outputs]


def classifier_names(network: nn.Module, num_outputs: int) -> list[str]:
    """Dotted names of a network's classifier: what timm says, else its last layer of so many outputs.

    Example:
        >>> classifier_names(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), 2)
        ['2']
    """
    config: dict[str, Any] = getattr(network, "pretrained_cfg", None) or {}
    told = config.get("classifier")
    if told:
        return [told] if isinstance(told, str) else list(told)
    return [name for name, _ in output_layers(network, num_outputs)[-1:]]


def _outputs(module: nn.Module) -> int | None:
    if isinstance(module, nn.Linear):
        return module.out_features
    if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1:
        return module.out_channels
    return None
