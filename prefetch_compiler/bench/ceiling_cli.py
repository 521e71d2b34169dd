"""``kvprefetch bench ceiling``: how fast this GPU reads memory, by number of bytes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
import typer

from ..errors import KVPrefetchError
from .errors import NoGpuError
from .kernel.cli import require_matplotlib
from .table import Table, show

if TYPE_CHECKING:
    from .ceiling_sweep import CeilingRun


def ceiling(
    least: Annotated[str, typer.Option(help="The smallest region, in KB, MB or GB of powers of 1024.")] = "1MB",
    most: Annotated[str, typer.Option(help="The largest; doubled from the smallest until there.")] = "4GB",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    out: Annotated[Path | None, typer.Option(help="Also write the JSON, raw samples included, to a file.")] = None,
    plots: Annotated[Path | None, typer.Option(help="Draw a plot into this folder; needs matplotlib.")] = None,
    from_file: Annotated[
        Path | None, typer.Option("--from", help="Show and draw what --out wrote, and measure nothing.")
    ] = None,
) -> None:
    """The read ceiling: the fastest of several launch shapes of a kernel that only reads, cold L2, by bytes."""
    try:
        if plots is not None:
            require_matplotlib()
        _show(_run(least, most, out, from_file), as_json, plots)
    except KVPrefetchError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error


def _run(least: str, most: str, out: Path | None, from_file: Path | None) -> CeilingRun:
    """Raises: NoGpuError, InvalidOptionError, InvalidResultError."""
    from .ceiling_sweep import COMMAND, byte_counts, measure_ceilings, parse_bytes, read_ceilings

    if from_file is not None:
        return read_ceilings(from_file)
    counts = list(byte_counts(parse_bytes("least", least), parse_bytes("most", most)))
    if not torch.cuda.is_available():
        raise NoGpuError(COMMAND, "--from FILE shows results")
    run = measure_ceilings(iter(counts), torch.device("cuda", torch.cuda.current_device()), _progress)
    if out is not None:
        run.write(out)
    return run


def _show(run: CeilingRun, as_json: bool, plots: Path | None) -> None:
    if as_json:
        print(json.dumps(run.to_dict(), indent=1))
    else:
        show(ceiling_table(run))
    if plots is not None:
        from .ceiling_plot import draw_ceilings

        for path in draw_ceilings(run, plots):
            _progress(f"drawn: {path}")


def ceiling_table(run: CeilingRun) -> Table:
    """Megabytes of 10^6; medians with p20–p80."""
    rows = []
    for point in run.points:
        low, middle, high = (point.samples.quantile_us(fraction) for fraction in (0.2, 0.5, 0.8))
        shape = point.shape
        words = f"{shape.block_words} words, {shape.num_warps} warps, {shape.programs_per_sm or 'all'} programs per SM"
        spread = f"{middle:.2f} ({low:.2f}–{high:.2f})"
        rows.append((f"{point.region_bytes / 1e6:,.1f}", words, spread, f"{point.tb_per_s:.2f}", str(point.regions)))
    environment = run.environment
    title = f"Read ceiling: {environment.get('device')}, torch {environment.get('torch')}"
    return Table(title, ("MB", "fastest launch shape", "µs (p20–p80)", "TB/s", "distinct regions"), rows)


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
