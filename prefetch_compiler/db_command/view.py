"""Databases as tables for people, and as plain data for ``--json``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from rich.markup import escape
from rich.table import Table

from ..database.canonical import plain_record
from ..database.document import Database
from ..database.errors import describe
from ..database.merge import Change, Difference, objective_us
from ..database.record import TuningRecord
from .summary import Summary, gain_over_default, gain_over_depth0, shape_name
from .verify import Checked


def summary_lines(database: Database, summary: Summary) -> Iterable[str]:
    yield f"[bold]{escape(describe(database.device))}[/]"
    unmeasured = summary.records - summary.measured
    yield f"{summary.records} records" + (f", {unmeasured} of them [yellow]unmeasured[/]" if unmeasured else "")
    if database.family_fallback:
        yield "declared as a fallback for other GPUs of its family"
    if summary.gain_over_default is not None and summary.gain_over_depth0 is not None:
        yield (
            f"geometric-mean gain: {summary.gain_over_default:.3f}x over the default, "
            f"{summary.gain_over_depth0:.3f}x over the best without prefetch"
        )
        depths = ", ".join(f"{depth} in {count}" for depth, count in summary.depths.items())
        yield f"prefetch depths that won: {depths}"
    if summary.mean_ceiling_share is not None:
        yield f"mean share of the read ceiling: {summary.mean_ceiling_share:.0%}"


def coverage_table(summary: Summary) -> Table:
    """One row a shape: which batches and capacities are covered."""
    table = _table("coverage", "shape", "batches", "capacities", "records")
    for shape in summary.shapes:
        batches, capacities = (", ".join(map(str, sizes)) for sizes in (shape.batches, shape.capacities))
        table.add_row(escape(shape.name), batches, capacities, str(shape.records))
    return table


def records_tables(records: Sequence[TuningRecord]) -> Iterator[Table]:
    """One table a shape, one row a record."""
    shapes: dict[str, list[TuningRecord]] = {}
    for record in records:
        shapes.setdefault(shape_name(record.key), []).append(record)
    for name, members in shapes.items():
        table = _table(
            escape(name), "batch", "capacity", "config", "µs", "over\ndefault", "over\ndepth 0", "of read\nceiling"
        )
        for record in members:
            sizes = (record.key.batch_bucket, record.key.capacity_bucket)
            table.add_row(*map(str, sizes), record.config.encode(), *_figures(record))
        yield table


def _figures(record: TuningRecord) -> tuple[str, str, str, str]:
    measurement = record.evidence.measurement
    if measurement is None:
        return f"[yellow]({objective_us(record):.1f})[/]", "-", "-", "-"
    share = f"{measurement.ceiling_share:.0%}" if measurement.ceiling_share else "-"
    gains = (gain_over_default(measurement), gain_over_depth0(measurement))
    return f"{measurement.timing.median_us:.1f}", f"{gains[0]:.3f}", f"{gains[1]:.3f}", share


def shown(database: Database, summary: Summary) -> dict[str, Any]:
    return {
        "device": asdict(database.device),
        "family_fallback": database.family_fallback,
        "summary": asdict(summary),
        "records": [_plain(record) for record in database.records],
    }


def difference_table(difference: Difference) -> Table:
    table = _table(None, "", "key", "config", "time µs", "new over old")
    for record in difference.removed:
        table.add_row("[red]-[/]", escape(record.key.name), record.config.encode(), _time(record), "")
    for record in difference.added:
        table.add_row("[green]+[/]", escape(record.key.name), record.config.encode(), _time(record), "")
    for change in difference.changed:
        before, after = change.before, change.after
        configs = _arrow(before.config.encode(), after.config.encode())
        ratio = "-" if change.time_ratio is None else f"{change.time_ratio:.3f}"
        times = _arrow(_time(before), _time(after))
        table.add_row("[yellow]~[/]", escape(before.key.name), configs, times, ratio)
    return table


def difference_line(difference: Difference) -> str:
    counts = (len(difference.added), len(difference.removed), len(difference.changed))
    return "{} added, {} removed, {} changed".format(*counts)


def difference_data(difference: Difference) -> dict[str, Any]:
    return {
        "added": [_plain(record) for record in difference.added],
        "removed": [_plain(record) for record in difference.removed],
        "changed": [_change_data(change) for change in difference.changed],
    }


def _change_data(change: Change) -> dict[str, Any]:
    return {"before": _plain(change.before), "after": _plain(change.after), "time_ratio": change.time_ratio}


def checked_table(checked: Sequence[Checked]) -> Table:
    """One row for each record that failed."""
    table = _table("failed", "key", "config", "why")
    for one in checked:
        if one.problem is not None:
            table.add_row(escape(one.record.key.name), one.record.config.encode(), f"[red]{escape(one.problem)}[/]")
    return table


def checked_data(checked: Sequence[Checked]) -> list[dict[str, Any]]:
    return [
        {
            "key": one.record.key.name,
            "config": one.record.config.encode(),
            "problem": one.problem,
            "error": one.error,
            "time_ratio": one.time_ratio,
        }
        for one in checked
    ]


def _table(title: str | None, *headings: str) -> Table:
    table = Table(title=title, title_justify="left", pad_edge=False)
    for heading in headings:
        # In a narrow terminal names break over lines; nothing is cut off.
        table.add_column(heading, overflow="fold")
    return table


def _plain(record: TuningRecord) -> dict[str, Any]:
    return {"name": record.key.name, **plain_record(record)}


def _time(record: TuningRecord) -> str:
    return f"{objective_us(record):.1f}" if record.measured else f"({objective_us(record):.1f})"


def _arrow(before: str, after: str) -> str:
    return before if before == after else f"{before}\n→ {after}"
