"""What a person, or a machine, sees of a running job."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table

from .events import Ending, Event, JobFinished, JobStarted, KeyFinished, KeyStarted, Report, TrialFinished, silent

_STYLES = {Ending.TUNED: "green", Ending.FAILED: "red", Ending.MODELLED: "yellow"}


def json_lines(event: Event) -> None:
    """One JSON object a line, on standard output, as it happens."""
    print(json.dumps(event.to_dict()), file=sys.stdout, flush=True)


@contextmanager
def live(console: Console) -> Iterator[Report]:
    """A bar for the key at hand, and a line for each that is done."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[state]}"),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        yield _LiveReport(console, progress)


class _LiveReport:
    def __init__(self, console: Console, progress: Progress) -> None:
        self._console, self._progress = console, progress
        self._task: TaskID | None = None

    def __call__(self, event: Event) -> None:
        if isinstance(event, JobStarted):
            what = f"{event.keys} keys, {event.trials} trials each, {event.sampler}"
            self._console.print(f"tuning for [bold]{escape(event.device)}[/]: {what}")
        elif isinstance(event, KeyStarted):
            self._drop()
            name = f"[{event.number}/{event.keys}] {event.key}"
            self._task = self._progress.add_task(escape(name), total=None, state="")
        elif isinstance(event, TrialFinished) and self._task is not None:
            self._progress.update(self._task, completed=event.trial, total=event.trials, state=state_of(event))
        elif isinstance(event, KeyFinished):
            self._drop()
            self._console.print(line_of(event), soft_wrap=True, highlight=False)

    def _drop(self) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None


def state_of(event: TrialFinished) -> str:
    """``best 19.7 us, 3412 GB/s, 81% of the ceiling, 12 s left``."""
    parts = []
    if event.best_us is not None:
        parts.append(f"best {event.best_us:.1f} us")
    if event.gb_per_s is not None:
        parts.append(f"{event.gb_per_s:.0f} GB/s")
    if event.ceiling_share is not None:
        parts.append(f"{event.ceiling_share:.0%} of the ceiling")
    if event.eta_s is not None:
        parts.append(f"{event.eta_s:.0f} s left")
    return ", ".join(parts)


def line_of(event: KeyFinished) -> str:
    """One line for a key that is done, with markup."""
    style = _STYLES.get(event.ending, "dim")
    head = f"[{style}]{event.ending.value:>9}[/] {escape(event.key)}"
    if event.time_us is None:
        return f"{head}: {escape(event.reason)}"
    gain = f"{event.gain:.3f}x the default" if event.gain is not None else ""
    return f"{head}: {event.time_us:.1f} us, {gain} [dim]{escape(event.config or '')}[/]"


def summary_table(keys: tuple[KeyFinished, ...]) -> Table:
    """Every key of the job: its time, share of the read ceiling, and gains over the heuristic and over depth 0."""
    table = Table(title="tuned keys", title_justify="left")
    table.add_column("key", overflow="fold", ratio=1)
    table.add_column("outcome", no_wrap=True)
    for name in ("us", "GB/s", "ceiling", "gain", "depth 0", "trials"):
        table.add_column(name, justify="right", no_wrap=True)
    for event in keys:
        style = _STYLES.get(event.ending, "dim")
        table.add_row(
            escape(event.key),
            f"[{style}]{event.ending.value}[/]",
            _number(event.time_us, ".1f"),
            _number(event.gb_per_s, ".0f"),
            _number(event.ceiling_share, ".0%"),
            _number(event.gain, ".3f"),
            _number(event.depth0_gain, ".3f"),
            str(event.trials),
        )
    return table


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def closing_line(finished: JobFinished) -> str:
    """Where the records are, and what they gain."""
    gains = []
    if finished.gain is not None:
        gains.append(f"{finished.gain:.3f}x the heuristic")
    if finished.depth0_gain is not None:
        gains.append(f"{finished.depth0_gain:.3f}x the best without prefetch")
    gained = f" (geometric means: {', '.join(gains)})" if gains else ""
    failed = f", {finished.failed} failed" if finished.failed else ""
    return f"{finished.records} records{failed} in {finished.seconds:.0f} s{gained}\n{finished.database}"


@contextmanager
def reporting(quiet: bool, as_json: bool) -> Iterator[Report]:
    """JSON lines, nothing, or live progress on standard error."""
    if as_json:
        yield json_lines
    elif quiet:
        yield silent
    else:
        with live(Console(stderr=True)) as report:
            yield report
