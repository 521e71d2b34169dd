"""Operands of a latent cache + config -> the launch of the kernel with a producer warp.

As ``latent_call``, for the kernel that is written in Gluon.
"""

from __future__ import annotations

from typing import Any

import torch

from prefetch_compiler.templates.manifest import LATENT

from ..config import KernelConfig
from ..select.footprint import latent_row_tile
from .specialise import (
    DecodeTensors,
    KernelCall,
    bounds_stride,
    differing_strides,
    exp2_scale,
    mask_mode,
    overlap_option,
    partition_constants,
    score_arguments,
    stride_unit,
    strides,
)

# Columns of one copy of latents, half of them: a warp group multiplies with a half.
LATENT_COLUMNS = 256
_SWIZZLE_BYTES = 128


def latent_producer_call(
    t: DecodeTensors,
    rope: torch.Tensor,
    *,
    is_causal: bool,
    scale: float,
    softcap: float | None = None,
    config: KernelConfig,
) -> KernelCall:
    """The launch over a latent cache: ``t.k`` are its latents and ``rope`` its rotary keys."""
    batch, heads, q_len, _ = t.q.shape
    tiles = -(-heads * q_len // latent_row_tile(heads * q_len, config.load_path))
    mask_strides = differing_strides(t.mask)
    q_unit = stride_unit(t.q)
    arguments: dict[str, Any] = {
        "q_ptr": t.q,
        "latent_descriptor": _descriptor(t.k, config.block_kv, LATENT_COLUMNS),
        "rope_descriptor": _descriptor(rope, config.block_kv, rope.shape[3]),
        "mask_ptr": t.mask,
        "bounds_ptr": t.bounds,
        "out_ptr": t.out,
        "partial_ptr": t.partial,
        "stats_ptr": t.stats,
        "lengths_ptr": t.lengths,
        "sink_ptr": t.sink,
        **score_arguments(t.mask, scale, softcap),
        "q_len": q_len,
        "kv_len": t.kv_len,
        "row_tiles": tiles,
        "bounds_stride": bounds_stride(t.bounds),
        **strides(t.q, "q", q_unit),
        "mask_batch_stride": mask_strides[0],
        "mask_head_stride": mask_strides[1],
        "mask_row_stride": mask_strides[2],
        "mask_key_stride": mask_strides[3],
        **strides(t.out, "out", 1),
    }
    constants = {
        "HEADS": heads,
        "SPLIT": config.num_splits > 1,
        "Q_STRIDE_UNIT": q_unit,
        "MASK": mask_mode(t.mask),
        "MASK_PER_ROW": mask_strides[1] != 0 or mask_strides[2] != 0,
        "CAUSAL": is_causal and t.lengths is None,
        "CAUSAL_TAIL": is_causal and t.lengths is not None,
        **partition_constants(batch, config),
        "LAUNCH_OVERLAP": config.launch_overlap,
        "EXP2_SCALE": exp2_scale(t.mask, softcap),
        "SCALE_LATER": exp2_scale(t.mask, softcap) == 1.0 and scale > 0,
    }
    options = {"num_warps": config.num_warps, **overlap_option(config)}
    kernel = LATENT.load("latent_producer").latent_producer
    return KernelCall(kernel, (batch * tiles, config.num_splits), arguments, constants, options)


def _descriptor(cache: torch.Tensor, keys: int, columns: int) -> Any:
    """Of (1, keys, columns) tiles of a (batch, 1, kv_len, dim) cache, in the swizzle that warpgroup products read."""
    from triton.experimental.gluon.language import NVMMASharedLayout
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    batch, _, kv_len, dim = cache.shape
    batch_stride, _, row_stride, column_stride = cache.stride()
    layout = NVMMASharedLayout(_SWIZZLE_BYTES, cache.dtype.itemsize * 8, rank=3)
    return TensorDescriptor(
        cache, [batch, kv_len, dim], [batch_stride, row_stride, column_stride], [1, keys, columns], layout
    )
