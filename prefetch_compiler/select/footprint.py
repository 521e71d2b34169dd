"""Arithmetic on what a specialised kernel takes, before anything is compiled."""

from __future__ import annotations

import torch

from ..config import MAX_SPLITS, KernelConfig, LoadPath, OperandOrder
from ..spec import AttentionSpec, MaskKind, ScaleGranularity

MAX_ROW_TILE = 128
# Of additions that a score in float32 is the sum of, and the columns of each: a line of 128 bytes.
MOST_CHAINS, COLUMNS_OF_A_CHAIN = 4, 32
MIN_DOT_ROWS = 16
# What a warpgroup multiplies at a time, and is made of.
WARPGROUP_ROWS, WARPGROUP_WARPS = 64, 4
MIN_QUANTISED_ROWS, MAX_QUANTISED_ROWS = 8, 16
MAX_LATENT_ROWS = {LoadPath.POINTER: 32, LoadPath.TMA: 64, LoadPath.PRODUCER: 64}
# Latents and rotary keys of the kernel with a producer warp.
PRODUCER_COLUMNS = 512, 64
BARRIERS_BYTES = 256
_LEAST_COPIED_BYTES = 4
_MASK_THAT_IS_REARRANGED_AT_ONCE = 16 << 10
# Of a row, which warps reduce together: its maximum and its total.
_STATISTICS_BYTES = 8


def padded_dim(dim: int) -> int:
    """The power of two, at least 16 (the least that tl.dot takes), that holds ``dim`` columns."""
    return max(MIN_DOT_ROWS, 1 << (dim - 1).bit_length())


def chains_of_a_score(dtype: torch.dtype, head_dim: int) -> int:
    """How many sums of columns a score is made of, queries and cache being of ``dtype``. One of 128 columns in float32,
    which is multiplied outside the tensor cores, rounds up to twice as much as cuBLAS's sums do; four of 32 round less.
    Tensor cores add 16-bit products up in parts of their own."""
    if dtype != torch.float32:
        return 1
    return min(MOST_CHAINS, max(1, padded_dim(head_dim) // COLUMNS_OF_A_CHAIN))


def row_tile(rows: int, operand_order: OperandOrder = OperandOrder.QK) -> int:
    """Query rows of one program: all that share a KV head, up to 128, padded to a power of two of at least 16, or of at
    least a warpgroup's."""
    least = WARPGROUP_ROWS if operand_order is OperandOrder.QK64 else MIN_DOT_ROWS
    return min(MAX_ROW_TILE, max(least, padded_dim(rows)))


def row_tiles(rows: int) -> int:
    """Programs that the query rows of one KV head are divided among."""
    return -(-rows // row_tile(rows))


def row_tile_of(spec: AttentionSpec, operand_order: OperandOrder = OperandOrder.QK) -> int:
    """Query rows of one program of the template that serves ``spec``; of a latent cache, by pointers."""
    if spec.rope_dim:
        return latent_row_tile(spec.rows, LoadPath.POINTER)
    if spec.cache is None:
        return row_tile(spec.rows, operand_order)
    return quantised_row_tile(spec.rows)


def row_tiles_of(spec: AttentionSpec) -> int:
    """Programs that the query rows of one KV head are divided among."""
    return -(-spec.rows // row_tile_of(spec))


def programs_before_splitting(spec: AttentionSpec, streamed: bool = False) -> int:
    """Programs that ``num_splits`` multiplies: one for each KV head and tile of query rows of each sequence; of the
    batch where it is streamed."""
    sequences = 1 if streamed else spec.batch
    return max(1, sequences * spec.kv_heads * row_tiles_of(spec))


def streams_at_once(spec: AttentionSpec, programs: int) -> int:
    """Splits of a streamed launch of as many as ``programs``, at least 2."""
    return max(2, min(programs // programs_before_splitting(spec, streamed=True), MAX_SPLITS))


def padded_units(dim: int, packed: bool = False) -> int:
    """The power of two, at least what tl.dot takes, that holds the pairs of ``dim`` columns of a quantised cache; or
    their fours, where two numbers are packed into a byte."""
    return padded_dim(dim // 4 if packed else dim // 2)


def quantised_row_tile(rows: int) -> int:
    """Query rows of one program over a quantised cache: a power of two from 8, the least that products with keys first
    take, to 16. Two warps do not hold two accumulators of more; taking K and V apart once more for other rows, which
    find them in L2, costs less than spilling."""
    return min(MAX_QUANTISED_ROWS, max(MIN_QUANTISED_ROWS, 1 << (rows - 1).bit_length()))


def latent_row_tile(rows: int, load_path: LoadPath) -> int:
    """Query rows of one program over a latent cache: a power of two from 16. The accumulator is as wide as the latents:
    that of 64 rows takes half of the registers of eight warps, and leaves none for pointers to tiles of 576 columns.
    The kernel with a producer warp has one size."""
    if load_path is LoadPath.PRODUCER:
        return MAX_LATENT_ROWS[load_path]
    return min(MAX_LATENT_ROWS[load_path], padded_dim(rows))


def kv_tile_bytes(spec: AttentionSpec, block_kv: int) -> int:
    """Shared memory of one tile of K and one of V, or of latents and rotary keys."""
    if spec.rope_dim:
        return block_kv * (padded_dim(spec.head_dim) + spec.rope_dim) * spec.element_bytes
    if spec.cache is not None:
        packed = bool(spec.cache.storage.packing)
        return block_kv * (padded_units(spec.head_dim, packed) + padded_units(spec.value_dim, packed)) * 2
    return block_kv * (padded_dim(spec.head_dim) + padded_dim(spec.value_dim)) * spec.element_bytes


def _even_columns(dim: int, packed: bool) -> int:
    """Columns of the tile of a quantised cache's even columns once they are unpacked."""
    return padded_units(dim, packed) * (2 if packed else 1)


def _rearranged_bytes(spec: AttentionSpec, block_kv: int) -> int:
    """What K or V of a tile takes where it passes through shared memory once it is unpacked: as four-bit numbers do,
    which are joined, and those that scales of groups multiply. Even and odd columns follow one another, in 32 bits."""
    if spec.cache is None or not (spec.cache.storage.packing or spec.cache.has_groups):
        return 0
    packed = bool(spec.cache.storage.packing)
    return block_kv * max(_even_columns(dim, packed) for dim in (spec.head_dim, spec.value_dim)) * 4


def _query_columns(spec: AttentionSpec) -> int:
    """Of the query's tile; or of both, one for even columns of K and one for odd."""
    if spec.cache is None:
        return padded_dim(spec.head_dim)
    return 2 * _even_columns(spec.head_dim, bool(spec.cache.storage.packing))


def _asynchronous(dtype: torch.dtype | None) -> bool:
    """Whether elements that are loaded one by one come by asynchronous copies, of which 4 bytes are the least. What
    comes so takes shared memory in each stage of a pipelined loop but the last, wherever products depend on it."""
    return dtype is not None and dtype.itemsize >= _LEAST_COPIED_BYTES


def _copied_scales_bytes(spec: AttentionSpec, block_kv: int) -> int:
    """One stage's scales and zeros: those of groups as tiles of a number for each of K's or V's, those of tokens as
    rows. Where both columns of a unit share a scale, one tile serves them."""
    cache = spec.cache
    if cache is None:
        return 0
    packed = bool(cache.storage.packing)
    sides = (
        (spec.head_dim, cache.key_group, (cache.key_scales, cache.key_zeros)),
        (spec.value_dim, cache.value_group, (cache.value_scales, cache.value_zeros)),
    )
    copied = 0
    for dim, group, granularities in sides:
        columns = 1 if group is None else _even_columns(dim, packed) * (1 if group[1] % 2 == 0 else 2)
        for granularity, dtype in zip(granularities, (cache.scale_dtype, cache.zero_dtype), strict=True):
            shared_by_all = group is None and granularity is not ScaleGranularity.TOKEN
            if granularity is not ScaleGranularity.NONE and not shared_by_all and _asynchronous(dtype):
                copied += block_kv * columns * 4
    return copied


def _copied_mask_bytes(spec: AttentionSpec, config: KernelConfig, rows: int) -> int:
    """One stage's mask, where that differs by row."""
    return rows * config.block_kv * 4 if spec.mask_per_row and _asynchronous(spec.mask_dtype) else 0


def _scores_bytes(spec: AttentionSpec, config: KernelConfig, rows: int) -> int:
    """Warpgroups have scores in the layout of the next product. What passes through shared memory is the mask, where it
    was loaded for each row: two bytes for each of a bool mask, four up to 16 KB."""
    whole = rows * config.block_kv * 4
    by_warpgroups = rows >= WARPGROUP_ROWS and config.num_warps >= WARPGROUP_WARPS
    if spec.cache is not None or not by_warpgroups or spec.element_bytes > 2:
        return whole
    if config.operand_order is OperandOrder.KQ or (spec.mask_per_row and spec.mask is not MaskKind.BOOL):
        return whole
    return min(whole, max(whole // 2, _MASK_THAT_IS_REARRANGED_AT_ONCE)) if spec.mask_per_row else 0


def shared_memory_estimate_bytes(spec: AttentionSpec, config: KernelConfig) -> int:
    """Tiles in flight, the query tile, what else is copied ahead, and what scores, and masks by row, pass through on
    their way from one register layout to another. Compiling tells the exact figure; this one prunes, and is not below
    it (Triton 3.6, as compiled for sm_80 to sm_120).

    Warpgroup products (64 query rows, or keys first) and fp32 ones read K and V from shared memory until they are done,
    so that all stages are in use at a time; others load their operands into registers, which frees a stage early. So
    do all of those over a quantised cache, which is taken apart there.
    """
    if spec.rope_dim:
        return _latent_shared_memory_bytes(spec, config)
    rows = row_tile_of(spec, config.operand_order)
    keys_first = config.operand_order is OperandOrder.KQ
    from_shared = spec.cache is None and (rows >= WARPGROUP_ROWS or keys_first or spec.element_bytes > 2)
    stages = config.num_stages if from_shared else max(1, config.num_stages - 1)
    scores_bytes = _scores_bytes(spec, config, rows)
    # One stage leaves K's memory to what comes after it.
    if config.num_stages == 1 and scores_bytes <= kv_tile_bytes(spec, config.block_kv) // 2:
        scores_bytes = 0
    tiles_bytes = stages * kv_tile_bytes(spec, config.block_kv) + _rearranged_bytes(spec, config.block_kv)
    copied_bytes = _copied_mask_bytes(spec, config, rows) + _copied_scales_bytes(spec, config.block_kv)
    return (
        tiles_bytes
        + rows * _query_columns(spec) * spec.element_bytes
        + scores_bytes
        + (config.num_stages - 1) * copied_bytes
        + rows * _STATISTICS_BYTES
        + BARRIERS_BYTES
    )


def _latent_shared_memory_bytes(spec: AttentionSpec, config: KernelConfig) -> int:
    """The same over a latent cache, whose rows are multiplied twice: no stage is free before the second product, unless
    that of 16-bit numbers has its operands in registers."""
    rows = latent_row_tile(spec.rows, config.load_path)
    keys_first = config.operand_order is OperandOrder.KQ
    by_warpgroups = rows >= WARPGROUP_ROWS
    from_shared = by_warpgroups or keys_first or spec.element_bytes > 2
    stages = config.num_stages if from_shared else max(1, config.num_stages - 1)
    if config.num_stages == 1:
        stages = 2  # Outside a pipelined loop each product has the tile in a layout of its own.
    # Warpgroups have scores in the layout of the next product, unless a mask was loaded for each.
    in_registers = by_warpgroups and not keys_first and not spec.mask_per_row
    scores_bytes = 0 if in_registers else rows * config.block_kv * 4
    copied_bytes = (config.num_stages - 1) * _copied_mask_bytes(spec, config, rows)
    if config.load_path is LoadPath.PRODUCER:
        # What is handed from one warp group to the other: factors of each stage, and sums. Probabilities take the place
        # of rotary keys, and masks are not copied ahead.
        scores_bytes, copied_bytes = (stages + 1) * rows * 4, 0
    queries_bytes = rows * (padded_dim(spec.head_dim) + spec.rope_dim) * spec.element_bytes
    tiles_bytes = stages * kv_tile_bytes(spec, config.block_kv)
    return tiles_bytes + queries_bytes + scores_bytes + copied_bytes + BARRIERS_BYTES
