"""``kvprefetch bench architectures``: decode steps of many models' layers."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer

from ...demo.errors import MissingExtraError
from ...errors import KVPrefetchError
from ..case import Case
from ..errors import NoGpuError, NoRoomError
from ..rounds import Rounds
from ..table import Table, show
from .catalogue import Architecture, find_architectures

if TYPE_CHECKING:
    from .measure import ArchitectureResult


def architectures(
    names: Annotated[str, typer.Option(help="Comma-separated; empty: all.")] = "",
    case: Annotated[str, typer.Option(help="BATCHxCAPACITYxHELD")] = "16x4096x2000",
    mode: Annotated[str, typer.Option(help="torch.compile mode of every variant")] = "reduce-overhead",
    rounds: Annotated[int, typer.Option(min=1, help="interleaved rounds")] = 9,
    steps: Annotated[int, typer.Option(min=1, help="back-to-back steps per round")] = 20,
    dry_run: Annotated[bool, typer.Option(help="list the architectures; needs no GPU")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of a table")] = False,
    out: Annotated[Path | None, typer.Option(help="also write the JSON, raw samples included, to a file")] = None,
) -> None:
    """Decode steps of two layers of many architectures: Inductor, Inductor with FlexAttention, and ours, in one run."""
    try:
        chosen, shape, plan = find_architectures(names), Case.parse(case), Rounds(rounds, steps)
        if plan.last_length(shape.held) > shape.capacity:
            raise NoRoomError(shape, plan.last_length(shape.held))
        if find_spec("transformers") is None:
            raise MissingExtraError("bench", ["transformers"])
        if dry_run:
            show(_listed(chosen))
            return
        if not torch.cuda.is_available():
            raise NoGpuError("bench architectures", "--dry-run lists the architectures")
    except KVPrefetchError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    logging.getLogger("transformers").setLevel(logging.ERROR)
    results, failed = _measured(chosen, shape, plan, mode, out)
    if results:
        _show(results, as_json)
    found = [*failed, *_problems(results)]
    for line in found:
        typer.echo(f"wrong: {line}", err=True)
    raise typer.Exit(1 if found else 0)


def _measured(
    chosen: Sequence[Architecture], case: Case, plan: Rounds, mode: str, out: Path | None
) -> tuple[list[ArchitectureResult], list[str]]:
    """Those that could be measured, and what the others failed of."""
    from ..result import failure_of
    from .measure import measure

    results: list[ArchitectureResult] = []
    failed: list[str] = []
    for architecture in chosen:
        _say(architecture.name)
        try:
            results.append(measure(architecture, case, plan, mode, torch.device("cuda"), _say))
        except Exception as error:  # one that transformers cannot run takes no other along
            traceback.print_exc()
            failed.append(f"{architecture.name}: {failure_of(error)}")
            continue
        if out is not None:
            out.write_text(json.dumps(_plain(results), indent=1))
    return results, failed


def _plain(results: Sequence[ArchitectureResult]) -> dict[str, Any]:
    from ..environment import describe_environment

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return {"environment": describe_environment(device), "results": [result.to_dict() for result in results]}


def _show(results: Sequence[ArchitectureResult], as_json: bool) -> None:
    from .table import table_of

    if as_json:
        print(json.dumps(_plain(results), indent=1))
    else:
        show(table_of(results))


def _problems(results: Sequence[ArchitectureResult]) -> list[str]:
    from ..guard import problems

    return [f"{one.architecture.name}: {line}" for one in results for line in problems(one.outcome)]


def _listed(chosen: Sequence[Architecture]) -> Table:
    rows = [(one.name, one.config_class, one.attention) for one in chosen]
    return Table("Architectures", ("name", "configuration", "attention"), rows)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
