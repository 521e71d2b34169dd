"""``kvprefetch bench search``: how near samplers come to the best of a recorded table, and recording such tables."""

from __future__ import annotations

import json
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .errors import NothingToReplayError
from .table import WIDTH_WITHOUT_TERMINAL

if TYPE_CHECKING:
    from rich.table import Table

    from ..database.key import TuningKey
    from .search_replay import SamplerScore
    from .search_table import SearchTable

_SAMPLERS = "tpe,tpe-multivariate,tpe-group,cmaes,random,tpe+local,tpe-group+local,random+local"


def search(
    tables: Annotated[Path | None, typer.Argument(help="Tables that --record wrote.")] = None,
    samplers: Annotated[str, typer.Option(help="Comma-separated; gp is slow.")] = _SAMPLERS,
    seeds: Annotated[int, typer.Option(min=1, help="Searches of each sampler on each table.")] = 20,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes.", show_default="all cores")] = None,
    record: Annotated[
        str | None,
        typer.Option(help="Measure tables on the GPU instead: 'default', a file of key names, or one key's name."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Where --record writes.")] = Path("tables.json"),
    seconds: Annotated[float, typer.Option(min=1, help="Measuring time of each key of --record.")] = 60.0,
    seed: Annotated[int, typer.Option(min=0, help="Of inputs, and of the order of points.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Compare samplers on exhaustive tables: regret by trials, and how many searches end within 2 % of the optimum."""
    from ..errors import KVPrefetchError

    try:
        if record is not None:
            _record(record, out, seconds, seed, jobs)
        elif tables is not None:
            _replay(tables, samplers.split(","), seeds, jobs, as_json)
        else:
            raise NothingToReplayError
    except KVPrefetchError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error


def _replay(path: Path, samplers: list[str], seeds: int, jobs: int | None, as_json: bool) -> None:
    from ..tuning.compile_pool import available_cores
    from ..tuning.sampler import sampler_choice
    from .search_replay import replay_all, score, scores_to_dict
    from .search_table import read_tables

    for name in samplers:
        sampler_choice(name)
    found = read_tables(path)
    replays = replay_all(found, samplers, range(seeds), jobs or available_cores())
    scores = sorted((score(name, replays, found) for name in samplers), key=lambda one: -one.found)
    if as_json:
        print(json.dumps(scores_to_dict(scores, found), indent=1))
        return
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else WIDTH_WITHOUT_TERMINAL)
    console.print(_key_table(found))
    console.print(_score_table(scores))


def _record(which: str, out: Path, seconds: float, seed: int, jobs: int | None) -> None:
    from ..tuning.compile_pool import CompilePool
    from ..tuning.measurer import GpuMeasurer
    from ..tuning.target import target_profile
    from ..tuning.toolchain import present_toolchain
    from .search_record import record_tables
    from .search_table import write_tables

    profile = target_profile(None, compile_only=False)
    keys = _keys(which)
    toolchain = present_toolchain(measured=True)
    date = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")

    def origin(key: TuningKey) -> dict[str, Any]:
        return {**vars(toolchain(key, None)), "seed": seed, "date": date}

    compiler = CompilePool(profile, jobs)
    measurer = GpuMeasurer()
    done: list[SearchTable] = []
    try:
        for table in record_tables(
            keys, measurer, compiler, profile, seconds_per_key=seconds, seed=seed, origin=origin, progress=_say
        ):
            done.append(table)
            write_tables(out, done)
    finally:
        measurer.close()
        compiler.close()
    _say(f"{len(done)} tables in {out}")


def _keys(which: str) -> list[Any]:
    from ..database.key import parse_key
    from .search_record import DEFAULT_KEYS

    if which == "default":
        names = list(DEFAULT_KEYS)
    elif Path(which).is_file():
        names = [line.strip() for line in Path(which).read_text().splitlines() if line.strip()]
    else:
        names = [which]
    return [parse_key(name) for name in names]


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _key_table(tables: list[SearchTable]) -> Table:
    from rich.table import Table

    table = Table(title="recorded grids", title_justify="left")
    table.add_column("key", overflow="fold")
    for name in ("points", "feasible", "5 % of them", "optimum us"):
        table.add_column(name, justify="right")
    for one in tables:
        budget = str(int(0.05 * one.feasible))
        table.add_row(one.key.name, str(len(one.times)), str(one.feasible), budget, f"{one.optimum_us:.2f}")
    return table


def _score_table(scores: list[SamplerScore]) -> Table:
    from rich.table import Table

    from .search_replay import BUDGETS

    title = "median regret (90th percentile) after a share of the grid's trials; searches within 2 % of the optimum"
    table = Table(title=title, title_justify="left")
    table.add_column("sampler", no_wrap=True)
    for share in BUDGETS:
        table.add_column(f"{share:.0%}", justify="right")
    table.add_column("within 2 %", justify="right")
    table.add_column("worst key", justify="right")
    for one in scores:
        cells = [f"{one.regret[share][0]:.1%} ({one.regret[share][1]:.1%})" for share in BUDGETS]
        table.add_row(one.sampler, *cells, f"{one.found:.0%}", f"{one.found_worst_key:.0%}")
    return table
