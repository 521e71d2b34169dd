"""Operands of a quantised cache + config -> the exact arguments and constants of the kernel that reads it.

As ``specialise``, for the other template.
"""

from __future__ import annotations

from typing import Any

import torch

from prefetch_compiler.templates.manifest import QUANTISED

from ..config import KernelConfig, LoadPath, PrefetchKind
from ..device import DeviceProfile, interpreting
from ..select.footprint import padded_units, quantised_row_tile
from ..spec import QUANTISED_FORMATS
from .specialise import (
    DecodeTensors,
    KernelCall,
    bounds_stride,
    descriptor,
    differing_strides,
    exp2_scale,
    mask_mode,
    overlap_option,
    paging_constants,
    partition_constants,
    score_arguments,
    stride_unit,
    strides,
    table_stride,
)


def has_assembly(quantised_format: str, device: DeviceProfile) -> bool:
    """Whether ``device`` has the instructions with which ``templates.unpack`` takes a format apart: NVIDIA's, and for
    e4m3 those of sm_89 and later."""
    return device.backend == "cuda" and (quantised_format != "e4m3" or device.arch >= 89)


def quantised_call(
    t: DecodeTensors,
    *,
    is_causal: bool,
    scale: float,
    softcap: float | None = None,
    config: KernelConfig,
    device: DeviceProfile,
) -> KernelCall:
    """The launch over a quantised cache, on ``device``, which the tensors need not be on."""
    batch, query_heads, q_len, head_dim = t.q.shape
    kv_heads, value_dim = t.k.shape[1], t.v.shape[3]
    group = query_heads // kv_heads
    block_m = quantised_row_tile(group * q_len)
    tiles = -(-group * q_len // block_m)
    mask_strides = differing_strides(t.mask)
    k, v = t.k.view(torch.int16), t.v.view(torch.int16)
    q_unit, kv_unit = stride_unit(t.q), stride_unit(k, v)
    use_tma = config.load_path is LoadPath.TMA
    emulated = interpreting()
    k_scale, v_scale = differing_strides(t.k_scale), differing_strides(t.v_scale)
    arguments: dict[str, Any] = {
        "q_ptr": t.q,
        "k_ptr": k,
        "v_ptr": v,
        "k_descriptor": descriptor(k, config.block_kv) if use_tma else None,
        "v_descriptor": descriptor(v, config.block_kv) if use_tma else None,
        "k_scale_ptr": t.k_scale,
        "v_scale_ptr": t.v_scale,
        "mask_ptr": t.mask,
        "bounds_ptr": t.bounds,
        "out_ptr": t.out,
        "partial_ptr": t.partial,
        "stats_ptr": t.stats,
        "lengths_ptr": t.lengths,
        "table_ptr": t.table,
        "sink_ptr": t.sink,
        "lse_ptr": t.lse,
        **score_arguments(t.mask, scale, softcap),
        "q_len": q_len,
        "kv_len": t.kv_len,
        "kv_heads": kv_heads,
        "row_tiles": tiles,
        "bounds_stride": bounds_stride(t.bounds),
        **strides(t.q, "q", q_unit),
        **strides(k, "k", kv_unit),
        **strides(v, "v", kv_unit),
        "k_scale_batch_stride": k_scale[0],
        "k_scale_head_stride": k_scale[1],
        "v_scale_batch_stride": v_scale[0],
        "v_scale_head_stride": v_scale[1],
        "mask_batch_stride": mask_strides[0],
        "mask_head_stride": mask_strides[1],
        "mask_row_stride": mask_strides[2],
        "mask_key_stride": mask_strides[3],
        **strides(t.out, "out", 1),
        "table_stride": table_stride(t.table),
    }
    quantised_format = QUANTISED_FORMATS[t.k.dtype]
    constants = {
        "GROUP": group,
        "HEAD_DIM": head_dim,
        "VALUE_DIM": value_dim,
        "BLOCK_M": block_m,
        "BLOCK_KV": config.block_kv,
        "BLOCK_K": padded_units(head_dim),
        "BLOCK_V": padded_units(value_dim),
        "SPLIT": config.num_splits > 1,
        "Q_STRIDE_UNIT": q_unit,
        "KV_STRIDE_UNIT": kv_unit,
        "FORMAT": quantised_format,
        "ASSEMBLY": has_assembly(quantised_format, device),
        "K_SCALE_STRIDE": _token_stride(k_scale, t.page_size),
        "V_SCALE_STRIDE": _token_stride(v_scale, t.page_size),
        "MASK": mask_mode(t.mask),
        "MASK_PER_ROW": mask_strides[1] != 0 or mask_strides[2] != 0,
        "CAUSAL": is_causal and t.lengths is None,
        "TMA": use_tma,
        "PREFETCH_DEPTH": 0 if emulated else config.prefetch_depth,
        "PREFETCH_BULK": config.prefetch_kind is PrefetchKind.BULK,
        "ROWS_ADJACENT": t.k.stride(2) == head_dim and t.v.stride(2) == value_dim,
        **partition_constants(batch, config),
        "PROLOGUE_PREFETCH": config.prologue_prefetch and not emulated,
        "LAUNCH_OVERLAP": config.launch_overlap and not emulated,
        "EXP2_SCALE": exp2_scale(t.mask, softcap),
        "UPCAST": emulated,
        **paging_constants(t, is_causal, config),
    }
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages, **overlap_option(config)}
    kernel = QUANTISED.load("quantised_decode").quantised_decode
    return KernelCall(kernel, (batch * kv_heads * tiles, config.num_splits), arguments, constants, options)


def _token_stride(scale_strides: tuple[int, ...], page_size: int) -> int:
    """Elements between the scales of two tokens, 0 where tokens share one. Tokens that are pages by themselves have
    no neighbour there, but scales of their own."""
    page_stride, _, stride, *_ = scale_strides
    return 1 if page_size == 1 and page_stride else stride
