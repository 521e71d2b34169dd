"""Paged caches on a GPU: every way to load them, and calls that a CUDA graph holds while lengths and tables change."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from prefetch_compiler import DecodeOptions, paged_decode_attention
from prefetch_compiler.config import KernelConfig, LoadPath, Merge, OperandOrder, Partition, PrefetchKind
from prefetch_compiler.device import profile
from prefetch_compiler.select.admissible import why_inadmissible

from ..contract.error_bounds import assert_within_bound
from ..contract.paged import PagedProblem, paged_problem
from ..contract.quantised_cases import E4M3, E5M2, INT8
from ..contract.test_template_paged import paged_spec, solve

pytestmark = pytest.mark.gpu

STRICT = DecodeOptions(strict=True)
CONFIG = KernelConfig(block_kv=32, num_splits=4, num_warps=4, num_stages=3)
QUANTISED = replace(CONFIG, num_warps=2, operand_order=OperandOrder.KQ)
LENGTHS = (0, 1, 500, 1024, 2047)


def llama_like(page_size: int, lengths: tuple[int, ...] = LENGTHS, **more: Any) -> PagedProblem:
    return paged_problem(
        lengths, page_size, capacity=2048, group=4, kv_heads=8, head_dim=128, value_dim=128, dtype=torch.bfloat16,
        **more,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("partition", "merge"),
    [
        (Partition.EVEN, Merge.INPLACE),
        (Partition.STRIDED, Merge.SEPARATE),
        (Partition.CHUNKED, Merge.SEPARATE),
        (Partition.BALANCED, Merge.INPLACE),
        (Partition.STREAMED, Merge.SEPARATE),
    ],
)
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
    reason = why_inadmissible(paged_spec(problem), config, profile(problem.q.device))
    if reason is not None:
        pytest.skip(reason)
    assert_within_bound(solve(problem, config), problem)


@pytest.mark.parametrize("partition", Partition)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"load_path": LoadPath.TMA},
        {"load_path": LoadPath.TMA, "num_warps": 4, "block_kv": 64},
        {"prefetch_depth": 2},
        {"prefetch_depth": 3, "prefetch_kind": PrefetchKind.BULK},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("page_size", "kv_dtype", "scales"), [(1, INT8, "token"), (16, E4M3, "head"), (64, E5M2, "token")], ids=str
)
def test_every_way_to_load_quantised_pages(
    page_size: int, kv_dtype: torch.dtype, scales: str, changes: dict[str, object], partition: Partition
) -> None:
    problem = llama_like(page_size, kv_dtype=kv_dtype, scales=scales)
    config = replace(QUANTISED, partition=partition, **changes)  # type: ignore[arg-type]
    reason = why_inadmissible(paged_spec(problem), config, profile(problem.q.device))
    if reason is not None:
        pytest.skip(reason)
    assert_within_bound(solve(problem, config), problem)


def called(problem: PagedProblem) -> Tensor:
    return paged_decode_attention(
        problem.q, problem.key_pages, problem.value_pages, problem.table, problem.lengths, problem.key_scale,
        problem.value_scale, is_causal=problem.causal, scale=problem.scale, softcap=problem.softcap, sink=problem.sink,
        options=STRICT,
    )  # fmt: skip


@pytest.mark.parametrize("kv_dtype", [None, E4M3, INT8], ids=str)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length_dtype", [torch.int32, torch.int64])
def test_several_queries(length_dtype: torch.dtype, causal: bool, kv_dtype: torch.dtype | None) -> None:
    problem = llama_like(16, (0, 3, 500, 1024, 2047), q_len=5, causal=causal, kv_dtype=kv_dtype)
    assert_within_bound(called(replace(problem, lengths=problem.lengths.to(length_dtype))), problem)


@pytest.mark.parametrize("kv_dtype", [None, E4M3, INT8], ids=str)
@pytest.mark.parametrize("extra", [{"softcap": 2.0}, {"sink": True}, {"softcap": 2.0, "sink": True}], ids=str)
def test_soft_caps_and_sinks(extra: dict[str, Any], kv_dtype: torch.dtype | None) -> None:
    problem = llama_like(16, q_len=2, causal=True, kv_dtype=kv_dtype, **extra)
    assert_within_bound(called(problem), problem)


@pytest.mark.parametrize(
    ("page_size", "kv_dtype"), [(1, None), (16, None), (64, None), (256, None), (16, E4M3), (64, INT8)], ids=str
)
def test_a_graph_follows_lengths_and_tables(page_size: int, kv_dtype: torch.dtype | None) -> None:
    """Captured with some lengths and pages, replayed with others, and nothing waits for the device meanwhile."""
    names = ["q", "key_pages", "value_pages", "table", "lengths"]
    names += ["key_scale", "value_scale"] if kv_dtype is not None else []
    first, second = (llama_like(page_size, lengths, kv_dtype=kv_dtype) for lengths in (LENGTHS, (2048, 7, 0, 65, 1500)))
    held = replace(first, **{name: getattr(first, name).clone() for name in names})
    called(held)
    torch.cuda.set_sync_debug_mode("error")
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = called(held)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for problem in (first, second, first):
        for name in names:
            getattr(held, name).copy_(getattr(problem, name))
        graph.replay()
        assert_within_bound(out, problem)
