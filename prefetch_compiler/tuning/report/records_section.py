"""The part of the page that shows a database: what its template needs, ready to be printed."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from ...database.errors import describe
from ...database.record import TuningRecord
from ...db_command.summary import Summary, summarise
from . import record_figures
from .coverage import Grid, grids
from .embedded import Figures
from .rows import Row, heads_of, rows_of
from .source import RecordsSource
from .theme import Tile, times

# Rows of a table; a page with more is slower than the database is interesting.
MAX_TABLE_ROWS = 5000


def records_section(source: RecordsSource, figures: Figures) -> dict[str, Any]:
    database = source.database
    rows = rows_of(database.records)
    covered = grids(database.records)
    summary = summarise(database.records)
    return {
        "source": source.name,
        "device": database.device,
        "device_line": describe(database.device),
        "family_fallback": database.family_fallback,
        "summary": summary,
        "tiles": _tiles(summary, rows, covered),
        "roofline": figures.add(record_figures.roofline(rows)),
        "bandwidths": figures.add(record_figures.bandwidths(rows)),
        "gains": figures.add(record_figures.gains(rows)),
        "gain_lines": _gain_lines(rows),
        "prefetch": figures.add(record_figures.prefetch_worth(rows)),
        "prefetch_lines": [
            f"{row.key.name}: {times(row.depth0_gain)}, {row.config.encode()}" for row in rows if row.config.prefetches
        ],
        "winners": [(name, figures.add(figure)) for name, figure in record_figures.winners(rows)],
        "grids": covered,
        "table": [_table_row(record) for record in database.records[:MAX_TABLE_ROWS]],
        "left_out": max(0, len(database.records) - MAX_TABLE_ROWS),
        "shapes": sorted({heads_of(record.key) for record in database.records}),
        "dtypes": sorted({record.key.dtype for record in database.records}),
        "toolchains": _toolchains(database.records),
    }


def _tiles(summary: Summary, rows: Sequence[Row], covered: Sequence[Grid]) -> list[Tile]:
    tiles = [Tile(f"{summary.records:,}", "records", f"of {len(covered)} attention shapes")]
    unmeasured = summary.records - summary.measured
    if unmeasured:
        tiles.append(Tile(f"{unmeasured:,}", "unmeasured", "ranked by a model, left out of figures"))
    if summary.gain_over_default is not None and summary.gain_over_depth0 is not None:
        gained = f"geometric mean; {sum(row.gain > 1 for row in rows)} of {len(rows)} gained"
        tiles.append(Tile(times(summary.gain_over_default), "the speed of the heuristic", gained))
        tiles.append(Tile(times(summary.gain_over_depth0), "the speed of the best without prefetch", "geometric mean"))
    shares = [row.share for row in rows if row.share is not None]
    if shares:
        spread = f"median; {min(shares):.0%} to {max(shares):.0%}"
        tiles.append(Tile(f"{statistics.median(shares):.0%}", "of the read ceiling", spread))
    if rows:
        prefetching = sum(row.config.prefetches for row in rows)
        tiles.append(Tile(f"{prefetching / len(rows):.0%}", "of winners prefetch", f"{prefetching} of {len(rows)}"))
    cells, served = sum(grid.cells for grid in covered), sum(grid.served for grid in covered)
    if cells:
        tiles.append(
            Tile(f"{served / cells:.0%}", "of the grid served", f"{served:,} of {cells:,} batches × capacities")
        )
    return tiles


def _gain_lines(rows: Sequence[Row]) -> list[str]:
    """How the gains are spread, in words."""
    if len(rows) < 2:
        return []
    lines = []
    for name, values in (
        ("heuristic", sorted(row.gain for row in rows)),
        ("best without prefetch", sorted(row.depth0_gain for row in rows)),
    ):
        cuts = statistics.quantiles(values, n=10, method="inclusive")
        lines.append(
            f"Against the {name}: median {times(statistics.median(values))}, a tenth of the records "
            f"below {times(cuts[0])} and a tenth above {times(cuts[-1])}, the most {times(values[-1])}."
        )
    return lines


def _table_row(record: TuningRecord) -> dict[str, Any]:
    rows = rows_of([record])
    return {
        "record": record,
        "row": rows[0] if rows else None,
        "heads": heads_of(record.key),
        "config": record.config.encode(),
        "kind": record.config.prefetch_kind.value if record.config.prefetches else "",
        "modelled_us": record.evidence.modelled_us,
    }


def _toolchains(records: Sequence[TuningRecord]) -> list[dict[str, Any]]:
    """What records came about with: a line for each set of versions."""
    groups: dict[Any, list[TuningRecord]] = {}
    for record in records:
        groups.setdefault(record.evidence.toolchain, []).append(record)
    return [
        {
            "toolchain": toolchain,
            "records": len(members),
            "first": min(record.evidence.date for record in members),
            "last": max(record.evidence.date for record in members),
            "trials": sum(record.evidence.trials for record in members),
            "seeds": ", ".join(map(str, sorted({record.evidence.seed for record in members})[:5])),
        }
        for toolchain, members in groups.items()
    ]
