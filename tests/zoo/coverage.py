"""``python -m tests.zoo.coverage``: judge cells, and write the record and the table in docs/coverage.md."""

from __future__ import annotations

import os
import time
import warnings
from typing import Annotated

os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports Triton

import torch
import typer

from .cell import Cell, all_cells
from .judge import judge
from .outcome import Outcome
from .record import Record, installed_versions, read, write
from .rendering import PATH, render

app = typer.Typer(add_completion=False)


@app.command()
def main(
    only: Annotated[list[str] | None, typer.Option(help="Judge only cells whose key holds this text.")] = None,
    missing: Annotated[bool, typer.Option(help="Judge only cells that the record does not have.")] = False,
    only_table: Annotated[bool, typer.Option(help="Judge nothing; render the table from the record.")] = False,
) -> None:
    """Without options every cell is judged, which takes an hour on one core. The record is saved after each cell."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    record = read()
    if not record.is_of_these_versions and not only_table:
        record = Record(installed_versions(), {})
    for cell in all_cells():
        if not only_table and _wanted(cell, record, only or [], missing):
            _judge(cell, record)
    PATH.write_text(render(record))


def _wanted(cell: Cell, record: Record, only: list[str], missing: bool) -> bool:
    if missing and set(record.of(cell)) == {workload.name for workload in cell.workloads}:
        return False
    return not only or any(text in cell.key for text in only)


def _judge(cell: Cell, record: Record) -> None:
    outcomes: dict[str, Outcome] = {}
    for workload in cell.workloads:
        start = time.process_time()
        try:
            outcomes[workload.name] = judge(cell, workload)
        except Exception as error:
            print(f"{cell.key} | {workload} | WRONG: {type(error).__name__}: {error}"[:400], flush=True)
            continue
        outcome = outcomes[workload.name]
        print(
            f"{cell.key} | {workload} | {outcome.kind.value} {outcome.lowered}/{cell.model.sites} "
            f"{'; '.join(outcome.reasons)} | {outcome.graphs} graphs, {time.process_time() - start:.1f} s",
            flush=True,
        )
    record.cells[cell.key] = outcomes
    write(record)


if __name__ == "__main__":
    app()
