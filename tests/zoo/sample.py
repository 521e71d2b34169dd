"""The cells that the usual suite judges: a third of the quick ones, with every architecture and each kind of outcome."""

from __future__ import annotations

from .cell import Cell, all_cells
from .models import ZOO
from .record import Record
from .workload import Workload

Run = tuple[Cell, Workload]


def all_runs() -> tuple[Run, ...]:
    """Every cell under each of its workloads."""
    return tuple((cell, workload) for cell in all_cells() for workload in cell.workloads)


# A step that Dynamo breaks into more graphs takes ten times as long to compile as most.
MOST_GRAPHS = 8


def quick_cells(record: Record) -> tuple[Cell, ...]:
    """Cells of few graphs."""
    return tuple(
        cell for cell in all_cells() if all(outcome.graphs <= MOST_GRAPHS for outcome in record.of(cell).values())
    )


def representative(record: Record) -> tuple[Run, ...]:
    """Every third quick cell of each architecture, beginning elsewhere in the next one, under one workload, in turn;
    and the first cell with each outcome, attention implementation and cache that none of these has."""
    chosen = {(cell.key, workload.name): (cell, workload) for cell, workload in _every_third(record)}
    seen = {_form(run, record) for run in chosen.values()}
    for cell, workload in all_runs():
        form = _form((cell, workload), record)
        if form not in seen:
            seen.add(form)
            chosen[cell.key, workload.name] = cell, workload
    return tuple(run for run in all_runs() if (run[0].key, run[1].name) in chosen)


def _every_third(record: Record) -> list[Run]:
    runs: list[Run] = []
    quick = quick_cells(record)
    for number, model in enumerate(ZOO):
        for at, cell in enumerate(cell for cell in quick if cell.model is model):
            if (number + at) % 3 == 0:
                runs.append((cell, cell.workloads[(number + at // 3) % len(cell.workloads)]))
    return runs


def _form(run: Run, record: Record) -> tuple[object, ...]:
    cell, workload = run
    outcome = record.of(cell).get(workload.name)
    return cell.attention, cell.cache, outcome and outcome.kind
