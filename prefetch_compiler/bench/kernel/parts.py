"""The results of a run in parts, one for each GPU of a machine, as one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import InvalidResultError
from .cases import Case
from .grid import Sweep, declared, swept
from .result import KernelRun, NotRun, read_run

# What parts of one run may differ in.
_OWN_SETTINGS = ("cases", "part")
_OWN_ENVIRONMENT = ("command",)


def read_parts(paths: Sequence[Path]) -> KernelRun:
    """What the files hold as one run, cases in the grid's order.

    Raises:
        InvalidResultError: one cannot be read, differs from the first in more than its cases, or has a case of another.
    """
    runs = [read_run(path) for path in paths]
    first, measured = runs[0], {one.case for one in runs[0].cases}
    for path, run in zip(paths[1:], runs[1:], strict=True):
        problem = _difference(first, run) or _shared(measured, run)
        if problem:
            raise InvalidResultError(path, "bench kernel", problem)
        measured |= {one.case for one in run.cases}
    if len(runs) == 1:
        return first
    pool = declared() if first.sweep is None else swept(Sweep(first.sweep))
    place = {case: index for index, case in enumerate(pool)}
    cases = sorted((one for run in runs for one in run.cases), key=lambda one: place.get(one.case, len(place)))
    missing = [one for run in runs for one in run.not_run if one.case not in measured]
    return KernelRun(
        {**first.settings, "cases": len(cases) + len(missing), "part": None},
        {**first.environment, "command": "; ".join(str(run.environment.get("command")) for run in runs)},
        first.availability,
        cases,
        _once(missing),
    )


def _difference(first: KernelRun, other: KernelRun) -> str:
    for kind, own, one, two in (
        ("settings", _OWN_SETTINGS, first.settings, other.settings),
        ("environment", _OWN_ENVIRONMENT, first.environment, other.environment),
    ):
        for name in sorted((one.keys() | two.keys()) - set(own)):
            if one.get(name) != two.get(name):
                return f"{kind}: {name} is {two.get(name)!r}, and {one.get(name)!r} in the first file"
    if first.availability != other.availability:
        return "other peers can be loaded than in the first file"
    return ""


def _shared(measured: set[Case], run: KernelRun) -> str:
    return next((f"{one.case.name} is in another file" for one in run.cases if one.case in measured), "")


def _once(missing: Sequence[NotRun]) -> list[NotRun]:
    return list({one.case: one for one in missing}.values())
