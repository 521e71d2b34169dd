"""Operands + config -> the launch of the kernel over K and V with a producer warp, which is written in Gluon."""

from __future__ import annotations

from typing import Any

import torch

from prefetch_compiler.templates.manifest import SPLIT_KV

from ..config import KernelConfig
from ..select.footprint import ring_registers, ring_row_tiles
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

_SWIZZLE_BYTES = 128


def ring_call(
    t: DecodeTensors, *, is_causal: bool, scale: float, softcap: float | None = None, config: KernelConfig
) -> KernelCall:
    """The launch over K and V, in tiles of ``config.block_kv`` keys, ``config.num_stages`` of them at a time."""
    batch, query_heads, q_len, head_dim = t.q.shape
    kv_heads = t.k.shape[1]
    group = query_heads // kv_heads
    tiles = ring_row_tiles(group * q_len)
    mask_strides = differing_strides(t.mask)
    q_unit = stride_unit(t.q)
    arguments: dict[str, Any] = {
        "q_ptr": t.q,
        "k_descriptor": _descriptor(t.k, config.block_kv),
        "v_descriptor": _descriptor(t.v, config.block_kv),
        "mask_ptr": t.mask,
        "bounds_ptr": t.bounds,
        "out_ptr": t.out,
        "partial_ptr": t.partial,
        "stats_ptr": t.stats,
        "lengths_ptr": t.lengths,
        "sink_ptr": t.sink,
        "lse_ptr": t.lse,
        **score_arguments(t.mask, scale, softcap),
        "batch": batch,
        "q_len": q_len,
        "kv_len": t.kv_len,
        "kv_heads": kv_heads,
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
        "GROUP": group,
        "DIM": head_dim,
        "KEYS": config.block_kv,
        "STAGES": config.num_stages,
        "Q_STRIDE_UNIT": q_unit,
        "MASK": mask_mode(t.mask),
        "MASK_PER_ROW": mask_strides[1] != 0 or mask_strides[2] != 0,
        "CAUSAL": is_causal and t.lengths is None,
        "CAUSAL_TAIL": is_causal and t.lengths is not None,
        "BLOCK_BATCH": partition_constants(batch, config)["BLOCK_BATCH"],
        "LAUNCH_OVERLAP": config.launch_overlap,
        "EXP2_SCALE": exp2_scale(t.mask, softcap),
        "SCALE_LATER": exp2_scale(t.mask, softcap) == 1.0 and scale > 0,
    }
    registers = ring_registers(head_dim, t.q.element_size(), config)
    options = {"num_warps": config.num_warps, "maxnreg": registers, **overlap_option(config)}
    kernel = SPLIT_KV.load("ring_decode").ring_decode
    return KernelCall(kernel, (kv_heads * tiles, config.num_splits), arguments, constants, options)


def _descriptor(cache: torch.Tensor, keys: int) -> Any:
    """Of (1, 1, keys, dim) tiles of a (batch, kv_heads, kv_len, dim) cache, in the swizzle that warpgroup products
    read."""
    from triton.experimental.gluon.language import NVMMASharedLayout
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    layout = NVMMASharedLayout(_SWIZZLE_BYTES, cache.dtype.itemsize * 8, rank=4)
    return TensorDescriptor(cache, list(cache.shape), list(cache.stride()), [1, 1, keys, cache.shape[3]], layout)
