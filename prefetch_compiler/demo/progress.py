"""Progress on standard error, so that standard output holds nothing but the result."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


class StageProgress:
    """One line per stage, with a bar where a stage counts its units. ``seconds`` holds each finished stage's time."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str, units: int | None = None) -> Iterator[Callable[[], None]]:
        """Show ``name`` as running; call what is yielded once per unit done."""
        task = self._progress.add_task(name, total=units)
        began = time.perf_counter()
        yield lambda: self._progress.advance(task)
        self.seconds[name] = round(time.perf_counter() - began, 1)
        self._progress.update(task, total=units or 1, completed=units or 1)


@contextmanager
def stage_progress(console: Console) -> Iterator[StageProgress]:
    """A live display on ``console``; plain text where it is no terminal."""
    columns = (
        SpinnerColumn(finished_text="✓"),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        yield StageProgress(progress)
