"""``kvprefetch report``: what to show, and where the page goes."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

_PACKAGES = ("plotly", "jinja2", "sklearn")


def report(
    sources: Annotated[
        list[str],
        typer.Argument(help="Tuning databases (.json) and storages of studies (an SQLite file, a URL, journal:PATH)."),
    ],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
    study: Annotated[str, typer.Option(help="Only studies whose name contains this.")] = "",
) -> None:
    """Make one HTML page of a tuning database, of Optuna studies, or of both: no network is needed to read it."""
    from ...demo.errors import MissingExtraError

    missing = [package for package in _PACKAGES if find_spec(package) is None]
    if missing:
        raise MissingExtraError("report", missing)
    from .page import write_report

    typer.echo(write_report(sources, out, study))
