"""Lengths around every edge: tiles, splits, capacity. One small kernel each, so that there can be many."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from prefetch_compiler.config import LoadPath, Merge, OperandOrder, Partition

from .cases import Case, build, solve
from .error_bounds import assert_within_bound

SMALL = Case(batch=1, kv_heads=1, group=2, mask="prefix")
KERNELS = {
    "one split": SMALL,
    "3 splits": replace(SMALL, num_splits=3),
    "4 splits in place": replace(SMALL, num_splits=4, merge=Merge.INPLACE, operand_order=OperandOrder.KQ),
    "4 strided splits": replace(SMALL, num_splits=4, partition=Partition.STRIDED),
    "3 chunks": replace(SMALL, num_splits=3, partition=Partition.CHUNKED),
    "3 balanced splits": replace(SMALL, num_splits=3, partition=Partition.BALANCED),
    "3 streamed programs of 2 sequences": replace(SMALL, batch=2, num_splits=3, partition=Partition.STREAMED),
    "strided TMA": replace(
        SMALL, num_splits=2, load_path=LoadPath.TMA, dtype=torch.float16, partition=Partition.STRIDED
    ),
    "streamed TMA": replace(
        SMALL, batch=2, num_splits=3, load_path=LoadPath.TMA, dtype=torch.float16, partition=Partition.STREAMED
    ),
    "TMA": replace(SMALL, num_splits=2, load_path=LoadPath.TMA, dtype=torch.float16),
}


def lengths(block_kv: int, tiles: int) -> list[int]:
    """1, and each multiple of a tile with its neighbours."""
    return [1, *(tile * block_kv + extra for tile in range(1, tiles + 1) for extra in (-1, 0, 1))]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("keys", lengths(block_kv=16, tiles=5))
def test_length(kernel: str, keys: int) -> None:
    case = replace(KERNELS[kernel], tiles=0, extra_keys=keys)
    operands = build(case)
    assert_within_bound(solve(case, operands), operands)


@pytest.mark.parametrize("num_splits", [1, 5])
@pytest.mark.parametrize("keys", [1, 15, 16, 17, 33])
def test_a_full_cache(keys: int, num_splits: int) -> None:
    case = replace(SMALL, mask="none", tiles=0, extra_keys=keys, num_splits=num_splits)
    operands = build(case)
    assert_within_bound(solve(case, operands), operands)


@pytest.mark.parametrize("q_len", range(1, 17))
def test_query_length(q_len: int) -> None:
    case = replace(SMALL, group=3, q_len=q_len, mask="left_padded_causal", num_splits=2)
    operands = build(case)
    assert_within_bound(solve(case, operands), operands)


@pytest.mark.parametrize("keys", [1, 3, 16, 40])
@pytest.mark.parametrize("q_len", [1, 2, 5, 16])
def test_causal_is_aligned_to_the_top_left(q_len: int, keys: int) -> None:
    case = replace(SMALL, mask="causal", q_len=q_len, tiles=0, extra_keys=keys, num_splits=2)
    operands = build(case)
    assert_within_bound(solve(case, operands), operands)
