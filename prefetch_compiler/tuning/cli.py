"""``kvprefetch tune``: what to tune, where studies and records go, and how the job reports."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

    from ..database.key import TuningKey
    from ..device import DeviceProfile
    from .compile_pool import CompilePool
    from .job import JobResult, JobSettings
    from .protocol import Measurer

_TRIALS, _TIMEOUT_S = 64, 300.0


def tune(
    sites: Annotated[Path | None, typer.Argument(help="Sites that `kvprefetch capture` wrote.")] = None,
    preset: Annotated[str | None, typer.Option(help="The sites of a well-known model, such as llama-3-8b.")] = None,
    model: Annotated[str | None, typer.Option(help="Capture the sites of a local folder or a hub id.")] = None,
    spec: Annotated[
        list[str] | None,
        typer.Option(help="A key by name: 'bfloat16 32q/8kv d128 q1 b16 s4096 bhsd-tma bool'. May be repeated."),
    ] = None,
    batch: Annotated[str, typer.Option(help="Batches of --preset and --model, comma-separated.")] = "1,16,64",
    capacity: Annotated[str, typer.Option(help="Capacities of --preset and --model, comma-separated.")] = "4096,32768",
    dtype: Annotated[str, typer.Option(help="Dtypes of --preset and --model, comma-separated.")] = "bfloat16",
    kv_dtype: Annotated[
        str | None,
        typer.Option(
            help="Quantised caches for --preset and --model: e4m3, e5m2 or int8, comma-separated.",
            show_default="not quantised",
        ),
    ] = None,
    kv_scales: Annotated[
        str, typer.Option(help="Scales of quantised caches: head (a tensor's too) or token, comma-separated.")
    ] = "head",
    records: Annotated[
        Path | None, typer.Option(help="The keys of a database file, to tune them again; into another --out.")
    ] = None,
    stale: Annotated[
        bool,
        typer.Option("--stale", help="Of --records only those of other kernels or another Triton."),
    ] = False,
    part: Annotated[
        str, typer.Option(help="K/N: the K-th of N stretches of the keys, as for one of N GPUs.", show_default="all")
    ] = "",
    out: Annotated[
        Path | None,
        typer.Option(help="Database file, or a folder of such.", show_default="your own folder, which is found"),
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            help="Where studies live: an SQLite file, a postgresql:// or mysql:// URL, journal:PATH, grpc://HOST:PORT. "
            "Workers that are given the same one share its studies.",
            show_default="studies.db beside the database",
        ),
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="Trials a key, over all workers.")] = _TRIALS,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds for the trials of one key.")] = _TIMEOUT_S,
    sampler: Annotated[
        str | None,
        typer.Option(
            help="tpe, tpe-multivariate, tpe-group, cmaes, gp, random or grid, each also with +local.",
            show_default="the best in docs/tuning.md",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of inputs and samplers.")] = 0,
    jobs: Annotated[int | None, typer.Option(min=1, help="Compiling processes.", show_default="all cores")] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--retune", help="Go on with earlier studies, or forget them.")
    ] = True,
    target: Annotated[
        str | None, typer.Option(help="With --compile-only: sm_80, sm_86, sm_89, sm_90, sm_100 or sm_120.")
    ] = None,
    compile_only: Annotated[
        bool, typer.Option("--compile-only", help="Rank by compiled resources and a model. Every record is unmeasured.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress; only where the records are.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, as it happens.")] = False,
) -> None:
    """Find the best kernel configuration of every attention site on this GPU, and publish what was found.

    Each record is published as soon as its key is done; a job that was killed goes on where it stopped.
    Exits with 1 if a key got no record.
    """
    from ..part import parse_part
    from .job import JobSettings
    from .key_order import in_order
    from .keys_wanted import keys_wanted
    from .sampler import DEFAULT_SAMPLER, sampler_choice

    settings = JobSettings(
        trials=trials,
        seed=seed,
        sampler=sampler or DEFAULT_SAMPLER,
        timeout_s=timeout,
        retune=not resume,
        shared=storage is not None,
        modelled=compile_only,
    )
    sampler_choice(settings.sampler)
    share = parse_part(part)
    keys = keys_wanted(sites, preset, model, spec or [], batch, capacity, dtype, kv_dtype, kv_scales, records, stale)
    keys = list(share.stretch_of(in_order(keys)))
    result = _run(keys, settings, out, storage, jobs, target, quiet, as_json)
    _show(result, quiet, as_json)
    raise typer.Exit(1 if result.finished.failed else 0)


def _run(
    keys: list[TuningKey],
    settings: JobSettings,
    out: Path | None,
    storage: str | None,
    jobs: int | None,
    target: str | None,
    quiet: bool,
    as_json: bool,
) -> JobResult:
    import optuna

    from .compile_pool import CompilePool
    from .job import tune_keys
    from .progress import reporting
    from .target import default_folder, known_records, target_profile
    from .toolchain import present_toolchain

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    profile = target_profile(target, settings.modelled)
    folder = out or default_folder(settings.modelled)
    studies = _storage(storage, folder)
    compiler = CompilePool(profile, jobs)
    try:
        measurer = _measurer(profile, compiler, settings)
        try:
            with reporting(quiet, as_json) as report:
                return tune_keys(
                    keys,
                    measurer,
                    profile=profile,
                    toolchain=present_toolchain(measured=not settings.modelled),
                    storage=studies,
                    out=folder,
                    settings=settings,
                    compiler=compiler,
                    records=known_records(profile, folder),
                    report=report,
                )
        finally:
            measurer.close()
    finally:
        compiler.close()


def _measurer(profile: DeviceProfile, compiler: CompilePool, settings: JobSettings) -> Measurer:
    if settings.modelled:
        from .model_measurer import ModelMeasurer

        return ModelMeasurer(profile, compiler)
    from .measurer import GpuMeasurer

    return GpuMeasurer()


def _storage(where: str | None, folder: Path) -> BaseStorage:
    from .storage import open_storage

    beside = folder.parent if folder.suffix == ".json" else folder
    return open_storage(where or str(beside / "studies.db"))


def _show(result: JobResult, quiet: bool, as_json: bool) -> None:
    from rich.console import Console

    from .progress import closing_line, summary_table

    if as_json:
        return
    if quiet:
        typer.echo(result.path)
        return
    console = Console()
    console.print(summary_table(result.keys))
    console.print(closing_line(result.finished), soft_wrap=True, highlight=False)
