"""Spec-shaped arguments + config → the exact arguments, constants, grid and options of each kernel of a template.

This is the one place that knows the kernels' parameter lists. Launching, precompiling for the present GPU and
compiling for an absent one all start from the ``KernelCall`` objects made here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from prefetch_compiler.templates.manifest import SPLIT_KV

from ..config import KernelConfig, LoadPath, Merge, OperandOrder, PrefetchKind
from ..device import interpreting
from ..select.footprint import padded_dim, row_tile, row_tiles

LOG2_E = math.log2(math.e)
# fp32 values of partial results that a merge program holds at once: 32 splits of head_dim 128.
MERGE_TILE_ELEMENTS = 4096
MERGE_WARPS = 4


@dataclass(frozen=True)
class KernelCall:
    """One kernel launch: ``kernel[grid](**arguments, **constants, **options)``.

    ``arguments`` are tensors, tensor descriptors, integers, floats or None, in the kernel's own order.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    constants: dict[str, Any]
    options: dict[str, Any]

    def launch(self) -> None:
        self.kernel[self.grid](**self.arguments, **self.constants, **self.options)

    def precompile(self) -> Any:
        """Compile for the present GPU and load the binary, without running it; later launches find it ready."""
        compiled = self.kernel.warmup(**self.arguments, **self.constants, **self.options, grid=self.grid)
        compiled._init_handles()
        return compiled


@dataclass(frozen=True)
class DecodeTensors:
    """The operands of one decode launch; shapes as in AttentionSpec, ``mask`` and ``out`` 4-D, ``bounds`` (1|B, 4).

    ``partial``, ``stats`` and ``arrivals`` are None with one split; ``arrivals`` also with a separate merge.
    ``k_scale`` and ``v_scale`` are those of a quantised cache, expanded to (batch, kv_heads, kv_len) with a stride of 0
    where one scale is shared; None where there is none.
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    mask: torch.Tensor | None
    bounds: torch.Tensor | None
    out: torch.Tensor
    partial: torch.Tensor | None
    stats: torch.Tensor | None
    arrivals: torch.Tensor | None
    k_scale: torch.Tensor | None = None
    v_scale: torch.Tensor | None = None


def scratch_shapes(
    batch: int, kv_heads: int, rows: int, value_dim: int, config: KernelConfig
) -> tuple[tuple[int, ...], tuple[int, ...], int] | None:
    """Shapes of ``partial`` and ``stats`` (fp32) and length of ``arrivals`` (int32); None when one split needs none."""
    if config.num_splits == 1:
        return None
    heads = batch * kv_heads
    programs = heads * row_tiles(rows)
    return (heads, config.num_splits, rows, value_dim), (heads, config.num_splits, rows, 2), programs


def stride_unit(*tensors: torch.Tensor) -> int:
    """The largest power of two up to 16 that divides every stride but the last (which is 1) of every tensor."""
    common = math.gcd(16, *(stride for tensor in tensors for stride in tensor.stride()[:-1]))
    return common & -common


def mask_mode(mask: torch.Tensor | None) -> str:
    if mask is None:
        return "none"
    return "bool" if mask.dtype == torch.bool else "additive"


def descriptor(tensor: torch.Tensor, block_kv: int) -> Any:
    """Of (1, 1, block_kv, padded dim) tiles."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    block = [1, 1, block_kv, padded_dim(tensor.shape[-1])]
    return TensorDescriptor(tensor, list(tensor.shape), list(tensor.stride()), block)


def overlap_option(config: KernelConfig) -> dict[str, Any]:
    return {"launch_pdl": True} if config.launch_overlap else {}


def strides(tensor: torch.Tensor, name: str, divisor: int) -> dict[str, int]:
    """The kernels' arguments for the strides of a tensor, in units of ``divisor`` elements."""
    b, h, r = (stride // divisor for stride in tensor.stride()[:3])
    return {f"{name}_batch_stride": b, f"{name}_head_stride": h, f"{name}_row_stride": r}


def decode_call(t: DecodeTensors, *, is_causal: bool, scale: float, config: KernelConfig) -> KernelCall:
    """The split-KV kernel's launch."""
    batch, query_heads, q_len, head_dim = t.q.shape
    kv_heads, kv_len, value_dim = t.k.shape[1], t.k.shape[2], t.v.shape[3]
    group = query_heads // kv_heads
    tiles = row_tiles(group * q_len)
    mode = mask_mode(t.mask)
    mask_strides = t.mask.stride() if t.mask is not None else (0, 0, 0, 0)
    q_unit, kv_unit = stride_unit(t.q), stride_unit(t.k, t.v)
    use_tma = config.load_path is LoadPath.TMA
    emulated = interpreting()

    arguments: dict[str, Any] = {
        "q_ptr": t.q,
        "k_ptr": t.k,
        "v_ptr": t.v,
        "k_descriptor": descriptor(t.k, config.block_kv) if use_tma else None,
        "v_descriptor": descriptor(t.v, config.block_kv) if use_tma else None,
        "mask_ptr": t.mask,
        "bounds_ptr": t.bounds,
        "out_ptr": t.out,
        "partial_ptr": t.partial,
        "stats_ptr": t.stats,
        "arrivals_ptr": t.arrivals,
        "score_scale": scale if mode == "additive" else scale * LOG2_E,
        "q_len": q_len,
        "kv_len": kv_len,
        "kv_heads": kv_heads,
        "row_tiles": tiles,
        "bounds_stride": bounds_stride(t.bounds),
        **strides(t.q, "q", q_unit),
        **strides(t.k, "k", kv_unit),
        **strides(t.v, "v", kv_unit),
        "mask_batch_stride": mask_strides[0],
        "mask_head_stride": mask_strides[1],
        "mask_row_stride": mask_strides[2],
        "mask_key_stride": mask_strides[3],
        **strides(t.out, "out", 1),
    }
    constants = {
        "GROUP": group,
        "HEAD_DIM": head_dim,
        "VALUE_DIM": value_dim,
        "BLOCK_M": row_tile(group * q_len),
        "BLOCK_KV": config.block_kv,
        "BLOCK_D": padded_dim(head_dim),
        "BLOCK_DV": padded_dim(value_dim),
        "SPLIT": config.num_splits > 1,
        "Q_STRIDE_UNIT": q_unit,
        "KV_STRIDE_UNIT": kv_unit,
        "MASK": mode,
        "MASK_PER_ROW": mask_strides[1] != 0 or mask_strides[2] != 0,
        "CAUSAL": is_causal,
        "TMA": use_tma,
        "KEYS_FIRST": config.operand_order is OperandOrder.KQ,
        "PREFETCH_DEPTH": 0 if emulated else config.prefetch_depth,
        "PREFETCH_BULK": config.prefetch_kind is PrefetchKind.BULK,
        "ROWS_ADJACENT": t.k.stride(2) == head_dim and t.v.stride(2) == value_dim,
        "LAUNCH_OVERLAP": config.launch_overlap and not emulated,
        "MERGE_IN_PLACE": config.merge is Merge.INPLACE,
        "EXP2_SCALE": LOG2_E if mode == "additive" else 1.0,
        "UPCAST": emulated,
    }
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages, **overlap_option(config)}
    kernel = SPLIT_KV.load("split_kv_decode").split_kv_decode
    return KernelCall(kernel, (batch * kv_heads * tiles, config.num_splits), arguments, constants, options)


def merge_call(t: DecodeTensors, *, is_causal: bool, config: KernelConfig) -> KernelCall | None:
    """The separate merge's launch, or None when there is nothing to merge or it is merged in place."""
    if config.num_splits == 1 or config.merge is Merge.INPLACE:
        return None
    batch, query_heads, q_len, _ = t.q.shape
    kv_heads, value_dim = t.k.shape[1], t.v.shape[3]
    out_strides = t.out.stride()
    block_splits = 1 << (config.num_splits - 1).bit_length()
    arguments: dict[str, Any] = {
        "partial_ptr": t.partial,
        "stats_ptr": t.stats,
        "bounds_ptr": t.bounds,
        "out_ptr": t.out,
        "q_len": q_len,
        "kv_len": t.k.shape[2],
        "kv_heads": kv_heads,
        "num_splits": config.num_splits,
        "bounds_stride": bounds_stride(t.bounds),
        "out_batch_stride": out_strides[0],
        "out_head_stride": out_strides[1],
        "out_row_stride": out_strides[2],
    }
    constants = {
        "GROUP": query_heads // kv_heads,
        "VALUE_DIM": value_dim,
        "BLOCK_DV": padded_dim(value_dim),
        "BLOCK_KV": config.block_kv,
        "BLOCK_SPLITS": block_splits,
        "CHUNK": min(block_splits, MERGE_TILE_ELEMENTS // padded_dim(value_dim)),
        "CAUSAL": is_causal,
        "LAUNCH_OVERLAP": config.launch_overlap and not interpreting(),
        "EXP2_SCALE": LOG2_E if mask_mode(t.mask) == "additive" else 1.0,
        "UPCAST": interpreting(),
    }
    kernel = SPLIT_KV.load("merge_splits").merge_splits
    options = {"num_warps": MERGE_WARPS, "num_stages": 1, **overlap_option(config)}
    return KernelCall(kernel, (batch * query_heads * q_len,), arguments, constants, options)


def bounds_stride(bounds: torch.Tensor | None) -> int:
    """0 when all sequences share one row of bounds, else the distance between rows."""
    return 0 if bounds is None or bounds.shape[0] == 1 else bounds.stride(0)
