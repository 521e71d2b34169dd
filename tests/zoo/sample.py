"""The cells that the usual suite judges: a third, in which every architecture and every distinct outcome occurs."""

from __future__ import annotations

from .cell import Cell, all_cells
from .models import ZOO
from .record import Record
from .workload import Workload

Run = tuple[Cell, Workload]


def all_runs() -> tuple[Run, ...]:
    """Every cell under each of its workloads."""
    return tuple((cell, workload) for cell in all_cells() for workload in cell.workloads)


def representative(record: Record) -> tuple[Run, ...]:
    """Every third cell of each architecture, beginning elsewhere in the next one, under one workload, in turn; and the
    first cell with each outcome, attention implementation, cache and workload that none of these has."""
    chosen = {(cell.key, workload.name): (cell, workload) for cell, workload in _every_third()}
    seen = {_form(run, record) for run in chosen.values()}
    for cell, workload in all_runs():
        form = _form((cell, workload), record)
        if form not in seen:
            seen.add(form)
            chosen[cell.key, workload.name] = cell, workload
    return tuple(run for run in all_runs() if (run[0].key, run[1].name) in chosen)


def _every_third() -> list[Run]:
    runs: list[Run] = []
    for number, model in enumerate(ZOO):
        cells = [cell for cell in all_cells() if cell.model is model]
        for at, cell in enumerate(cells):
            if (number + at) % 3 == 0:
                runs.append((cell, cell.workloads[(number + at // 3) % len(cell.workloads)]))
    return runs


def _form(run: Run, record: Record) -> tuple[object, ...]:
    cell, workload = run
    outcome = record.of(cell).get(workload.name)
    return cell.attention, cell.cache, workload.name, outcome and outcome.kind
