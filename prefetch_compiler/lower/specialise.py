"""Spec-shaped arguments + config → the exact arguments, constants, grid and options of each kernel of a template.

This is the one place that knows the kernels' parameter lists. Launching, precompiling for the present GPU and
compiling for an absent one all start from the ``KernelCall`` objects made here.
"""

from __future__ import annotations

import math
import threading
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from prefetch_compiler.templates.manifest import SPLIT_KV

from ..config import KernelConfig, LoadPath, Merge, OperandOrder, Partition
from ..device import interpreting
from ..select.footprint import chains_of_a_score, padded_dim, row_tile, row_tiles
from ..spec import AS_THE_DTYPE_SAYS, Storage

LOG2_E = math.log2(math.e)
# fp32 values of partial results that a merge program holds at once, at most: all splits, mostly, since going through
# them in parts costs a memory latency each.
MERGE_TILE_ELEMENTS = 32768
# Of which a thread holds up to so many, and a warp these of so many splits, with whose weights 64 spill. There are as
# many programs as query rows, and each warp of a program computes the addresses anew: 2,048 rows of four splits took
# 4 us longer with four warps than with one (NVIDIA H200).
MERGE_THREAD_ELEMENTS, MERGE_WARP_SPLITS, MOST_MERGE_WARPS = 128, 32, 8
# Columns of a row that a program merges: 16 bytes a thread of a warp, half of that with more splits than a warp has
# lanes, and more where splits are so few that these make no more values.
MERGE_COLUMNS, MERGE_ROW_ELEMENTS = 128, 1024
# Balanced splits of a sequence that a merge holds at once: the even share, but no fewer. Few sequences have four times
# that, and what is computed for all splits that a sequence may have is computed for every row.
BALANCED_PARTS = 16
# Query rows that a merge of streamed sequences holds at once at most, parts of them at least, and values at most.
STREAM_ROWS, STREAM_PARTS, STREAM_TILE_ELEMENTS = 4, 4, 8192
# Of balanced splits a sequence gets this many times its even share at most.
BALANCED_LIMIT = 4
# Triton's interpreter puts its own functions in the place of Triton's language while a kernel runs: a second thread's
# kernel would lose them half way through.
_one_at_a_time: AbstractContextManager[Any] = threading.RLock() if interpreting() else nullcontext()


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
        with _one_at_a_time:
            self.kernel[self.grid](**self.arguments, **self.constants, **self.options)

    def precompile(self) -> Any:
        """Compile for the present GPU and load the binary, without running it; later launches find it ready."""
        compiled = self.kernel.warmup(**self.arguments, **self.constants, **self.options, grid=self.grid)
        compiled._init_handles()
        return compiled


@dataclass(frozen=True)
class DecodeTensors:
    """The operands of one decode launch; shapes as in AttentionSpec, ``mask`` and ``out`` 4-D, ``bounds`` (1|B, 4),
    ``sink`` (query_heads,), ``lse`` float32 (batch, query_heads, q_len), contiguous, to be written, or None.

    ``partial``, ``stats`` and ``arrivals`` are None with one split; ``arrivals`` also with a separate merge.
    ``k_scale`` and ``v_scale`` are those of a quantised cache, expanded to (batch, kv_heads, kv_len) with a stride of 0
    where one scale is shared, or as ``expanded_scales`` has those of groups; None where there is none. ``k_zero`` and
    ``v_zero`` are likewise, and ``storage`` says what they are.
    ``lengths`` (batch,) are in place of ``mask`` and ``bounds``. With a page ``table``, which needs them, K and V are
    page pools, and scales are expanded to their first three sizes. Of a latent cache, ``k`` and ``v`` are both its
    latents, and ``rope`` its rotary keys.
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
    lengths: torch.Tensor | None = None
    table: torch.Tensor | None = None
    sink: torch.Tensor | None = None
    lse: torch.Tensor | None = None
    k_zero: torch.Tensor | None = None
    v_zero: torch.Tensor | None = None
    storage: Storage = AS_THE_DTYPE_SAYS
    rope: torch.Tensor | None = None

    @property
    def page_size(self) -> int:
        """0 where the cache is in one piece."""
        return 0 if self.table is None else self.k.shape[2]

    @property
    def kv_len(self) -> int:
        """Keys that a sequence may hold."""
        return self.k.shape[2] if self.table is None else self.table.shape[1] * self.k.shape[2]


def scratch_shapes(
    batch: int, kv_heads: int, rows: int, value_dim: int, config: KernelConfig
) -> tuple[tuple[int, ...], tuple[int, ...], int] | None:
    """Shapes of ``partial`` and ``stats`` (fp32) and length of ``arrivals`` (int32); None when one split needs none."""
    if config.num_splits == 1:
        return None
    heads, parts = batch * kv_heads, config.num_splits
    programs = heads * row_tiles(rows)
    if config.streams:
        heads, parts = kv_heads, batch + config.num_splits
    return (heads, parts, rows, value_dim), (heads, parts, rows, 2), programs


def stride_unit(*tensors: torch.Tensor) -> int:
    """The largest power of two up to 16 that divides every stride but the last (which is 1) of every tensor."""
    common = math.gcd(16, *(stride for tensor in tensors for stride in tensor.stride()[:-1]))
    return common & -common


def known_row_stride(cache: torch.Tensor) -> int:
    """Elements between the rows of a head, (batch, kv_heads, kv_len, dim), where a model fixes them: with heads
    outermost or innermost. 0 where they may depend on sizes that a launch may change."""
    kv_heads, dim, stride = cache.shape[1], cache.shape[3], cache.stride(2)
    return stride if stride in (dim, kv_heads * dim) else 0


def mask_mode(mask: torch.Tensor | None) -> str:
    if mask is None:
        return "none"
    return "bool" if mask.dtype == torch.bool else "additive"


def exp2_scale(mask: torch.Tensor | None, softcap: float | None) -> float:
    """What scores are multiplied by where they become powers of two: 1 where the softmax scale holds it."""
    return LOG2_E if mask_mode(mask) == "additive" or softcap is not None else 1.0


def score_arguments(mask: torch.Tensor | None, scale: float, softcap: float | None) -> dict[str, Any]:
    """The kernels' arguments for the softmax scale, which holds what turns scores into powers of two if it may, and the
    soft cap."""
    held = LOG2_E if exp2_scale(mask, softcap) == 1.0 else 1.0
    return {"score_scale": scale * held, "softcap": softcap}


def differing_strides(tensor: torch.Tensor | None) -> tuple[int, ...]:
    """Strides by which elements of a mask or scale differ: a dimension of one element keeps whatever stride it was
    given. Zeros, four of them, where there is none."""
    if tensor is None:
        return 0, 0, 0, 0
    return tuple(stride if size > 1 else 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


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


def decode_call(
    t: DecodeTensors, *, is_causal: bool, scale: float, softcap: float | None = None, config: KernelConfig
) -> KernelCall:
    """The split-KV kernel's launch."""
    batch, query_heads, q_len, head_dim = t.q.shape
    kv_heads, value_dim = t.k.shape[1], t.v.shape[3]
    group = query_heads // kv_heads
    tiles = row_tiles(group * q_len)
    mask_strides = differing_strides(t.mask)
    q_unit, kv_unit, out_unit = stride_unit(t.q), stride_unit(t.k, t.v), stride_unit(t.out)
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
        "lengths_ptr": t.lengths,
        "table_ptr": t.table,
        "sink_ptr": t.sink,
        "lse_ptr": t.lse,
        **score_arguments(t.mask, scale, softcap),
        "stream_batch": batch if config.streams else None,
        "q_len": q_len,
        "kv_len": t.kv_len,
        "row_tiles": tiles,
        "bounds_stride": bounds_stride(t.bounds),
        **strides(t.q, "q", q_unit),
        **strides(t.k, "k", kv_unit),
        **strides(t.v, "v", kv_unit),
        "mask_batch_stride": mask_strides[0],
        "mask_head_stride": mask_strides[1],
        "mask_row_stride": mask_strides[2],
        "mask_key_stride": mask_strides[3],
        **strides(t.out, "out", out_unit),
        "table_stride": table_stride(t.table),
    }
    constants = {
        "KV_HEADS": kv_heads,
        "GROUP": group,
        "ONE_QUERY": q_len == 1,
        "HEAD_DIM": head_dim,
        "VALUE_DIM": value_dim,
        "BLOCK_M": row_tile(group * q_len, config.operand_order),
        "BLOCK_KV": config.block_kv,
        "BLOCK_D": padded_dim(head_dim),
        "BLOCK_DV": padded_dim(value_dim),
        "SPLIT": config.num_splits > 1,
        "Q_STRIDE_UNIT": q_unit,
        "KV_STRIDE_UNIT": kv_unit,
        "K_ROW_STRIDE": known_row_stride(t.k),
        "V_ROW_STRIDE": known_row_stride(t.v),
        "OUT_STRIDE_UNIT": out_unit,
        "MASK": mask_mode(t.mask),
        "MASK_PER_ROW": mask_strides[1] != 0 or mask_strides[2] != 0,
        "CLEAN_APART": mask_strides[1] != 0 or mask_strides[2] != 0,
        "CAUSAL": is_causal and t.lengths is None,
        "TMA": use_tma,
        "KEYS_FIRST": config.operand_order is OperandOrder.KQ,
        "PREFETCH_DEPTH": 0 if emulated else config.prefetch_depth,
        "PREFETCH_BULK": config.prefetch_kind.is_bulk,
        "EVICTION": config.prefetch_kind.eviction,
        "ROWS_ADJACENT": t.k.stride(2) == head_dim and t.v.stride(2) == value_dim,
        **partition_constants(batch, config),
        "STREAMED": config.streams,
        "PROLOGUE_PREFETCH": config.prologue_prefetch and not emulated,
        "LAUNCH_OVERLAP": config.launch_overlap and not emulated,
        "MERGE_IN_PLACE": config.merge is Merge.INPLACE,
        **_merge_tile(group * q_len, padded_dim(value_dim), config),
        "EXP2_SCALE": exp2_scale(t.mask, softcap),
        "UPCAST": emulated,
        # TMA brings whole rows.
        "CHAINS": 1 if use_tma else chains_of_a_score(t.q.dtype, head_dim),
        **paging_constants(t, is_causal, config),
        "DOUBLE_SCALARS": False,
    }
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages, **overlap_option(config)}
    kernel = SPLIT_KV.load("split_kv_decode").split_kv_decode
    first_axis = kv_heads * tiles * (1 if config.streams else batch)
    return KernelCall(kernel, (first_axis, config.num_splits), arguments, constants, options)


def paging_constants(t: DecodeTensors, is_causal: bool, config: KernelConfig) -> dict[str, Any]:
    """Constants that say which keys of a sequence count by its length, and in what pages they lie."""
    return {
        "CAUSAL_TAIL": is_causal and t.lengths is not None,
        "PAGED": t.table is not None,
        "PAGE_SIZE": t.page_size,
        # Without bounds keys count from 0 and all splits are whole tiles, so tiles start at multiples of their size.
        "TILES_IN_PAGES": t.bounds is None and t.page_size >= config.block_kv,
    }


def partition_constants(batch: int, config: KernelConfig) -> dict[str, Any]:
    """Constants by which the kernels plan alike. A batch is known to them by its power of two."""
    plans = config.partition is Partition.BALANCED or config.streams
    return {
        "PARTITION": config.partition.value,
        "BLOCK_BATCH": 1 << (batch - 1).bit_length() if plans else 1,
        "MOST_SPLITS": most_splits(config) if plans else 0,
    }


def most_splits(config: KernelConfig) -> int:
    """Splits that one sequence may have, as a power of two."""
    even_share = 1 << (config.num_splits - 1).bit_length()
    return BALANCED_LIMIT * even_share if config.partition is Partition.BALANCED else even_share


def _merge_tile(rows: int, block_dv: int, config: KernelConfig) -> dict[str, int]:
    """Rows and splits that a merge in place holds at once: 64 values a thread, rows first."""
    if config.merge is not Merge.INPLACE or config.num_splits == 1:
        return {"ROWS_AT_ONCE": 1, "SPLITS_AT_ONCE": 1}
    values = 64 * 32 * config.num_warps // block_dv
    at_once = max(1, min(16, 1 << (rows - 1).bit_length(), values))
    splits = max(1, min(most_splits(config), values // at_once))
    return {"ROWS_AT_ONCE": at_once, "SPLITS_AT_ONCE": splits}


def _stream_merge_tile(batch: int, rows: int, block_dv: int, config: KernelConfig) -> tuple[int, int]:
    """Parts and rows that a merge of streamed sequences holds at once: the parts of a sequence twice as long as the
    average, each further chunk of which would cost a memory latency; and rows as there is room for."""
    values = STREAM_TILE_ELEMENTS // block_dv
    likely = 2 * config.num_splits // batch + 1
    parts = min(most_splits(config), values, max(STREAM_PARTS, 1 << (likely - 1).bit_length()))
    return parts, max(1, min(STREAM_ROWS, 1 << (rows - 1).bit_length(), values // parts))


def _merge_split_tile(block_dv: int, config: KernelConfig) -> tuple[int, int]:
    """Splits and columns of a row that a merge holds at once: all of a sequence's splits, or as many as most sequences
    have, and the fewer columns the more splits there are: of 256 columns of 8 splits, or of 512 of 32, ptxas asks for a
    few partial results at a time, and of 128 for all."""
    chunk = most_splits(config)
    if config.partition is Partition.BALANCED:
        chunk = min(chunk, max(BALANCED_PARTS, 1 << (config.num_splits - 1).bit_length()))
    fewest = MERGE_COLUMNS if chunk <= MERGE_WARP_SPLITS else MERGE_COLUMNS // 2
    columns = min(block_dv, max(fewest, MERGE_ROW_ELEMENTS // chunk))
    return min(chunk, MERGE_TILE_ELEMENTS // columns), columns


def _merge_warps(splits: int, values: int) -> int:
    """Warps of a merge that holds so many splits of one row, and values of all its rows, at once."""
    needed = max(-(-values // (32 * MERGE_THREAD_ELEMENTS)), -(-splits // MERGE_WARP_SPLITS))
    return min(MOST_MERGE_WARPS, 1 << (needed - 1).bit_length())


def merge_call(
    t: DecodeTensors, *, is_causal: bool, softcap: float | None = None, config: KernelConfig
) -> KernelCall | None:
    """The separate merge's launch, or None when there is nothing to merge or it is merged in place."""
    if config.num_splits == 1 or config.merge is Merge.INPLACE:
        return None
    batch, query_heads, q_len, _ = t.q.shape
    kv_heads, value_dim = t.k.shape[1], t.out.shape[3]
    out_unit = stride_unit(t.out)
    block_splits = most_splits(config)
    rows = query_heads // kv_heads * q_len
    block_dv = padded_dim(value_dim)
    columns, stream_rows = block_dv, 0
    if config.streams:
        chunk, stream_rows = _stream_merge_tile(batch, rows, block_dv, config)
    else:
        chunk, columns = _merge_split_tile(block_dv, config)
    rows_at_once = max(1, stream_rows)
    arguments: dict[str, Any] = {
        "partial_ptr": t.partial,
        "stats_ptr": t.stats,
        "bounds_ptr": t.bounds,
        "out_ptr": t.out,
        "lengths_ptr": t.lengths,
        "lse_ptr": t.lse,
        "q_len": q_len,
        "kv_len": t.kv_len,
        "num_splits": config.num_splits,
        "bounds_stride": bounds_stride(t.bounds),
        **strides(t.out, "out", out_unit),
    }
    constants = {
        "KV_HEADS": kv_heads,
        "GROUP": query_heads // kv_heads,
        "ONE_QUERY": q_len == 1,
        "OUT_STRIDE_UNIT": out_unit,
        "VALUE_DIM": value_dim,
        "BLOCK_DV": block_dv,
        "COLUMNS": columns,
        "BLOCK_KV": config.block_kv,
        "BLOCK_SPLITS": block_splits,
        "CHUNK": chunk,
        "WHOLE_TILE": config.num_splits == chunk == block_splits and value_dim % columns == 0,
        **partition_constants(batch, config),
        "STREAMED": config.streams,
        "STREAM_ROWS": stream_rows,
        "CAUSAL": is_causal and t.lengths is None,
        "LAUNCH_OVERLAP": config.launch_overlap and not interpreting(),
        "EXP2_SCALE": exp2_scale(t.mask, softcap),
        "UPCAST": interpreting(),
    }
    kernel = SPLIT_KV.load("merge_splits").merge_splits
    options = {
        "num_warps": _merge_warps(chunk, chunk * rows_at_once * columns),
        "num_stages": 1,
        **overlap_option(config),
    }
    return KernelCall(
        kernel, (batch * kv_heads * -(-rows // rows_at_once), block_dv // columns), arguments, constants, options
    )


def bounds_stride(bounds: torch.Tensor | None) -> int:
    """0 when all sequences share one row of bounds, else the distance between rows."""
    return 0 if bounds is None or bounds.shape[0] == 1 else bounds.stride(0)


def table_stride(table: torch.Tensor | None) -> int:
    """Entries between the rows of a page table; 0 where there is none."""
    return 0 if table is None else table.stride(0)
