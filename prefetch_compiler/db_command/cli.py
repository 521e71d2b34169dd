"""``kvprefetch db``: the commands, their options, and what they print."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from ..database.document import Database
    from ..database.record import TuningRecord
    from ..tuning.compile_pool import CompilePool
    from ..tuning.measurer import WorkerMeasurer
    from .verify import Checked, Means

app = typer.Typer(help="Look at, compare, combine and verify tuning databases.", no_args_is_help=True)

FileArgument = Annotated[Path, typer.Argument(help="A database file.", metavar="FILE")]
OutOption = Annotated[Path, typer.Option(help="The file to write.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
# A run that is ended leaves a report of all but the last few.
_RECORDS_BETWEEN_REPORTS = 10
ForceOption = Annotated[bool, typer.Option("--force", help="Replace --out if it is there already.")]


@app.callback()
def db() -> None:
    """Look at, compare, combine and verify tuning databases."""


@app.command()
def show(
    file: FileArgument,
    key: Annotated[list[str] | None, typer.Option(help="Part of a key's name; repeat it to narrow down.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, float16 or bfloat16.")] = None,
    batch: Annotated[int | None, typer.Option(help="Batch bucket.")] = None,
    capacity: Annotated[int | None, typer.Option(help="Capacity bucket.")] = None,
    measured: Annotated[
        bool | None, typer.Option("--measured/--unmeasured", help="Only these.", show_default="both")
    ] = None,
    records: Annotated[
        bool, typer.Option("--records", "-r", help="List the records too, not only the summary.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """What a database holds: coverage, gains, which prefetch depths won, and with --records every record."""
    from ..database.store import read
    from .filters import Filter
    from .summary import summarise
    from .view import coverage_table, records_tables, shown, summary_lines

    wanted = Filter(tuple(key or ()), dtype, batch, capacity, measured)
    database = wanted.apply(read(file))
    summary = summarise(database.records)
    if as_json:
        _print_json(shown(database, summary))
        return
    console = Console()
    for line in summary_lines(database, summary):
        console.print(line, highlight=False)
    if database.records:
        console.print(coverage_table(summary))
    if records and database.records:
        for table in records_tables(database.records):
            console.print(table)


@app.command()
def diff(
    before: Annotated[Path, typer.Argument(help="A database file.", metavar="OLD")],
    after: Annotated[Path, typer.Argument(help="Another of the same GPU model.", metavar="NEW")],
    as_json: JsonOption = False,
) -> None:
    """What turns one database into another: records added, removed and changed, with the ratio of their times."""
    from ..database.merge import diff as difference_of
    from ..database.store import read
    from .view import difference_data, difference_line, difference_table

    difference = difference_of(read(before), read(after))
    if as_json:
        _print_json(difference_data(difference))
        return
    console = Console()
    if not difference.empty:
        console.print(difference_table(difference))
    console.print(difference_line(difference), highlight=False)


@app.command()
def merge(
    files: Annotated[list[Path], typer.Argument(help="Database files of one GPU model.", metavar="FILE...")],
    out: OutOption,
    as_json: JsonOption = False,
) -> None:
    """Combine databases into --out, and with what is there already. Of rivals the better evidenced record stays."""
    from ..database.merge import merge as merged
    from ..database.store import publish, read

    database = merged(*map(read, files))
    published = publish(out, database, _admissibility(files[0], database))
    _report_written(out, published, as_json)


@app.command()
def export(
    file: FileArgument,
    sites: Annotated[Path, typer.Option(help="What a model needs, as `kvprefetch capture` writes it.")],
    out: OutOption,
    neighbours: Annotated[
        int, typer.Option(min=0, help="Also buckets this far from a captured one, in batch and in capacity.")
    ] = 1,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write what one model needs, and nothing else, to a new file. Exits with 1 if a site has no record."""
    from ..database.store import create, read
    from ..tuning.sites import read_sites
    from .filters import for_sites, without_record

    database, keys = read(file), read_sites(sites)
    exported = for_sites(database, keys, neighbours)
    create(out, exported, replace=force)
    _report_written(out, exported, as_json)
    missing = without_record(database, keys)
    for missed in missing:
        typer.echo(f"no record: {missed.name}", err=True)
    raise typer.Exit(1 if missing else 0)


@app.command()
def prune(
    file: FileArgument,
    stale: Annotated[
        bool, typer.Option("--stale", help="Drop records of other kernel sources or another Triton minor version.")
    ] = False,
    unmeasured: Annotated[bool, typer.Option("--unmeasured", help="Drop records that never ran on the GPU.")] = False,
    outranked: Annotated[
        bool, typer.Option("--outranked", help="Of the records of a key that are not stale keep the best evidenced.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Write there.", show_default="replace FILE")] = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Drop the records that are of no use to this installation."""
    from ..database.merge import prune as pruned
    from ..database.store import create, read, rewrite

    if not (stale or unmeasured or outranked):
        raise typer.BadParameter("say what to drop: --stale, --unmeasured, --outranked, or several")

    def drop(database: Database) -> Database:
        return pruned(
            database,
            stale=_is_stale if stale else None,
            unmeasured=unmeasured,
            outranked=_is_stale if outranked else None,
        )

    if out is None:
        kept = rewrite(file, drop)
    else:
        kept = drop(read(file))
        create(out, kept, replace=force)
    _report_written(out or file, kept, as_json)


@app.command()
def verify(
    file: FileArgument,
    compiling: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Compile every record for its GPU, which need not be here.")
    ] = True,
    timing: Annotated[bool, typer.Option("--timing", help="On the GPU: compare times too.")] = False,
    tolerance: Annotated[
        float, typer.Option(min=1, help="With --timing: times over this many times the recorded one are wrong.")
    ] = 1.25,
    jobs: Annotated[int | None, typer.Option(min=1, help="Compiling processes.", show_default="all cores")] = None,
    report: Annotated[
        Path | None, typer.Option(help="Keep what is found: writes REPORT.json and REPORT.txt, also while it runs.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Prove a database anew: its file, every record admissible and compilable, and on its GPU correct.

    Exits with 1 if a record fails.
    """
    from ..database.store import read
    from .verify import problems
    from .verify import verify as verified
    from .view import checked_data, checked_table

    database = read(file)
    with _means(file, database, compiling, timing, tolerance, jobs) as means, _progress(len(database.records)) as step:
        keep = _kept_report(report, file, database, means)

        def progress(done: list[Checked]) -> None:
            step(len(done))
            if len(done) % _RECORDS_BETWEEN_REPORTS == 0:
                keep(done)

        checked = verified(database, means, progress)
        keep(checked)
    failed = sum(1 for _ in problems(checked))
    stale = sum(map(_is_stale, database.records))
    if as_json:
        counts = {"records": len(checked), "failed": failed, "stale": stale}
        steps = {"compiled": means.compiler is not None, "measured": means.measurer is not None}
        _print_json({**counts, **steps, "checked": checked_data(checked)})
    else:
        console = Console()
        if failed:
            console.print(checked_table(checked))
        how = ["the file", "admissible"] + ["compiled"] * (means.compiler is not None)
        how += ["run on the GPU"] * (means.measurer is not None)
        console.print(f"{len(checked)} records checked ({', '.join(how)}), {failed} failed", highlight=False)
        if stale:
            console.print(
                f"[yellow]{stale} are stale[/]: recorded with other kernels or another Triton", highlight=False
            )
    raise typer.Exit(1 if failed else 0)


@app.command()
def declare(
    file: FileArgument,
    family_fallback: Annotated[
        bool,
        typer.Option(
            "--family-fallback/--no-family-fallback",
            help="Whether GPUs of the same family without a record of their own may use these.",
        ),
    ],
    as_json: JsonOption = False,
) -> None:
    """Say whether other GPU models of the family may use a database; explain reports it where one does."""
    from dataclasses import replace

    from ..database.store import rewrite

    changed = rewrite(file, lambda database: replace(database, family_fallback=family_fallback))
    _report_written(file, changed, as_json)


@app.command()
def path(as_json: JsonOption = False) -> None:
    """Where records are looked for, the place that counts most first, and what lies there."""
    from ..database.errors import describe
    from .search_path import search_path

    found = search_path()
    if as_json:
        _print_json([
            {
                "path": str(one.place.path),
                "named": one.place.named,
                "exists": one.exists,
                "files": [
                    {
                        "path": str(file.path),
                        "device": None if file.database is None else describe(file.database.device),
                        "records": None if file.database is None else len(file.database.records),
                        "problem": file.problem,
                    }
                    for file in one.files
                ],
            }
            for one in found
        ])  # fmt: skip
        return
    console = Console(soft_wrap=True, highlight=False)
    for number, one in enumerate(found, start=1):
        state = "" if one.exists else " (not there)" if not one.place.named else " [red](not there)[/]"
        console.print(f"{number}. {escape(str(one.place.path))}{state}")
        for file in one.files:
            if file.database is None:
                console.print(f"   [red]not used:[/] {escape(str(file.problem))}")
            else:
                what = f"{len(file.database.records)} records, {describe(file.database.device)}"
                console.print(f"   {escape(file.path.name)}: {escape(what)}")


@app.command()
def schema() -> None:
    """The JSON schema of database files."""
    from ..database.schema import schema_bytes

    sys.stdout.write(schema_bytes().decode("ascii"))


def _admissibility(file: Path, database: Database) -> Callable[[TuningRecord], str | None]:
    from ..select.admissible import why_inadmissible
    from .errors import UnknownDeviceError
    from .verify import profile_of

    profile = profile_of(database.device)
    if profile is None:
        raise UnknownDeviceError(file, database.device)
    return lambda record: why_inadmissible(record.key.spec(), record.config, profile)


def _is_stale(record: TuningRecord) -> bool:
    from ..select.candidates import why_stale

    return bool(why_stale(record))


def _kept_report(report: Path | None, file: Path, database: Database, means: Means) -> Callable[[list[Checked]], None]:
    """Writes the report of the records that are done, if one is wanted."""
    if report is None:
        return lambda checked: None
    from .errors import ReportNotWrittenError
    from .verify import matching_gpu
    from .verify_report import report_data, write_report

    gpu, stale = matching_gpu(database.device), sum(map(_is_stale, database.records))

    def keep(checked: list[Checked]) -> None:
        try:
            write_report(report, report_data(file, database, means, checked, gpu, stale))
        except OSError as error:
            raise ReportNotWrittenError(report, error) from error

    keep([])
    return keep


@contextmanager
def _means(
    file: Path, database: Database, compiling: bool, timing: bool, tolerance: float, jobs: int | None
) -> Iterator[Means]:
    """What to verify with here; processes end with it."""
    from .errors import NoMatchingGpuError, UnknownDeviceError
    from .verify import Means, matching_gpu, profile_of

    profile, gpu = profile_of(database.device), matching_gpu(database.device)
    if profile is None:
        raise UnknownDeviceError(file, database.device)
    if timing and gpu is None:
        raise NoMatchingGpuError(file, database.device)
    compiler: CompilePool | None = None
    measurer: WorkerMeasurer | None = None
    try:
        if compiling and profile.backend != "interpreter":
            from ..tuning.compile_pool import CompilePool

            compiler = CompilePool(profile, jobs)
        if gpu is not None or profile.backend == "interpreter":
            measurer = _measurer(gpu, timing)
        yield Means(profile, compiler, measurer, tolerance if timing else None)
    finally:
        for one in (compiler, measurer):
            if one is not None:
                one.close()


def _measurer(gpu: torch.device | None, timing: bool) -> WorkerMeasurer:
    """Of a GPU, or of the interpreter, which tells no times."""
    from ..tuning.measurer import CorrectnessChecker, GpuMeasurer

    if gpu is None or not timing:
        return CorrectnessChecker(None if gpu is None else gpu.index)
    return GpuMeasurer(gpu.index)


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("verifying", total=total)
        yield lambda done: progress.update(task, completed=done)


def _report_written(out: Path, database: Database, as_json: bool) -> None:
    if as_json:
        _print_json({"path": str(out), "records": len(database.records)})
    else:
        typer.echo(f"{out}: {len(database.records)} records")


def _print_json(data: object) -> None:
    typer.echo(json.dumps(data, indent=2))
