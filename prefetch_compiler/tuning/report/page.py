"""The page: sources in, one self-contained HTML file out.

What comes from files meets the page in three places, and is made harmless in each: in HTML by Jinja's autoescaping, in
figures as JSON without ``<``, ``>`` and ``&``, and in figures' labels as escaped text. Only scripts with the page's own
nonce run, and nothing is loaded from anywhere.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from ... import __version__
from .embedded import Figures
from .errors import EmptyReportError, ReportNotWrittenError
from .records_section import records_section
from .rows import Row
from .source import RecordsSource, StudiesSource, open_source
from .studies_section import studies_section
from .theme import byte_size, microseconds, times


def write_report(sources: Sequence[str], out: Path, only: str = "") -> Path:
    """Make a page of databases and storages of studies, and write it to ``out``.

    Args:
        only: of studies, those whose name contains this.

    Raises:
        ReportSourceError, DatabaseError, InvalidStorageError: a source cannot be read.
        EmptyReportError: there is nothing in them.
        ReportNotWrittenError: ``out`` cannot be written.
    """
    html = render([open_source(source) for source in sources], only)
    try:
        out.write_text(html, encoding="utf-8")
    except OSError as error:
        raise ReportNotWrittenError(out, error) from error
    return out


def render(sources: Sequence[RecordsSource | StudiesSource], only: str = "", now: datetime | None = None) -> str:
    """The page as text.

    Raises:
        EmptyReportError: no records and no studies.
    """
    figures = Figures()
    databases = [records_section(source, figures) for source in sources if isinstance(source, RecordsSource)]
    studies = [
        section
        for source in sources
        if isinstance(source, StudiesSource) and (section := studies_section(source, figures, only)) is not None
    ]
    if not studies and not any(section["summary"].records for section in databases):
        raise EmptyReportError(source.name for source in sources)
    return _html(databases, studies, figures, now or datetime.now(timezone.utc))


def _html(databases: list[Any], studies: list[Any], figures: Figures, now: datetime) -> str:
    assets = files(__package__) / "assets"
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (assets / name).read_text("utf-8")),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "microseconds": microseconds,
        "bytes": byte_size,
        "times": times,
        "share": _share,
        "spread": _spread,
    }
    return environment.get_template("page.html.j2").render(
        databases=databases,
        studies=studies,
        figures=figures.json,
        style=Markup((assets / "report.css").read_text("utf-8")),
        script=Markup((assets / "report.js").read_text("utf-8")),
        plotly=Markup(get_plotlyjs().replace("</script", "<\\/script")),
        nonce=secrets.token_hex(16),
        version=__version__,
        now=now.strftime("%Y-%m-%d %H:%M UTC"),
        title=_title(databases, studies),
    )


def _title(databases: list[Any], studies: list[Any]) -> str:
    devices = [section["device"].name for section in databases]
    devices += [device for section in studies for device in section["devices"]]
    return f"Tuning report: {', '.join(dict.fromkeys(devices)) or 'studies'}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _spread(row: Row) -> str:
    """``3.41–3.51 µs``."""
    low, high = microseconds(row.p20_us), microseconds(row.p80_us)
    same_unit = low.split()[-1] == high.split()[-1]
    return f"{low.split()[0]}–{high}" if same_unit else f"{low} – {high}"
