"""``kvprefetch bench paper``: the options, and what is printed and written."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...errors import KVPrefetchError
from .case import BATCHES, CONTEXTS, QUICK_BATCHES, QUICK_CONTEXTS, PaperCase, cases_of, parse_sizes
from .models import MODELS, parse_models
from .settings import PaperSettings

if TYPE_CHECKING:
    from ...device import DeviceProfile
    from ...tuning.compile_pool import CompilePool
    from .result import PaperRun

ALL_MODELS = ",".join(model.name for model in MODELS)
QUICK_ROUNDS = 5
QUICK_TRIALS = 4
# L2 that a dry run counts caches for where there is no GPU: an H200's.
_NO_GPU_ARCH = 90


def paper(
    models: Annotated[str, typer.Option(help="comma-separated")] = ALL_MODELS,
    batches: Annotated[str | None, typer.Option(help="comma-separated", show_default=str(BATCHES))] = None,
    contexts: Annotated[str | None, typer.Option(help="comma-separated", show_default=str(CONTEXTS))] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="interleaved rounds", show_default="15")] = None,
    search: Annotated[
        int | None,
        typer.Option(min=0, help="configurations of ours to try where none is on record", show_default="12"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="of caches, queries and block tables")] = 0,
    budget: Annotated[
        float | None, typer.Option(min=1, help="seconds after which no further case is begun", show_default="none")
    ] = None,
    ncu: Annotated[bool, typer.Option("--ncu", help="hardware counters too, where Nsight Compute is there")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="fewer cases, rounds and trials")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="list the cases and their bytes; needs no GPU")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of tables")] = False,
    out: Annotated[Path | None, typer.Option(help="also write the JSON, raw samples included, to a file")] = None,
    plots: Annotated[Path | None, typer.Option(help="also draw, into this folder")] = None,
    from_file: Annotated[Path | None, typer.Option("--from", help="show a kept run instead of measuring")] = None,
) -> None:
    """The setting of arXiv 2504.06319 rebuilt: what prefetching KV tiles into L2 gains, beside a control and ours."""
    try:
        if plots is not None:
            from .plots import require_matplotlib

            require_matplotlib()
        if from_file is not None:
            from .result import read_run

            _show(read_run(from_file), as_json, plots)
            return
        cases = cases_of(
            parse_models(models),
            parse_sizes("batches", batches) if batches else (QUICK_BATCHES if quick else BATCHES),
            parse_sizes("contexts", contexts) if contexts else (QUICK_CONTEXTS if quick else CONTEXTS),
        )
        if dry_run:
            _dry_run(cases, as_json)
            return
        settings = PaperSettings(
            cases,
            rounds=rounds or (QUICK_ROUNDS if quick else PaperSettings.rounds),
            trials=search if search is not None else (QUICK_TRIALS if quick else PaperSettings.trials),
            seed=seed,
            budget_s=budget,
            ncu=ncu,
        )
        result = _measure(settings, out)
        _show(result, as_json, plots)
    except KVPrefetchError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    for line in result.problems:
        typer.echo(f"wrong: {line}", err=True)
    raise typer.Exit(1 if result.problems else 0)


def _measure(settings: PaperSettings, out: Path | None) -> PaperRun:
    """Raises:
    NoPaperGpuError: there is nothing to measure on.
    NoBulkPrefetchError: the GPU lacks the instruction.
    """
    import torch

    from ...device import interpreting, profile
    from . import ncu
    from .errors import NoBulkPrefetchError, NoPaperGpuError
    from .result import write_run
    from .run import run

    if interpreting() or not torch.cuda.is_available():
        raise NoPaperGpuError

    def keep(result: PaperRun) -> None:
        if out is not None:
            write_run(result, out)

    device = torch.device("cuda", torch.cuda.current_device())
    found = profile(device)
    if not found.has_bulk_prefetch:
        raise NoBulkPrefetchError(found.name)
    compiler = _compiler(found) if settings.trials else None
    try:
        result = run(settings, device, _say, keep, compiler)
    finally:
        if compiler is not None:
            compiler.close()
    if settings.ncu:
        _say("hardware counters")
        result.counters = ncu.collect(ncu.jobs_of(result.cases), settings.seed)
        keep(result)
    return result


def _compiler(device: DeviceProfile) -> CompilePool:
    from ...tuning.compile_pool import CompilePool

    return CompilePool(device)


def _show(result: PaperRun, as_json: bool, plots: Path | None) -> None:
    from ..table import show
    from .summary import summarize
    from .tables import run_tables

    if as_json:
        print(json.dumps({**result.to_dict(), "summary": summarize(result).to_dict()}, indent=1))
    else:
        for table in run_tables(result):
            show(table)
    if plots is not None:
        from .plots import draw

        for path in draw(result, plots):
            _say(f"drawn: {path}")


def _dry_run(cases: tuple[PaperCase, ...], as_json: bool) -> None:
    from ...device import REFERENCE_DEVICES
    from ..table import show
    from .inputs import caches_for, needed_bytes
    from .tables import dry_run_table

    l2_bytes = REFERENCE_DEVICES[_NO_GPU_ARCH].l2_bytes
    if not as_json:
        show(dry_run_table(cases, l2_bytes))
        return
    listed = []
    for case in cases:
        caches = caches_for(case.kv_bytes, l2_bytes)
        listed.append(
            {
                "case": str(case),
                "kv_bytes": case.kv_bytes,
                "caches": caches,
                "device_bytes": needed_bytes(case, caches),
            }
        )
    print(json.dumps(listed, indent=1))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
