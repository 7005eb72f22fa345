"""Multiply-adds (MACs) of a module, counted on a real forward, and of the mixture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from coe_core.errors import UncountedOperatorError

# Operators without a contraction: no multiply-adds in the sense of the papers (element-wise work,
# normalisation, pooling and data movement are not counted there either).
_FREE = frozenset(
    """
    _adaptive_avg_pool2d _adaptive_avg_pool3d _fused_moving_avg_obs_fq_helper _local_scalar_dense
    _log_softmax _native_batch_norm_legit _native_batch_norm_legit_no_training
    native_batch_norm_backward _softmax _to_copy _unsafe_view adaptive_avg_pool2d
    adaptive_max_pool2d alias all amax amin any arange argmax argmin argsort as_strided avg_pool1d
    avg_pool2d avg_pool3d batch_norm bernoulli bincount cat channel_shuffle chunk clone col2im
    constant_pad_nd contiguous copy_ cudnn_batch_norm cumsum detach detach_ diagonal dropout
    embedding empty empty_like empty_strided expand eye fill_ flatten flip full full_like gather
    grid_sampler_2d group_norm im2col index index_copy index_put index_put_ index_select
    is_same_size item lift_fresh linspace max max_pool2d max_pool2d_with_indices mean min
    miopen_batch_norm multinomial narrow native_batch_norm native_dropout native_group_norm
    native_layer_norm new_empty new_empty_strided new_full new_ones new_zeros nonzero norm
    ones ones_like permute pixel_shuffle pixel_unshuffle prod rand rand_like randn randn_like
    reflection_pad2d repeat repeat_interleave replication_pad2d resize_ roll scalar_tensor scatter
    scatter_add select select_scatter set_ slice slice_scatter sort split split_with_sizes squeeze
    stack std sum t tile topk transpose tril triu unbind unfold unsqueeze upsample_bicubic2d
    upsample_bilinear2d upsample_nearest2d var var_mean vdot view view_as_complex view_as_real
    zero_ zeros zeros_like _reshape_alias linalg_vector_norm _fused_rms_norm _prelu_kernel
    """.split()
)


class _MacCounter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.flops = 0
        self.unknown: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        packet = func.overloadpacket
        if packet in flop_registry:
            self.flops += flop_registry[packet](*args, **(kwargs or {}), out_val=out)
        elif torch.Tag.pointwise not in func.tags and not self._is_free(func):
            self.unknown.add(str(packet))
        return out

    @staticmethod
    def _is_free(func) -> bool:
        name = func.overloadpacket.__name__
        in_place_of = name.removesuffix("_")
        return func.namespace in ("aten", "prim", "prims") and (
            name in _FREE or in_place_of in _FREE or func.is_view
        )


def count_macs(module: nn.Module, *inputs: Any, **named_inputs: Any) -> int:
    """Multiply-adds of one call, counted on a real forward of the given inputs.

    One MAC is one multiplication with its addition (what the papers call FLOPs); convolutions,
    matrix products and attention count, element-wise work does not. For a number per sample give
    a batch of one. The module is put into evaluation mode for the call; its state does not change.

    Raises:
        UncountedOperatorError: an operator runs whose multiply-adds are not known (rather than
            counting it as zero).

    Example:
        >>> count_macs(nn.Linear(20, 30), torch.zeros(1, 20))
        600
    """
    counter = _MacCounter()
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad(), counter:
            module(*inputs, **named_inputs)
    finally:
        for part, training in modes:
            part.training = training
    if counter.unknown:
        raise UncountedOperatorError(
            f"the multiply-adds of {sorted(counter.unknown)} are not known; register a formula with "
            "torch.utils.flop_counter.register_flop_formula (2 FLOPs = 1 MAC)"
        )
    return counter.flops // 2


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
        ValueError: exit_rate outside [0, 1], or a load that does not sum to 1 or does not fit.

    Example:
        >>> mixture_macs(24e6, [230e6] * 4, exit_rate=0.26) / 1e6  # a 194M model of method section 8
        194.2
    """
    if not 0 <= exit_rate <= 1:
        raise ValueError(f"exit_rate must be in [0, 1], got {exit_rate}")
    macs = torch.as_tensor(expert_macs, dtype=torch.float64)
    parts = torch.full_like(macs, 1 / len(macs)) if load is None else torch.as_tensor(load).double()
    if len(parts) != len(macs) or abs(float(parts.sum()) - 1) > 1e-6:
        raise ValueError(
            f"load must hold one part per expert that sum to 1: got {len(parts)} parts with sum "
            f"{float(parts.sum()):g} for {len(macs)} experts"
        )
    return delegator_macs + (1 - exit_rate) * float((macs * parts).sum())
