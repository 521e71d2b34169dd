"""Paged caches: which page a key lies in, and where its row is.

A sequence's row of the page table names the page of each of its runs of PAGE_SIZE keys. Entries beyond what a sequence
holds may be anything: they are not read.

An entry has to be there before the rows that it leads to can be asked for, so loops load the entries of a tile one tile
ahead: that latency passes while the tile before is multiplied.
"""

import triton
import triton.language as tl

from .prefetch import prefetch_gathered_l2, prefetch_tile_l2


@triton.jit
def tile_pages(
    table_ptr, first, end, BLOCK_KV: tl.constexpr, PAGE_SIZE: tl.constexpr, TILES_IN_PAGES: tl.constexpr
):  # fmt: skip
    """Pages of keys [first, first + BLOCK_KV), 0 for those from ``end`` on, whose entries are left alone.

    TILES_IN_PAGES says that no tile reaches into a second page: one entry serves it. Otherwise each key has its own,
    (BLOCK_KV,): keys of one page ask for the same word, which costs less than handing it from thread to thread.
    """
    if TILES_IN_PAGES:
        pages = tl.load(table_ptr + first // PAGE_SIZE, mask=first < end, other=0)
    else:
        keys = first + tl.arange(0, BLOCK_KV)
        pages = tl.load(table_ptr + keys // PAGE_SIZE, mask=keys < end, other=0)
    return pages


@triton.jit
def page_rows(
    pages,
    first,
    page_stride,
    row_stride,
    BLOCK_KV: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    TILES_IN_PAGES: tl.constexpr,
):
    """Where the rows of a tile start, in elements from the first row of page 0: int64 (BLOCK_KV,)."""
    if TILES_IN_PAGES:
        rows = first % PAGE_SIZE + tl.arange(0, BLOCK_KV)
    else:
        rows = (first + tl.arange(0, BLOCK_KV)) % PAGE_SIZE
    return pages.to(tl.int64) * page_stride + rows.to(tl.int64) * row_stride


@triton.jit
def prefetch_paged_l2(
    k_head_ptr, v_head_ptr, table_ptr, target, limit, k_page_stride, v_page_stride, k_row_stride, v_row_stride,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    BLOCK_KV: tl.constexpr, PREFETCH_BULK: tl.constexpr, EVICTION: tl.constexpr, ROWS_ADJACENT: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    TILES_IN_PAGES: tl.constexpr,
):  # fmt: skip
    """Ask L2 for the tile at ``target`` of a paged cache: waits for its table entries, unlike the prefetch itself."""
    if target < limit:
        if TILES_IN_PAGES:
            page = tl.load(table_ptr + target // PAGE_SIZE).to(tl.int64)
            row = target % PAGE_SIZE
            row_end = row + (limit - target)
            prefetch_tile_l2(
                k_head_ptr + page * k_page_stride, row, row_end, k_row_stride,
                HEAD_DIM, BLOCK_D, BLOCK_KV, PREFETCH_BULK, EVICTION, ROWS_ADJACENT,
            )  # fmt: skip
            prefetch_tile_l2(
                v_head_ptr + page * v_page_stride, row, row_end, v_row_stride,
                VALUE_DIM, BLOCK_DV, BLOCK_KV, PREFETCH_BULK, EVICTION, ROWS_ADJACENT,
            )  # fmt: skip
        else:
            keys = tl.minimum(target + tl.arange(0, BLOCK_KV), limit - 1)
            pages = tl.load(table_ptr + keys // PAGE_SIZE).to(tl.int64)
            rows = (keys % PAGE_SIZE).to(tl.int64)
            prefetch_gathered_l2(
                k_head_ptr, pages * k_page_stride + rows * k_row_stride, HEAD_DIM, BLOCK_D, PREFETCH_BULK, EVICTION
            )
            prefetch_gathered_l2(
                v_head_ptr, pages * v_page_stride + rows * v_row_stride, VALUE_DIM, BLOCK_DV, PREFETCH_BULK, EVICTION
            )
