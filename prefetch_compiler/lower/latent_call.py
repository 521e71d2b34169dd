"""Operands of a latent cache + config -> the exact arguments and constants of the kernel that reads it.

As ``specialise``, for the other template.
"""

from __future__ import annotations

from typing import Any

import torch

from prefetch_compiler.templates.manifest import LATENT

from ..config import KernelConfig, LoadPath, OperandOrder
from ..device import interpreting
from ..select.footprint import latent_row_tile, padded_dim
from .latent_producer_call import latent_producer_call
from .specialise import (
    DecodeTensors,
    KernelCall,
    bounds_stride,
    descriptor,
    differing_strides,
    exp2_scale,
    mask_mode,
    overlap_option,
    partition_constants,
    score_arguments,
    stride_unit,
    strides,
)


def latent_call(
    t: DecodeTensors,
    rope: torch.Tensor,
    *,
    is_causal: bool,
    scale: float,
    softcap: float | None = None,
    config: KernelConfig,
) -> KernelCall:
    """The launch over a latent cache: ``t.k`` are its latents and ``rope`` its rotary keys."""
    if config.load_path is LoadPath.PRODUCER:
        return latent_producer_call(t, rope, is_causal=is_causal, scale=scale, softcap=softcap, config=config)
    batch, heads, q_len, _ = t.q.shape
    latent, latent_dim, rope_dim = t.k, t.k.shape[3], rope.shape[3]
    block_m = latent_row_tile(heads * q_len, config.load_path)
    tiles = -(-heads * q_len // block_m)
    mask_strides = differing_strides(t.mask)
    q_unit, kv_unit, out_unit = stride_unit(t.q), stride_unit(latent, rope), stride_unit(t.out)
    use_tma = config.load_path is LoadPath.TMA
    emulated = interpreting()
    arguments: dict[str, Any] = {
        "q_ptr": t.q,
        "latent_ptr": latent,
        "rope_ptr": rope,
        "latent_descriptor": descriptor(latent, config.block_kv) if use_tma else None,
        "rope_descriptor": descriptor(rope, config.block_kv) if use_tma else None,
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
        "latent_batch_stride": latent.stride(0) // kv_unit,
        "latent_row_stride": latent.stride(2) // kv_unit,
        "rope_batch_stride": rope.stride(0) // kv_unit,
        "rope_row_stride": rope.stride(2) // kv_unit,
        "mask_batch_stride": mask_strides[0],
        "mask_head_stride": mask_strides[1],
        "mask_row_stride": mask_strides[2],
        "mask_key_stride": mask_strides[3],
        **strides(t.out, "out", out_unit),
    }
    constants = {
        "HEADS": heads,
        "ONE_QUERY": q_len == 1,
        "LATENT_DIM": latent_dim,
        "ROPE_DIM": rope_dim,
        "BLOCK_M": block_m,
        "BLOCK_KV": config.block_kv,
        "BLOCK_L": padded_dim(latent_dim),
        "SPLIT": config.num_splits > 1,
        "Q_STRIDE_UNIT": q_unit,
        "KV_STRIDE_UNIT": kv_unit,
        "OUT_STRIDE_UNIT": out_unit,
        "MASK": mask_mode(t.mask),
        "MASK_PER_ROW": mask_strides[1] != 0 or mask_strides[2] != 0,
        "CAUSAL": is_causal and t.lengths is None,
        "TMA": use_tma,
        "KEYS_FIRST": config.operand_order is OperandOrder.KQ,
        "PREFETCH_DEPTH": 0 if emulated else config.prefetch_depth,
        "PREFETCH_BULK": config.prefetch_kind.is_bulk,
        "EVICTION": config.prefetch_kind.eviction,
        "ROWS_ADJACENT": latent.stride(2) == latent_dim and rope.stride(2) == rope_dim,
        **partition_constants(batch, config),
        "LAUNCH_OVERLAP": config.launch_overlap and not emulated,
        "EXP2_SCALE": exp2_scale(t.mask, softcap),
        "UPCAST": emulated,
        "CAUSAL_TAIL": is_causal and t.lengths is not None,
    }
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages, **overlap_option(config)}
    kernel = LATENT.load("latent_decode").latent_decode
    return KernelCall(kernel, (batch * tiles, config.num_splits), arguments, constants, options)
