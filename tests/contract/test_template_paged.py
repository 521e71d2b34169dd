"""Paged caches in the split-KV template: every page size and tile, lengths at every edge, garbage beyond them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from prefetch_compiler.config import KernelConfig, LoadPath, Merge, OperandOrder, Partition
from prefetch_compiler.device import profile
from prefetch_compiler.lower.launch import launch_decode
from prefetch_compiler.recognize.bounds import length_bounds
from prefetch_compiler.select.admissible import why_inadmissible
from prefetch_compiler.spec import AttentionSpec, TensorLayout

from .cases import DEVICE
from .error_bounds import assert_within_bound
from .paged import PagedProblem, paged_problem
from .poison import uninitialised_is_nan

PLAIN = KernelConfig(block_kv=16, num_splits=1, num_warps=4, num_stages=2)
PAGE_SIZES = [1, 16, 64, 256]


def solve(problem: PagedProblem, config: KernelConfig) -> Tensor:
    spec = spec_of(problem)
    assert why_inadmissible(spec, config, profile(DEVICE)) is None
    with uninitialised_is_nan():
        return launch_decode(
            problem.q, problem.key_pages, problem.value_pages, None, length_bounds(problem.lengths, spec.kv_len),
            is_causal=False, scale=problem.scale, heads_first=True, config=config, table=problem.table,
        )  # fmt: skip


def spec_of(problem: PagedProblem) -> AttentionSpec:
    batch, query_heads, q_len, head_dim = problem.q.shape
    return AttentionSpec(
        batch=batch,
        query_heads=query_heads,
        kv_heads=problem.k.shape[1],
        q_len=q_len,
        kv_len=problem.k.shape[2],
        head_dim=head_dim,
        value_dim=problem.v.shape[3],
        dtype=problem.q.dtype,
        scale=problem.scale,
        key_layout=TensorLayout(*problem.key_pages.stride()[:3]),
        value_layout=TensorLayout(*problem.value_pages.stride()[:3]),
        page_size=problem.key_pages.shape[2],
    )


def edges(page_size: int, block_kv: int, capacity: int) -> list[int]:
    """Nothing, one key, the first edges of pages and tiles with their neighbours, and all that there is room for."""
    at = {unit * times for unit in (page_size, block_kv) for times in (1, 2)}
    around = {edge + extra for edge in at for extra in (-1, 0, 1)} | {0, 1, capacity - 1, capacity}
    return sorted(length for length in around if 0 <= length <= capacity)


@pytest.mark.parametrize("block_kv", [16, 64])
@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_lengths_at_edges_of_pages_and_tiles(page_size: int, block_kv: int) -> None:
    capacity = max(2 * page_size, 3 * 64)
    problem = paged_problem(edges(page_size, block_kv, capacity), page_size, capacity=capacity, kv_heads=1)
    assert_within_bound(solve(problem, replace(PLAIN, block_kv=block_kv)), problem)


@pytest.mark.parametrize("partition", Partition)
@pytest.mark.parametrize("merge", Merge)
@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_splits(page_size: int, merge: Merge, partition: Partition) -> None:
    config = replace(PLAIN, num_splits=3, merge=merge, partition=partition)
    problem = paged_problem((0, 100, 37, 256), page_size, capacity=256, kv_heads=1)
    assert_within_bound(solve(problem, config), problem)


@pytest.mark.parametrize("pages_first", [True, False])
@pytest.mark.parametrize("order", OperandOrder)
@pytest.mark.parametrize("q_len", [1, 2, 3, 4])
@pytest.mark.parametrize("group", [1, 3, 8])
def test_query_heads_and_positions(group: int, q_len: int, order: OperandOrder, pages_first: bool) -> None:
    problem = paged_problem(
        (5, 40), 16, capacity=64, group=group, q_len=q_len, head_dim=40, value_dim=24, pages_first=pages_first
    )
    assert_within_bound(solve(problem, replace(PLAIN, block_kv=32, num_splits=2, operand_order=order)), problem)


@pytest.mark.parametrize("partition", Partition)
@pytest.mark.parametrize("order", OperandOrder)
@pytest.mark.parametrize("page_size", [16, 64])
def test_tma(page_size: int, order: OperandOrder, partition: Partition) -> None:
    config = replace(PLAIN, num_splits=2, load_path=LoadPath.TMA, operand_order=order, partition=partition)
    problem = paged_problem(edges(page_size, 16, 128), page_size, capacity=128, kv_heads=1, dtype=torch.float16)
    assert_within_bound(solve(problem, config), problem)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("page_size", [1, 64])
def test_half_precision(page_size: int, dtype: torch.dtype) -> None:
    problem = paged_problem((3, 64, 65, 128), page_size, capacity=128, dtype=dtype, head_dim=64, value_dim=64)
    assert_within_bound(solve(problem, replace(PLAIN, num_splits=2)), problem)


def test_sequences_may_share_pages() -> None:
    """As a common prompt does."""
    problem = paged_problem((64, 64), 16, capacity=64)
    table = problem.table.clone()
    table[1, :2] = table[0, :2]
    k, v = problem.k.clone(), problem.v.clone()
    k[1, :, :32], v[1, :, :32] = k[0, :, :32], v[0, :, :32]
    shared = replace(problem, table=table, k=k, v=v)
    assert_within_bound(solve(shared, PLAIN), shared)


def test_a_table_may_be_part_of_a_wider_one() -> None:
    problem = paged_problem((20, 33), 16, capacity=48)
    wide = torch.full((2, 9), -7, dtype=torch.int32, device=DEVICE)
    wide[:, 4:7] = problem.table
    assert_within_bound(solve(replace(problem, table=wide[:, 4:7]), PLAIN), problem)


@pytest.mark.parametrize("lengths", [(-5, 70), (-(2**31), 2**31 - 1)])
def test_lengths_outside_the_cache_count_as_its_ends(lengths: tuple[int, int]) -> None:
    problem = paged_problem((0, 48), 16, capacity=48)
    given = torch.tensor(lengths, dtype=torch.int32, device=DEVICE)
    assert torch.equal(solve(replace(problem, lengths=given), PLAIN), solve(problem, PLAIN))


def test_pages_smaller_than_tiles_are_not_for_tma() -> None:
    problem = paged_problem((5,), 16, capacity=32, dtype=torch.float16)
    config = replace(PLAIN, block_kv=32, load_path=LoadPath.TMA)
    reason = why_inadmissible(spec_of(problem), config, profile(DEVICE))
    assert reason is not None
    assert "pages of whole tiles" in reason
    assert why_inadmissible(spec_of(problem), replace(config, block_kv=16), profile(DEVICE)) is None


def test_no_table_is_read_before_it_may_be() -> None:
    reason = why_inadmissible(
        spec_of(paged_problem((5,), 16, capacity=32)), replace(PLAIN, prologue_prefetch=True), profile(DEVICE)
    )
    assert reason is not None
    assert "table" in reason
