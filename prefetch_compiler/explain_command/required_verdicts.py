"""What ``kvprefetch explain --require`` asks: that every decode attention has one of certain verdicts."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from ..errors import InvalidOptionError
from ..report import Report, Verdict
from ..site_table import group_sites


def parse_verdicts(text: str) -> frozenset[Verdict]:
    """``exact,bucket`` as verdicts.

    Raises:
        InvalidOptionError: one of the words is no verdict, or there is none.
    """
    try:
        return frozenset(Verdict(word.strip().lower()) for word in text.split(","))
    except ValueError as error:
        known = ", ".join(verdict.value for verdict in Verdict)
        raise InvalidOptionError("--require", text, f"verdicts, separated by commas: {known}") from error


def shortfalls(report: Report, required: Collection[Verdict]) -> Iterator[str]:
    """A line for each group of alike sites whose verdict is another, and one if there is no decode attention at all."""
    names = " or ".join(sorted(verdict.value for verdict in required))
    decode = [group for group in group_sites(report) if group.first.decode]
    if not decode:
        yield f"no decode attention was found, so none is {names}"
    for group in decode:
        site = group.first
        if site.verdict not in required:
            yield f"{group.layers}: {site.verdict.value}, not {names}: {site.reason}"
