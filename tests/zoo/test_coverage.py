"""The coverage table cannot rot: cells are judged anew, and have to come out as recorded."""

from __future__ import annotations

import pytest
import torch

from . import rendering
from .cell import ATTENTIONS, CACHES, Cell, all_cells
from .decode import DEVICE
from .judge import compiled, judge
from .models import FAMILIES, named
from .outcome import Kind
from .record import read
from .sample import Run, all_runs, representative
from .workload import CHUNKS

RECORD = read()
COMPARABLE = RECORD.is_of_these_versions and DEVICE.type == "cpu"

# Triton's interpreter warns at every scalar that it converts: recording them takes longer than computing.
pytestmark = pytest.mark.filterwarnings("ignore")


# What users run most: never to be lost, whatever the record is made to say.
ALWAYS_LOWERED = ("Llama", "Qwen3", "Phi3", "Mixtral", "GPT-2", "Falcon", "Gemma3", "Whisper")
GROWING = Cell(named("Mistral"), cache="dynamic")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """``run`` and ``counted``: what the usual suite judges, or everything under --whole-zoo."""
    whole = metafunc.config.getoption("whole_zoo")
    if "run" in metafunc.fixturenames:
        runs = all_runs() if whole else representative(RECORD)
        metafunc.parametrize("run", runs, ids=lambda run: f"{run[0]}-{run[1]}")
    if "counted" in metafunc.fixturenames:
        counted = _counted_runs(all_runs() if whole else representative(RECORD))
        metafunc.parametrize("counted", counted, ids=lambda run: f"{run[0]}-{run[1]}")


def _counted_runs(runs: tuple[Run, ...]) -> list[Run]:
    """Of ``runs`` those with more graphs than one, which every run has. What a run is recorded to have is what it has:
    the test below asks that."""
    return [
        (cell, workload)
        for cell, workload in runs
        if (outcome := RECORD.of(cell).get(workload.name)) and outcome.graphs > 1
    ]


def test_a_cell_follows_eager_and_comes_out_as_recorded(run: Run) -> None:
    cell, workload = run
    if not COMPARABLE and RECORD.of(cell)[workload.name].kind is Kind.UNSUPPORTED:
        # An index out of bounds, for one, is an exception on a CPU; on a GPU nothing runs any more after it.
        pytest.skip("transformers itself does not run it")
    outcome = judge(cell, workload)  # fails where tokens, logits or cache differ from eager's
    if not COMPARABLE:
        pytest.skip(f"followed eager; outcomes are recorded on a CPU with {RECORD.versions}")
    assert outcome == RECORD.of(cell)[workload.name], (
        f"{cell.key}, {workload}: if this is what it should be, run `python -m tests.zoo.coverage --only '{cell.key}'`"
    )


def test_there_are_no_more_graphs_than_inductors(counted: Run) -> None:
    """A guard too many would compile anew, at every step where a cache grows. Dynamo alone, without a backend that has
    guards of its own, captures the fewest graphs; where we have more, Inductor has to have as many."""
    if not COMPARABLE:
        pytest.skip(f"graphs are recorded on a CPU with {RECORD.versions}")
    cell, workload = counted
    ours = RECORD.of(cell)[workload.name].graphs
    assert any(0 < ours <= compiled(cell, workload, backend).graphs for backend in ("eager", "inductor"))


def test_graphs_of_every_length_are_counted() -> None:
    with torch._dynamo.config.patch(automatic_dynamic_shapes=False):
        found = compiled(GROWING, CHUNKS, "eager")
    assert found.graphs >= CHUNKS.steps > RECORD.of(GROWING)[CHUNKS.name].graphs


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("name", ALWAYS_LOWERED)
def test_what_most_users_run_is_recorded_as_lowered(name: str, attention: str, cache: str) -> None:
    kinds = {outcome.kind for outcome in RECORD.of(Cell(named(name), attention, cache)).values()}
    without_flex = name in ("GPT-2", "Falcon")  # in transformers
    assert kinds == {Kind.UNSUPPORTED if without_flex and attention == "flex_attention" else Kind.LOWERED}


def test_every_cell_is_recorded() -> None:
    expected = {cell.key: {workload.name for workload in cell.workloads} for cell in all_cells()}
    assert {key: set(outcomes) for key, outcomes in RECORD.cells.items()} == expected


def test_the_table_is_rendered_from_the_record() -> None:
    assert rendering.PATH.read_text() == rendering.render(RECORD), "run `python -m tests.zoo.coverage --only-table`"


def test_the_sample_has_every_family_outcome_and_workload() -> None:
    sample = representative(RECORD)
    run = {cell.model for cell, workload in sample if RECORD.of(cell)[workload.name].kind is not Kind.UNSUPPORTED}
    assert all(len(run & set(family)) >= 2 for family in FAMILIES)

    def outcomes(runs: tuple[Run, ...]) -> set[tuple[str, str, Kind]]:
        return {(cell.attention, cell.cache, RECORD.of(cell)[workload.name].kind) for cell, workload in runs}

    def workloads(runs: tuple[Run, ...]) -> set[tuple[str, str]]:
        return {(cell.cache, workload.name) for cell, workload in runs}

    assert outcomes(sample) == outcomes(all_runs())
    assert workloads(sample) == workloads(all_runs())
