"""The kernel rebuilt from arXiv 2504.06319, in Triton's interpreter: against float64, and what it would prefetch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from prefetch_compiler.bench.paper.case import PaperCase
from prefetch_compiler.bench.paper.inputs import Problem, make_inputs
from prefetch_compiler.bench.paper.kernel import BLOCK_KV, PAPER_DECODE, PagedTensors, example_tensors, paper_call
from prefetch_compiler.bench.paper.models import PaperModel
from prefetch_compiler.bench.paper.paging import paged_copy
from prefetch_compiler.bench.paper.variant import PREFETCH_OF, Column, Prefetch
from prefetch_compiler.device import interpreting
from prefetch_compiler.error_bound import yardstick

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
VARIANTS = pytest.mark.parametrize("column", PREFETCH_OF, ids=lambda column: column.name)
MODELS = {
    "MHA": PaperModel("MHA", 2, 2, 64, 1.0),
    "GQA": PaperModel("GQA", 6, 2, 64, 1.0),
    "MQA d128": PaperModel("MQA", 3, 1, 128, 1.0),
}


def launched(tensors: PagedTensors, prefetch: Prefetch, scale: float) -> Tensor:
    """The output as (batch, query_heads, 1, head_dim); NaN where nothing was written."""
    tensors.out.fill_(float("nan"))
    paper_call(tensors, prefetch, 4, scale).launch()
    return tensors.out[:, :, None]


@VARIANTS
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("context", [1, 15, 16, 17, 83])
def test_the_kernel_is_within_the_error_bound(name: str, context: int, column: Column) -> None:
    inputs = make_inputs(PaperCase(MODELS[name], 2, context), 1, DEVICE, seed=context)
    problem = inputs.problems[0]
    out = launched(inputs.paged[0], PREFETCH_OF[column], problem.scale)
    assert yardstick(problem).share(out) <= 1.0


def ragged(lengths: list[int], model: PaperModel) -> tuple[PagedTensors, Problem]:
    """Sequences of different lengths in one table; what none of them holds is NaN in the pages."""
    inputs = make_inputs(PaperCase(model, len(lengths), max(lengths)), 1, DEVICE, seed=1)
    problem, paged = inputs.problems[0], inputs.paged[0]
    held = torch.tensor(lengths, dtype=torch.int32, device=DEVICE)
    visible = torch.arange(max(lengths), device=DEVICE) < held[:, None]
    poisoned = [cache.masked_fill(~visible[:, None, :, None], float("nan")) for cache in (problem.k, problem.v)]
    pages = [paged_copy(cache, paged.table) for cache in poisoned]
    tensors = replace(paged, k=pages[0], v=pages[1], lengths=held)
    return tensors, replace(problem, mask=visible[:, None, None, :])


@VARIANTS
def test_ragged_sequences_let_nothing_in_from_beyond_their_ends(column: Column) -> None:
    tensors, problem = ragged([1, 16, 33, 70, 47], MODELS["GQA"])
    out = launched(tensors, PREFETCH_OF[column], problem.scale)
    assert yardstick(problem).share(out) <= 1.0


def recorded_prefetches(
    monkeypatch: pytest.MonkeyPatch, tensors: PagedTensors, prefetch: Prefetch
) -> list[tuple[int, int]]:
    """(address, bytes) of every bulk prefetch that a launch would issue, in order."""
    asked: list[tuple[int, int]] = []

    def record(pointer: Any, span_bytes: Any) -> None:
        asked.append((int(pointer.handle.data[0]), int(span_bytes.handle.data[0])))

    monkeypatch.setattr(PAPER_DECODE.load("paper_decode"), "prefetch_span_l2", record)
    call = paper_call(tensors, prefetch, 4, 0.125)
    replace(call, constants={**call.constants, "EMULATED": False}).launch()
    return asked


def tile(tensors: PagedTensors, sequence: int, block: int, kv_head: int) -> tuple[int, int]:
    """Offset in bytes of one tile in its pool, and how many bytes of it the sequence holds."""
    page = int(tensors.table[sequence, block])
    held = min(BLOCK_KV, int(tensors.lengths[sequence]) - block * BLOCK_KV)
    row_bytes = tensors.k.shape[3] * 2
    return (page * tensors.k.shape[1] + kv_head) * BLOCK_KV * row_bytes, held * row_bytes


def expected_blocks(prefetch: Prefetch, blocks: int) -> list[int]:
    """Every block with the control; but for the first one, which is ahead of nothing, with the next tile."""
    return list(range(min(prefetch.depth, 1), blocks)) if prefetch.issued else []


@pytest.mark.skipif(not interpreting(), reason="only the interpreter runs the recorder")
@VARIANTS
@pytest.mark.parametrize("lengths", [[1, 16, 33, 70], [17, 31]])
def test_what_is_prefetched(monkeypatch: pytest.MonkeyPatch, lengths: list[int], column: Column) -> None:
    """Each tile of a sequence once, whole tiles of its own KV head, and no byte beyond its last key."""
    tensors, _ = ragged(lengths, MODELS["GQA"])
    asked = recorded_prefetches(monkeypatch, tensors, PREFETCH_OF[column])
    expected = [
        tile(tensors, sequence, block, head // 3)
        for sequence, length in enumerate(lengths)
        for head in range(6)
        for block in expected_blocks(PREFETCH_OF[column], -(-length // BLOCK_KV))
    ]
    # The interpreter may run on copies of the pools: their addresses are known by the lowest ones asked for.
    keys, values = asked[::2], asked[1::2]
    for found in (keys, values):
        assert sorted(relative(found)) == sorted(relative(expected))


def relative(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    lowest = min((start for start, _ in spans), default=0)
    return [(start - lowest, size) for start, size in spans]


def test_example_tensors_compile_what_a_case_launches() -> None:
    """The names and constants of a launch do not depend on the case."""
    inputs = make_inputs(PaperCase(MODELS["MQA d128"], 1, 20), 1, DEVICE, seed=0)
    real = paper_call(inputs.paged[0], PREFETCH_OF[Column.NEXT_2], 2, 0.1)
    example = paper_call(example_tensors(128), PREFETCH_OF[Column.NEXT_2], 2, 0.1)
    assert (real.constants, real.options, list(real.arguments)) == (
        example.constants,
        example.options,
        list(example.arguments),
    )
