"""``kvprefetch bench``: the commands, their options, and what they print."""

from __future__ import annotations

import json
import logging
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import torch
import typer

from ..demo.errors import MissingExtraError
from ..errors import KVPrefetchError
from .architectures.cli import architectures
from .cache_cli import cache
from .case import RANDOM_LLAMA, parse_cases
from .ceiling_cli import ceiling
from .errors import NoGpuError
from .kernel.cli import kernel
from .numerics.cli import numerics
from .paper.cli import paper
from .rounds import Rounds
from .search_cli import search
from .selection_cli import selection
from .settings import Settings
from .variant import VARIANTS, parse_variants

if TYPE_CHECKING:
    from .result import RunResult

app = typer.Typer(help="Measure on your own GPU.", no_args_is_help=True)

QUICK_ROUNDS = 5
ALL_VARIANTS = ",".join(variant.name for variant in VARIANTS)


@app.callback()
def bench() -> None:
    """Measure on your own GPU."""


app.command()(kernel)
app.command()(ceiling)
app.command()(cache)
app.command()(architectures)
app.command()(search)
app.command()(selection)
app.command()(paper)
app.command()(numerics)


@app.command()
def e2e(
    model: Annotated[str, typer.Option(help="llama-8b (random weights), smollm2, a local folder, or a hub id")] = (
        RANDOM_LLAMA
    ),
    layers: Annotated[int, typer.Option(min=1, help="layers of llama-8b")] = 8,
    cases: Annotated[str, typer.Option(help="BATCHxCAPACITYxHELD, comma-separated; empty: the default set")] = "",
    variants: Annotated[str, typer.Option(help="comma-separated")] = ALL_VARIANTS,
    mode: Annotated[str, typer.Option(help="torch.compile mode of every variant")] = "reduce-overhead",
    rounds: Annotated[int, typer.Option(min=1, help="interleaved rounds")] = 15,
    steps: Annotated[int, typer.Option(min=1, help="back-to-back steps per round")] = 20,
    tokens: Annotated[int, typer.Option(min=1, help="tokens that a real model decodes for its tokens/s")] = 128,
    oracle: Annotated[bool, typer.Option(help="also compute each case in float64")] = True,
    profile: Annotated[bool, typer.Option(help="device time per step by kernel, on stderr and in the JSON")] = False,
    compile_time: Annotated[int, typer.Option(min=0, help="cold compiles of Inductor and of ours to time")] = 0,
    quick: Annotated[bool, typer.Option(help=f"{QUICK_ROUNDS} rounds")] = False,
    dry_run: Annotated[bool, typer.Option(help="list the cases and their bytes; needs no GPU")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of tables")] = False,
    out: Annotated[Path | None, typer.Option(help="also write the JSON, raw samples included, to a file")] = None,
) -> None:
    """Whole decode steps: Inductor+SDPA, Inductor+FlexAttention, ours, and the floor that memory sets, in one run."""
    try:
        settings = Settings(
            model=model,
            layers=layers,
            cases=parse_cases(cases) if cases else None,
            variants=parse_variants(variants),
            mode=mode,
            rounds=Rounds(QUICK_ROUNDS if quick else rounds, steps),
            generated=tokens,
            profile=profile,
            oracle=oracle,
            compile_repeats=compile_time,
        )
        settings.chosen_cases()
        _require_transformers()
        if dry_run:
            _dry_run(settings, as_json)
            return
        if not torch.cuda.is_available():
            raise NoGpuError
        _run(settings, as_json, out)
    except KVPrefetchError as error:
        _refuse(error)


def _run(settings: Settings, as_json: bool, out: Path | None) -> None:
    from .e2e import run
    from .guard import problems

    def keep(result: RunResult) -> None:
        if out is not None:
            out.write_text(json.dumps(result.to_dict(), indent=1))

    logging.getLogger("transformers").setLevel(logging.ERROR)
    result = run(settings, torch.device("cuda"), _progress, keep)
    _show(result, as_json)
    found = [line for case in result.cases for line in problems(case)]
    for line in found:
        typer.echo(f"wrong: {line}", err=True)
    raise typer.Exit(1 if found else 0)


def _show(result: RunResult, as_json: bool) -> None:
    from .table import e2e_tables, show

    if as_json:
        print(json.dumps(result.to_dict(), indent=1))
        return
    for table in e2e_tables(result):
        show(table)


def _dry_run(settings: Settings, as_json: bool) -> None:
    from .floor import step_bytes
    from .model import find_bench_model
    from .table import bytes_table, show

    model = find_bench_model(settings.model, settings.layers).on_meta(settings.dtype)
    counted = [(case, step_bytes(model, case)) for case in settings.chosen_cases()]
    if as_json:
        print(json.dumps([{"case": vars(case), "bytes": size.to_dict()} for case, size in counted], indent=1))
    else:
        show(bytes_table(counted))


def _require_transformers() -> None:
    # An extra, and slow to import: everything that needs it is imported where a command needs it.
    if find_spec("transformers") is None:
        raise MissingExtraError("bench", ["transformers"])


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _refuse(error: KVPrefetchError) -> NoReturn:
    typer.echo(f"error: {error}", err=True)
    raise typer.Exit(2) from error
