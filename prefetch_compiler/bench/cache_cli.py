"""``kvprefetch bench cache``: what a quantised cache is worth on this GPU."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import torch
import typer

from ..errors import KVPrefetchError
from .errors import NoGpuError
from .table import Table, show

if TYPE_CHECKING:
    from .cache import CacheComparison, CacheTime


def cache(
    preset: Annotated[str, typer.Option(help="A well-known model's attention.")] = "llama-3-8b",
    batch: Annotated[int, typer.Option(min=1, help="Sequences.")] = 64,
    capacity: Annotated[int, typer.Option(min=2, help="Keys in each sequence's cache, all of them valid.")] = 4096,
    dtype: Annotated[str, typer.Option(help="Of the queries, and of the cache that is not quantised.")] = "bfloat16",
    kv_dtype: Annotated[str, typer.Option(help="Comma-separated.")] = "e4m3,e5m2,int8",
    kv_scales: Annotated[str, typer.Option(help="head or token, comma-separated.")] = "head,token",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """One attention over each quantised cache, beside a cache of the queries' dtype and the read ceiling."""
    from ..tuning.caches import quantised_key
    from ..tuning.presets import preset_keys

    try:
        plain = preset_keys(preset, [batch], [capacity], [dtype])[-1]
        caches = [(one.strip(), scales.strip()) for one in kv_dtype.split(",") for scales in kv_scales.split(",")]
        quantised = [quantised_key(plain, *chosen) for chosen in caches]
        if not torch.cuda.is_available():
            raise NoGpuError
        from .cache import compare_caches

        found = compare_caches(plain, quantised, torch.device("cuda"), _progress)
    except KVPrefetchError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    if as_json:
        print(json.dumps(found.to_dict(), indent=1))
    else:
        show(table_of(found))


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def table_of(found: CacheComparison) -> Table:
    """A row a cache, the one that is not quantised first and last."""
    rows = [_row(found, time) for time in (found.plain, *found.quantised, found.again)]
    columns = ("cache", "configuration", "us", "TB/s", "of the ceiling", "speedup", "error / bound")
    return Table("Decode attention over one full cache", columns, rows)


def _row(found: CacheComparison, time: CacheTime) -> tuple[str, ...]:
    return (
        time.key,
        f"{time.config} ({time.verdict})",
        f"{time.median_us:.1f}",
        f"{time.kv_bytes / time.median_us / 1e6:.2f}",
        f"{time.ceiling_us / time.median_us:.0%}",
        f"{found.speedup(time):.2f}x",
        f"{time.error_share:.2f}",
    )
