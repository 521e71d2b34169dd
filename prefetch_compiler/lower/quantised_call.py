"""Operands of a quantised cache + config -> the exact arguments and constants of the kernel that reads it.

As ``specialise``, for the other template.
"""

from __future__ import annotations

from typing import Any

import torch

from prefetch_compiler.templates.manifest import QUANTISED

from ..config import KernelConfig, LoadPath
from ..device import DeviceProfile, interpreting
from ..select.footprint import padded_units, quantised_row_tile
from ..spec import CENTRES, QUANTISED_FORMATS, RANGES
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
    kv_heads, value_dim = t.k.shape[1], t.out.shape[3]
    group = query_heads // kv_heads
    block_m = quantised_row_tile(group * q_len)
    tiles = -(-group * q_len // block_m)
    mask_strides = differing_strides(t.mask)
    k, v = t.k.view(torch.int16), t.v.view(torch.int16)
    q_unit, kv_unit = stride_unit(t.q), stride_unit(k, v)
    use_tma = config.load_path is LoadPath.TMA
    emulated = interpreting()
    k_scale, v_scale = differing_strides(t.k_scale), differing_strides(t.v_scale)
    quantised_format = t.storage.packing or QUANTISED_FORMATS[t.k.dtype]
    packed = bool(t.storage.packing)
    arguments: dict[str, Any] = {
        "q_ptr": t.q,
        "k_ptr": k,
        "v_ptr": v,
        "k_descriptor": descriptor(k, config.block_kv) if use_tma else None,
        "v_descriptor": descriptor(v, config.block_kv) if use_tma else None,
        "k_scale_ptr": t.k_scale,
        "v_scale_ptr": t.v_scale,
        "k_zero_ptr": t.k_zero,
        "v_zero_ptr": t.v_zero,
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
        "row_tiles": tiles,
        "bounds_stride": bounds_stride(t.bounds),
        **strides(t.q, "q", q_unit),
        **strides(k, "k", kv_unit),
        **strides(v, "v", kv_unit),
        "k_scale_batch_stride": k_scale[0],
        "k_scale_head_stride": k_scale[1],
        "v_scale_batch_stride": v_scale[0],
        "v_scale_head_stride": v_scale[1],
        **_zero_strides("k", t.k_zero),
        **_zero_strides("v", t.v_zero),
        "mask_batch_stride": mask_strides[0],
        "mask_head_stride": mask_strides[1],
        "mask_row_stride": mask_strides[2],
        "mask_key_stride": mask_strides[3],
        **strides(t.out, "out", 1),
        "table_stride": table_stride(t.table),
    }
    # In the kernel's own order, as all of them are.
    shared = _scale_constants(t, quantised_format)
    constants = {
        "KV_HEADS": kv_heads,
        "GROUP": group,
        "ONE_QUERY": q_len == 1,
        "HEAD_DIM": head_dim,
        "VALUE_DIM": value_dim,
        "BLOCK_M": block_m,
        "BLOCK_KV": config.block_kv,
        "BLOCK_K": padded_units(head_dim, packed),
        "BLOCK_V": padded_units(value_dim, packed),
        "PACKED": packed,
        "SPLIT": config.num_splits > 1,
        "Q_STRIDE_UNIT": q_unit,
        "KV_STRIDE_UNIT": kv_unit,
        "FORMAT": quantised_format,
        "ASSEMBLY": has_assembly(quantised_format, device),
        "K_SCALE_STRIDE": shared["K_SCALE_STRIDE"],
        "V_SCALE_STRIDE": shared["V_SCALE_STRIDE"],
        **_group_constants("K", (t.k.shape[2], head_dim), t.k_scale, t.k_zero, t.storage.key_minima),
        **_group_constants("V", (t.k.shape[2], value_dim), t.v_scale, t.v_zero, t.storage.value_minima),
        "K_ZERO": shared["K_ZERO"],
        "V_ZERO": shared["V_ZERO"],
        "K_ZERO_STRIDE": shared["K_ZERO_STRIDE"],
        "V_ZERO_STRIDE": shared["V_ZERO_STRIDE"],
        "CENTRE": CENTRES[quantised_format],
        "V_RANGE": shared["V_RANGE"],
        "MASK": mask_mode(t.mask),
        "MASK_PER_ROW": mask_strides[1] != 0 or mask_strides[2] != 0,
        "CAUSAL": is_causal and t.lengths is None,
        "TMA": use_tma,
        "PREFETCH_DEPTH": 0 if emulated else config.prefetch_depth,
        "PREFETCH_BULK": config.prefetch_kind.is_bulk,
        "EVICTION": config.prefetch_kind.eviction,
        "ROWS_ADJACENT": t.k.stride(2) == t.k.shape[3] and t.v.stride(2) == t.v.shape[3],
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


def _zero_strides(side: str, zero: torch.Tensor | None) -> dict[str, int]:
    batch, head, *_ = differing_strides(zero)
    return {f"{side}_zero_batch_stride": batch, f"{side}_zero_head_stride": head}


def _is_grouped(scale: torch.Tensor | None, zero: torch.Tensor | None) -> bool:
    """Of the operands of one side, which are of four dimensions alike where either is of groups."""
    return any(one is not None and one.ndim == 4 for one in (scale, zero))


def _scale_constants(t: DecodeTensors, quantised_format: str) -> dict[str, Any]:
    """Constants for scales of tokens, zero points and minima, and for those zero points that unsigned numbers have
    without a tensor of them."""
    sides = (("K", t.k_scale, t.k_zero, t.storage.key_minima), ("V", t.v_scale, t.v_zero, t.storage.value_minima))
    constants: dict[str, Any] = {}
    for side, scale, zero, minima in sides:
        grouped = _is_grouped(scale, zero)
        none = grouped or (zero is None and not CENTRES[quantised_format])
        constants[f"{side}_ZERO"] = "none" if none else _kind(zero, minima)
        constants[f"{side}_SCALE_STRIDE"] = 0 if grouped else _token_stride(differing_strides(scale), t.page_size)
        constants[f"{side}_ZERO_STRIDE"] = 0 if grouped else _token_stride(differing_strides(zero), t.page_size)
    constants["V_RANGE"] = RANGES[quantised_format] if constants["V_ZERO"] != "none" else 0
    return constants


def _kind(zero: torch.Tensor | None, minima: bool) -> str:
    return "after" if minima and zero is not None else "before"


def _group_constants(
    side: str, sizes: tuple[int, int], scale: torch.Tensor | None, zero: torch.Tensor | None, minima: bool
) -> dict[str, Any]:
    """Constants for scales and zeros (batch, kv_heads, rows, columns) of groups; ``sizes`` are keys and columns."""
    names = ("GROUP_ROWS", "GROUP_COLUMNS", "SCALE_ROW", "SCALE_COLUMN", "ZERO_ROW", "ZERO_COLUMN")
    if not _is_grouped(scale, zero):
        return {f"{side}_GROUP": "none"} | {f"{side}_{name}": 0 for name in names}
    shape = next(one.shape for one in (scale, zero) if one is not None)
    shared = sizes[0] // shape[2], sizes[1] // shape[3]
    strides = (*differing_strides(scale)[2:], *differing_strides(zero)[2:])
    values = zip(names, (*shared, *strides), strict=True)
    return {f"{side}_GROUP": _kind(zero, minima)} | {f"{side}_{name}": value for name, value in values}


def _token_stride(scale_strides: tuple[int, ...], page_size: int) -> int:
    """Elements between the scales of two tokens, 0 where tokens share one. Tokens that are pages by themselves have
    no neighbour there, but scales of their own."""
    page_stride, _, stride, *_ = scale_strides
    return 1 if page_size == 1 and page_stride else stride
