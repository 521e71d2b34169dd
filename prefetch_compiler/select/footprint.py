"""Arithmetic on what a specialised kernel takes, before anything is compiled."""

from __future__ import annotations

from ..config import KernelConfig, LoadPath
from ..spec import AttentionSpec, MaskKind

MAX_ROW_TILE = 128
MIN_DOT_ROWS = 16
WARPGROUP_ROWS = 64
MIN_QUANTISED_ROWS, MAX_QUANTISED_ROWS = 8, 16


def padded_dim(dim: int) -> int:
    """The power of two, at least 16 (the least that tl.dot takes), that holds ``dim`` columns."""
    return max(MIN_DOT_ROWS, 1 << (dim - 1).bit_length())


def row_tile(rows: int) -> int:
    """Query rows of one program: all that share a KV head, up to 128, padded to a power of two of at least 16."""
    return min(MAX_ROW_TILE, padded_dim(rows))


def row_tiles(rows: int) -> int:
    """Programs that the query rows of one KV head are divided among."""
    return -(-rows // row_tile(rows))


def row_tile_of(spec: AttentionSpec) -> int:
    """Query rows of one program of the template that serves ``spec``."""
    if spec.cache is None:
        return row_tile(spec.rows)
    return quantised_row_tile(spec.rows)


def row_tiles_of(spec: AttentionSpec) -> int:
    """Programs that the query rows of one KV head are divided among."""
    return -(-spec.rows // row_tile_of(spec))


def padded_units(dim: int) -> int:
    """The power of two, at least what tl.dot takes, that holds the pairs of ``dim`` columns of a quantised cache."""
    return padded_dim(dim // 2)


def quantised_row_tile(rows: int) -> int:
    """Query rows of one program over a quantised cache: a power of two from 8, the least that products with keys first
    take, to 16. Two warps do not hold two accumulators of more; taking K and V apart once more for other rows, which
    find them in L2, costs less than spilling."""
    return min(MAX_QUANTISED_ROWS, max(MIN_QUANTISED_ROWS, 1 << (rows - 1).bit_length()))


def kv_tile_bytes(spec: AttentionSpec, block_kv: int) -> int:
    """Shared memory of one K tile and one V tile."""
    if spec.cache is not None:
        return block_kv * (padded_units(spec.head_dim) + padded_units(spec.value_dim)) * 2
    return block_kv * (padded_dim(spec.head_dim) + padded_dim(spec.value_dim)) * spec.element_bytes


def shared_memory_estimate_bytes(spec: AttentionSpec, config: KernelConfig) -> int:
    """Tiles in flight and the query tile. Compiling tells the exact figure; this one prunes.

    A mask makes two loops, one for what it leaves clean. With enough query rows for warpgroup products Triton 3.6 gives
    each loop of asynchronous copies buffers of its own.
    """
    rows = row_tile_of(spec)
    separate_loops = (
        spec.mask is not MaskKind.NONE
        and config.load_path is LoadPath.POINTER
        and config.num_stages > 1
        and rows >= WARPGROUP_ROWS
    )
    tiles_bytes = config.num_stages * kv_tile_bytes(spec, config.block_kv) * (2 if separate_loops else 1)
    return tiles_bytes + rows * padded_dim(spec.head_dim) * spec.element_bytes
