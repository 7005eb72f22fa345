"""Multiply-adds (MACs) of a module, counted on a real forward, and of the mixture."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from coe_core._checks import real
from coe_core.errors import UncountedOperatorError

# Operators without a contraction: no multiply-adds in the sense of the papers (element-wise work,
# normalisation, pooling and data movement are not counted there either).
_FREE = frozenset(
    """
    _adaptive_avg_pool2d adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool2d alias all
    amax amin aminmax any arange argmax argmin argsort as_strided avg_pool1d avg_pool2d
    avg_pool3d batch_norm bernoulli bincount cat channel_shuffle chunk clone col2im
    constant_pad_nd contiguous copy cudnn_batch_norm cummax cumsum detach diagonal dropout
    embedding _embedding_bag_forward_only empty empty_like empty_strided expand exponential eye
    fill flatten flip fractional_max_pool2d full full_like _fused_rms_norm gather glu
    grid_sampler_2d group_norm hardswish im2col index index_copy index_put index_select
    is_same_size item lift_fresh linalg_vector_norm linspace _local_scalar_dense
    log_sigmoid_forward _log_softmax logsumexp max max_pool2d max_pool2d_with_indices
    max_pool3d_with_indices mean median min miopen_batch_norm multinomial narrow
    native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training
    native_dropout native_group_norm native_layer_norm new_empty new_empty_strided new_full
    new_ones new_zeros nonzero norm normal ones ones_like permute pixel_shuffle pixel_unshuffle
    _prelu_kernel prod rand rand_like randn randn_like reflection_pad1d reflection_pad2d repeat
    repeat_interleave replication_pad1d replication_pad2d _reshape_alias resize roll
    rrelu_with_noise _safe_softmax scalar_tensor scatter scatter_add select select_scatter set
    slice slice_scatter _softmax sort split split_with_sizes squeeze stack std sum t tile
    _to_copy topk transpose tril triu unbind unfold uniform _unique2 _unsafe_index unsafe_split
    _unsafe_view unsqueeze upsample_bicubic2d _upsample_bicubic2d_aa upsample_bilinear2d
    _upsample_bilinear2d_aa upsample_linear1d upsample_nearest1d upsample_nearest2d
    upsample_nearest3d _upsample_nearest_exact2d upsample_trilinear3d var var_mean view
    view_as_complex view_as_real zero zeros zeros_like
    """.split()  # noqa: SIM905
)


def _recurrent(inputs: Tensor, *weights: Tensor) -> int:
    """Every weight matrix multiplies every row (a sample at a time step) once."""
    rows = inputs.numel() // inputs.shape[-1]
    return rows * sum(weight.numel() for weight in weights if weight.ndim == 2)


def _attention(queries: Tensor, keys: Tensor, values: Tensor) -> int:
    """Queries times keys, and the weights times values."""
    return queries.shape[:-1].numel() * keys.shape[-2] * (keys.shape[-1] + values.shape[-1])


# Multiply-adds of operators that torch's own registry lacks, from their arguments.
_OWN: dict[Any, Callable[..., int]] = {
    torch.ops.aten.dot: lambda a, b: a.numel(),
    torch.ops.aten.vdot: lambda a, b: a.numel(),
    torch.ops.aten.mv: lambda a, b: a.numel(),
    torch.ops.aten.addmv: lambda c, a, b, **_: a.numel(),
    torch.ops.aten.mkldnn_rnn_layer: lambda x, w_input, w_hidden, *_: _recurrent(
        x, w_input, w_hidden
    ),
    # Which torch 2.10 does not know, and later versions do.
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: (
        _attention(q, k, v)
    ),
    torch.ops.aten._cudnn_rnn: lambda x, weights, *_: _recurrent(x, *weights),
}


class _MacCounter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self.macs = 0
        self.unknown: set[str] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Else torch imports its compiler, longer than all of torch, for the first operator counted."""
        return False

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        packet = func.overloadpacket
        if packet in flop_registry:
            out = func(*args, **kwargs)
            self.macs += flop_registry[packet](*args, **kwargs, out_val=out) // 2
            return out
        if packet in _OWN:
            self.macs += _OWN[packet](*args, **kwargs)
        elif torch.Tag.pointwise not in func.tags and not self._is_free(func):
            with self:  # in inference mode compound operators arrive in one piece
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
            self.unknown.add(str(packet))
        return func(*args, **kwargs)

    @staticmethod
    def _is_free(func: Any) -> bool:
        name = func.overloadpacket.__name__.removesuffix("_")  # in place or not
        return func.namespace in ("aten", "prim", "prims") and bool(name in _FREE or func.is_view)


class _Unnormalised(TorchFunctionMode):
    """On the meta device batch normalisation gives its input back: torch takes milliseconds to do so."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is nn.functional.batch_norm and args[0].is_meta:
            images, mean = args[:2]
            if mean is not None and images.ndim > 1 and images.shape[1] == len(mean):
                return images
        return func(*args, **(kwargs or {}))


@contextmanager
def _without_fused_attention() -> Iterator[None]:
    """Take apart torch's own transformer layers, which run as one operator in evaluation mode."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def count_macs(module: nn.Module, *inputs: Any, **named_inputs: Any) -> int:
    """Multiply-adds of one call, counted on a real forward of the given inputs.

    One MAC is one multiplication with its addition (what the papers call FLOPs); convolutions,
    matrix products, attention and recurrent layers count, element-wise work does not. For a number
    per sample give a batch of one. The module is put into evaluation mode for the call; its state
    does not change. Module and inputs may both be on the meta device: then nothing is computed.

    Args:
        module: the network.
        inputs: of its forward; on the module's device.
        named_inputs: of its forward.

    Returns:
        The multiply-adds of the whole batch given.

    Raises:
        UncountedOperatorError: an operator runs whose multiply-adds are not known (rather than
            counting it as zero).

    Example:
        >>> count_macs(nn.Linear(20, 30), torch.zeros(1, 20))
        600
    """
    counter = _MacCounter()
    modes = [(part, part.training) for part in module.modules()]
    is_meta = any(parameter.is_meta for parameter in module.parameters())
    module.eval()
    try:
        unnormalised = _Unnormalised() if is_meta else nullcontext()
        with torch.no_grad(), _without_fused_attention(), unnormalised, counter:
            module(*inputs, **named_inputs)
    finally:
        for part, training in modes:
            part.training = training
    if counter.unknown:
        raise UncountedOperatorError(
            f"the multiply-adds of {sorted(counter.unknown)} are not known; register a formula with "
            "torch.utils.flop_counter.register_flop_formula (2 FLOPs = 1 MAC)"
        )
    return counter.macs


def mixture_macs(
    delegator_macs: float,
    expert_macs: Sequence[float] | Tensor,
    exit_rate: float,
    load: Sequence[float] | Tensor | None = None,
) -> float:
    """Mean MACs per sample of a collaboration: the delegator for every sample, an expert for the rest.

    Args:
        delegator_macs: of one sample.
        expert_macs: of one sample, for each expert.
        exit_rate: part of the samples that end early, in [0, 1].
        load: part of the samples that do not exit which each expert gets; None means equal.

    Raises:
        ValueError: exit_rate outside [0, 1], no experts, a load that does not fit: of another length,
            below 0, or with another sum than 1; or multiply-adds that are not finite.

    Example:
        >>> mixture_macs(24e6, [230e6] * 4, exit_rate=0.26) / 1e6  # a 194M model of method section 8
        194.2
    """
    if not 0 <= exit_rate <= 1:
        raise ValueError(f"exit_rate must be in [0, 1], got {exit_rate}")
    delegator_macs = real("delegator_macs", delegator_macs)
    try:
        macs = torch.as_tensor(expert_macs, dtype=torch.float64)
    except OverflowError as error:
        raise ValueError("expert_macs must be numbers that a float can hold") from error
    if macs.ndim != 1:
        raise ValueError(
            f"expert_macs must be one number per expert, got shape {tuple(macs.shape)}"
        )
    if len(macs) == 0:
        raise ValueError("expert_macs is empty; give one number per expert")
    parts = torch.full_like(macs, 1 / len(macs)) if load is None else torch.as_tensor(load).to(macs)
    total = float(parts.sum())
    if len(parts) != len(macs) or not abs(total - 1) <= 1e-6 or bool((parts < 0).any()):
        raise ValueError(
            f"load must hold one part per expert, none below 0, that sum to 1: got {len(parts)} "
            f"parts with sum {total:g} for {len(macs)} experts"
        )
    mean = delegator_macs + (1 - exit_rate) * float((macs * parts).sum())
    if not math.isfinite(mean):
        raise ValueError(f"the multiply-adds must be finite, and so must be their sum; got {mean}")
    return mean
