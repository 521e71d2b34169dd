"""bench paper on a GPU, on cases small enough to take seconds."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from prefetch_compiler.bench.cli import app
from prefetch_compiler.bench.paper import ncu, profiled
from prefetch_compiler.bench.paper.case import PaperCase
from prefetch_compiler.bench.paper.check import verified, yardstick_of
from prefetch_compiler.bench.paper.clock import GraphClock
from prefetch_compiler.bench.paper.contestants import cudnn, paper_style
from prefetch_compiler.bench.paper.inputs import make_inputs
from prefetch_compiler.bench.paper.kernel import WARPS
from prefetch_compiler.bench.paper.result import read_run
from prefetch_compiler.bench.paper.variant import PAPER_STYLE, Column

pytestmark = pytest.mark.gpu

DEVICE = torch.device("cuda", 0)
needs_bulk_prefetch = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.version.hip is not None or torch.cuda.get_device_capability() < (9, 0),
    reason="bulk prefetch needs sm_90 or later",
)


@needs_bulk_prefetch
@pytest.mark.parametrize("case", ["Llama2-7B:1x527", "Qwen2.5-7B:3x95", "Qwen2.5-14B:2x16"])
def test_every_variant_is_right_at_any_number_of_warps(case: str) -> None:
    inputs = make_inputs(PaperCase.parse(case), 1, DEVICE, seed=3)
    expected = yardstick_of(inputs)
    for warps in WARPS:
        for column in PAPER_STYLE:
            inputs.paged[0].out.fill_(float("nan"))
            assert verified(paper_style(inputs, column, warps), expected) <= 1


def median_us(case: str, caches: int) -> float:
    """Of one launch of the paper's kernel, without prefetching."""
    inputs = make_inputs(PaperCase.parse(case), caches, DEVICE, seed=0)
    clock = GraphClock(inputs)
    return statistics.median(clock.rounds([clock.prepare(paper_style(inputs, Column.NONE, 4).launch)], 9)[0])


@needs_bulk_prefetch
def test_times_are_those_of_one_launch() -> None:
    """As long over two caches as over four, and longer over four times the keys."""
    two = median_us("Llama2-7B:16x527", 2)
    assert median_us("Llama2-7B:16x527", 4) == pytest.approx(two, rel=0.25)
    assert median_us("Llama2-7B:16x2108", 2) > 2 * two


def test_cudnn_is_captured_and_right() -> None:
    inputs = make_inputs(PaperCase.parse("Llama3-8B:2x527"), 2, DEVICE, seed=0)
    contestant = cudnn(inputs)
    try:
        share = verified(contestant, yardstick_of(inputs))
    except RuntimeError as error:
        pytest.skip(f"cuDNN refuses: {error}")
    assert share <= 1
    clock = GraphClock(inputs)
    assert clock.rounds([clock.prepare(contestant.launch)], 3)[0][0] > 0


@needs_bulk_prefetch
def test_the_command_measures_a_tiny_case(tmp_path: Path) -> None:
    path = tmp_path / "paper.json"
    words = ["paper", "--models", "Qwen2.5-7B", "--batches", "1", "--contexts", "527", "--rounds", "3", "--search", "3"]
    result = CliRunner().invoke(app, [*words, "--json", "--out", str(path)])
    assert result.exit_code == 0, result.output
    (case,) = read_run(path).cases
    for column in Column:
        if column is not Column.CUDNN:
            assert case.us(column), column
    assert case.caches * case.kv_bytes >= 4 * torch.cuda.get_device_properties(DEVICE).L2_cache_size
    assert json.loads(result.stdout)["summary"]["over_best_prefetch"] > 1


@needs_bulk_prefetch
def test_the_driver_launches_what_the_counters_are_named_after() -> None:
    assert profiled.run([(PaperCase.parse("Qwen2.5-7B:1x527"), 4)], 0, DEVICE) == len(ncu.PROFILED_COLUMNS)
