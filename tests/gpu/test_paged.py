"""Paged caches on a GPU: every way to load them, and calls that a CUDA graph holds while lengths and tables change."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from prefetch_compiler import paged_decode_attention
from prefetch_compiler.config import KernelConfig, LoadPath, Merge, OperandOrder, Partition, PrefetchKind
from prefetch_compiler.device import profile
from prefetch_compiler.lower import paged_ops
from prefetch_compiler.select.admissible import why_inadmissible

from ..contract.error_bounds import assert_within_bound
from ..contract.paged import PagedProblem, paged_problem
from ..contract.test_template_paged import solve, spec_of

pytestmark = pytest.mark.gpu

CONFIG = KernelConfig(block_kv=32, num_splits=4, num_warps=4, num_stages=3)
LENGTHS = (0, 1, 500, 1024, 2047)


def llama_like(page_size: int, lengths: tuple[int, ...] = LENGTHS) -> PagedProblem:
    return paged_problem(
        lengths, page_size, capacity=2048, group=4, kv_heads=8, head_dim=128, value_dim=128, dtype=torch.bfloat16
    )


@pytest.mark.parametrize("partition", Partition)
@pytest.mark.parametrize("merge", Merge)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_stages": 1},
        {"load_path": LoadPath.TMA},
        {"operand_order": OperandOrder.KQ},
        {"operand_order": OperandOrder.KQ, "load_path": LoadPath.TMA},
        {"prefetch_depth": 2},
        {"prefetch_depth": 3, "prefetch_kind": PrefetchKind.BULK},
    ],
    ids=str,
)
@pytest.mark.parametrize("page_size", [1, 16, 64, 256])
def test_every_way_to_load(page_size: int, changes: dict[str, object], merge: Merge, partition: Partition) -> None:
    problem = llama_like(page_size)
    config = replace(CONFIG, merge=merge, partition=partition, **changes)  # type: ignore[arg-type]
    reason = why_inadmissible(spec_of(problem), config, profile(problem.q.device))
    if reason is not None:
        pytest.skip(reason)
    assert_within_bound(solve(problem, config), problem)


def called(problem: PagedProblem) -> Tensor:
    return paged_decode_attention(
        problem.q, problem.key_pages, problem.value_pages, problem.table, problem.lengths, scale=problem.scale
    )


@pytest.fixture(autouse=True)
def _kernels_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Tensor:
        raise AssertionError("the kernel was not used")

    monkeypatch.setattr(paged_ops, "gathered_attention", refuse)


@pytest.mark.parametrize("page_size", [1, 16, 64, 256])
def test_a_graph_follows_lengths_and_tables(page_size: int) -> None:
    """Captured with some lengths and pages, replayed with others, and nothing waits for the device meanwhile."""
    first, second = llama_like(page_size), llama_like(page_size, (2048, 7, 0, 65, 1500))
    held = replace(first, **{name: getattr(first, name).clone() for name in ("key_pages", "value_pages")})
    held = replace(held, table=first.table.clone(), lengths=first.lengths.clone(), q=first.q.clone())
    torch.cuda.set_sync_debug_mode("error")
    try:
        called(held)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = called(held)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for problem in (first, second, first):
        for name in ("q", "key_pages", "value_pages", "table", "lengths"):
            getattr(held, name).copy_(getattr(problem, name))
        graph.replay()
        assert_within_bound(out, problem)
