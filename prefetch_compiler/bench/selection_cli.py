"""``kvprefetch bench selection``: what choosing configurations from a database costs a compile."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from .table import Table, show

if TYPE_CHECKING:
    from .selection import SelectionCost


def selection(
    records: Annotated[int, typer.Option(min=1, help="Made-up records in the database.")] = 2000,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Time selection over a made-up database, on the CPU: reading it, and choosing for a site."""
    from .selection import measure

    cost = measure(records)
    if as_json:
        print(json.dumps(cost.to_dict(), indent=1))
    else:
        show(_table(cost))


def _table(cost: SelectionCost) -> Table:
    once = "once a process"
    rows = [
        ("read the file", once, f"{cost.read_ms:.1f} ms"),
        ("arrange the records", once, f"{cost.arrange_ms:.1f} ms"),
        ("selection digest", once, f"{cost.digest_ms:.1f} ms"),
        ("see that no file has changed", "each compiled graph", f"{cost.load_again_us:.1f} us"),
    ]
    rows += [
        (f"select: {verdict}", "each distinct site", f"{samples.median_us:.1f} us")
        for verdict, samples in cost.site_us.items()
    ]
    title = f"Selection from {cost.records} records ({cost.file_bytes / 1e6:.1f} MB)"
    return Table(title, ("what", "when", "time"), rows, ("Nothing of this happens when a compiled model runs.",))
