"""``kvprefetch bench numerics``: the options, and what is printed and written."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import NoGpuError
from ..table import Table, show

if TYPE_CHECKING:
    from .result import GroupResult, NumericsResult

CASES, QUICK_CASES, INTERPRETED_CASES = 10_000, 1_000, 60


def numerics(
    cases: Annotated[
        int | None,
        typer.Option(min=1, help="in total", show_default=f"{CASES}, or {INTERPRETED_CASES} in Triton's interpreter"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="of all contents and lengths")] = 0,
    only: Annotated[str, typer.Option(help="groups whose name has this in it")] = "",
    quick: Annotated[bool, typer.Option("--quick", help=f"{QUICK_CASES} cases")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of a table")] = False,
    out: Annotated[Path | None, typer.Option(help="also write the JSON to a file")] = None,
) -> None:
    """Errors of every kernel against float64, beside PyTorch's in the same dtype: random and adverse cases."""
    from ...errors import KVPrefetchError

    try:
        result, environment = _measure(cases, quick, seed, only)
    except KVPrefetchError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    text = json.dumps({**result.to_dict(), "environment": environment}, indent=1)
    if out is not None:
        out.write_text(text)
    if as_json:
        print(text)
    else:
        show(table_of(result))
    for group in result.wrong:
        typer.echo(f"wrong: {group.template}, {group.feature}: {group.share:.2f} of what it may err", err=True)
    raise typer.Exit(1 if result.wrong else 0)


def _measure(cases: int | None, quick: bool, seed: int, only: str) -> tuple[NumericsResult, dict[str, str | None]]:
    """Raises:
    NoGpuError: there is neither a GPU nor the interpreter.
    UnknownGroupError: ``only`` names none.
    """
    import torch

    from ...device import current_device, interpreting, profile
    from ..environment import describe_environment
    from ..errors import UnknownGroupError
    from .group import GPU_SIZES, GROUPS, INTERPRETER_SIZES
    from .measure import measure

    device = torch.device("cpu") if interpreting() else current_device()
    if device.type == "cpu" and not interpreting():
        raise NoGpuError("bench numerics", "TRITON_INTERPRET=1 tries a few small cases without one")
    groups = tuple(group for group in GROUPS if only in group.name)
    if not groups:
        raise UnknownGroupError(only, [group.name for group in GROUPS])
    usual = INTERPRETED_CASES if interpreting() else QUICK_CASES if quick else CASES
    sizes = INTERPRETER_SIZES if interpreting() else GPU_SIZES
    with torch.no_grad():
        result = measure(groups, sizes, cases or usual, seed, device, profile(device), _say)
    return result, describe_environment(device)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def table_of(result: NumericsResult) -> Table:
    """A row a group: the kernel's error and the reference's at each percentile, side by side."""
    from .result import ALLOWED, PERCENTILES

    names = ("median" if percent == 50 else "largest" if percent == 100 else f"{percent} %" for percent in PERCENTILES)
    columns = ("template", "feature", "cases", *names, "of the allowed", "largest of")
    notes = (
        f"{result.cases} cases. Errors in roundings of the largest sum of weights times values; ours / PyTorch's in "
        f"the same dtype.",
        f"Allowed: {ALLOWED} times PyTorch's at each percentile, or so many roundings where it errs by less than one.",
    )
    return Table("Errors against float64", columns, [_row(group) for group in result.groups], notes, True)


def _row(group: GroupResult) -> tuple[str, ...]:
    from .result import PERCENTILES

    if group.skipped_because:
        return group.template, group.feature, "0", *("",) * len(PERCENTILES), "", f"left out: {group.skipped_because}"
    errors = (f"{ours:.2f} / {theirs:.2f}" for ours, theirs in zip(group.kernel, group.reference, strict=True))
    return group.template, group.feature, str(group.cases), *errors, f"{group.share:.2f}", group.worst
