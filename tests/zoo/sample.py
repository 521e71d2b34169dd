"""The cells that the usual suite judges: a third, with every architecture and every kind of outcome."""

from __future__ import annotations

from collections import Counter

from .cell import Cell, all_cells
from .outcome import Kind
from .record import Record
from .workload import CHUNKS, PADDED, SINGLE, Workload

Run = tuple[Cell, Workload]

# Of the cells with one outcome every which is judged, so that all are a third, and take minutes. What transformers
# refuses takes no time; where nothing of ours is in the graph, Inductor alone is tested.
EVERY = {Kind.UNSUPPORTED: 1, Kind.NOT_RECOGNISED: 5}
EVERY_OTHER_KIND = 4
# Four sequences take the interpreter four times as long as one.
TURNS = (PADDED, SINGLE, CHUNKS, SINGLE, CHUNKS)
# A step that Dynamo breaks into more graphs takes ten times as long to compile as most: for the whole zoo only.
MOST_GRAPHS = 8


def all_runs() -> tuple[Run, ...]:
    """Every cell under each of its workloads."""
    return tuple((cell, workload) for cell in all_cells() for workload in cell.workloads)


def representative(record: Record) -> tuple[Run, ...]:
    """A part of the cells with each outcome, under one workload, in turn; and the first run of each architecture, and
    of each outcome with each attention implementation and cache, that is not among these."""
    chosen = _some_of_each_kind(record)
    seen = {form for run in chosen for form in _forms(run, record)}
    for run in sorted(all_runs(), key=lambda run: run[1] is PADDED):
        new = _forms(run, record) - seen
        if new:
            seen |= new
            chosen.append(run)
    return tuple(run for run in all_runs() if run in chosen)


def _some_of_each_kind(record: Record) -> list[Run]:
    met: Counter[Kind | None] = Counter()
    chosen: list[Run] = []
    for cell in all_cells():
        outcomes = record.of(cell).values()
        if any(outcome.graphs > MOST_GRAPHS for outcome in outcomes):
            continue
        kind = next((outcome.kind for outcome in outcomes), None)
        if met[kind] % EVERY.get(kind, EVERY_OTHER_KIND) == 0:
            workload = TURNS[len(chosen) % len(TURNS)]
            chosen.append((cell, workload if workload in cell.workloads else cell.workloads[0]))
        met[kind] += 1
    return chosen


def _forms(run: Run, record: Record) -> set[tuple[object, ...]]:
    cell, workload = run
    outcome = record.of(cell).get(workload.name)
    return {(cell.model.name,), (cell.attention, cell.cache, outcome and outcome.kind)}
