"""What only a GPU's schedule can break: overlapped launches, arrival counters, CUDA graphs, prefetching."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from prefetch_compiler.config import LoadPath, Merge, PrefetchKind
from prefetch_compiler.device import profile
from prefetch_compiler.lower.launch import launch_decode
from prefetch_compiler.recognize.bounds import mask_bounds

from ..contract.cases import DEVICE, Case, Operands, build, config_of, solve, spec_of
from ..contract.error_bounds import assert_within_bound

pytestmark = pytest.mark.gpu

CASE = Case(
    batch=2, kv_heads=8, head_dim=128, value_dim=128, dtype=torch.bfloat16, tiles=8, block_kv=64, num_splits=5,
    mask="ragged",
)  # fmt: skip
ROUNDS = 200
needs_overlap = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (9, 0) or torch.version.hip is not None,
    reason="launch overlap needs sm_90 or later",
)


def queries(operands: Operands) -> list[Tensor]:
    """A different query for each round."""
    return [torch.roll(operands.q, shift, dims=3) * (1 + shift / ROUNDS) for shift in range(ROUNDS)]


def launch_all(case: Case, operands: Operands, q_of_round: list[Tensor]) -> list[Tensor]:
    """One launch after the other with nothing between them, so that scratch memory is handed from each to the next."""
    assert operands.mask is not None
    bounds = mask_bounds(operands.mask, case.capacity)
    mask = operands.mask.expand(case.batch, operands.q.shape[1], case.q_len, case.capacity)
    config = config_of(case, spec_of(case, operands), profile(DEVICE))
    return [
        launch_decode(
            q,
            operands.stale_k,
            operands.stale_v,
            mask,
            bounds,
            is_causal=False,
            scale=operands.scale,
            heads_first=True,
            config=config,
        )
        for q in q_of_round
    ]


@needs_overlap
@pytest.mark.parametrize("merge", Merge)
@pytest.mark.parametrize("load_path", [LoadPath.POINTER, LoadPath.TMA])
def test_overlapped_launches_wait_for_each_other(load_path: LoadPath, merge: Merge) -> None:
    """A launch that began before its predecessor was done with the scratch memory would give other bits."""
    overlapped = replace(CASE, merge=merge, load_path=load_path, launch_overlap=True)
    operands = build(CASE)
    expected = launch_all(replace(overlapped, launch_overlap=False), operands, queries(operands))
    results = launch_all(overlapped, operands, queries(operands))
    assert [torch.equal(one, other) for one, other in zip(results, expected, strict=True)] == [True] * ROUNDS


@needs_overlap
@pytest.mark.parametrize("merge", Merge)
def test_an_overlapped_launch_sees_what_was_written_before_it(merge: Merge) -> None:
    """K is written by a kernel of PyTorch's right before each decode."""
    case = replace(CASE, merge=merge, launch_overlap=True)
    operands = build(CASE)
    source = operands.stale_k.clone()
    expected, results = [], []
    for shift in range(ROUNDS):
        operands.stale_k.copy_(source * (1 + shift / ROUNDS))
        results += launch_all(case, operands, [operands.q])
        expected += launch_all(replace(case, launch_overlap=False), operands, [operands.q])
    assert [torch.equal(one, other) for one, other in zip(results, expected, strict=True)] == [True] * ROUNDS


@pytest.mark.parametrize("merge", Merge)
def test_a_captured_launch_can_be_replayed(merge: Merge) -> None:
    """Arrival counters, too, are as they must be at every replay."""
    case = replace(CASE, merge=merge)
    operands = build(case)
    original, expected = operands.q.clone(), []
    for q in queries(operands):
        operands.q.copy_(q)
        expected.append(solve(case, operands))
    graph, out = _capture(lambda: solve(case, operands))
    for q, right in zip(queries(replace(operands, q=original)), expected, strict=True):
        operands.q.copy_(q)
        graph.replay()
        assert torch.equal(out, right)


def _capture(step: Callable[[], Tensor]) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()
    return graph, out


@pytest.mark.parametrize("kind", PrefetchKind)
@pytest.mark.parametrize("depth", [1, 3, 8])
@pytest.mark.parametrize("layout", ["contiguous", "sliced"])
def test_prefetching_changes_no_bit(layout: str, depth: int, kind: PrefetchKind) -> None:
    case = replace(CASE, kv_layout=layout)
    operands = build(case)
    plain = solve(case, operands)
    assert_within_bound(plain, operands)
    assert torch.equal(solve(replace(case, prefetch_depth=depth, prefetch_kind=kind), operands), plain)
