"""A report as a table for people: alike sites of consecutive layers share one row."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from rich.markup import escape
from rich.table import Table

from .report import Report, SiteReport

_LAYER_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


@dataclass(frozen=True)
class SiteGroup:
    """Sites of one graph that differ in nothing but the layer's number.

    Attributes:
        layers: the module path with the numbers joined, as in ``model.layers.0-29.self_attn``.
        first: the group's first site; it speaks for all.
        count: sites in the group.
        read_bytes: K and V bytes that all of them read together; None when they have not been run.
        capacity_bytes: K and V bytes of all their caches together; None when the spec is not known.
    """

    layers: str
    first: SiteReport
    count: int
    read_bytes: int | None
    capacity_bytes: int | None


def group_sites(report: Report) -> list[SiteGroup]:
    """The report's sites, alike ones together, in the order of their first member."""
    groups: dict[tuple[object, ...], list[SiteReport]] = {}
    for site in report.sites:
        groups.setdefault(_likeness(site), []).append(site)
    return [_group(members) for members in groups.values()]


def site_table(report: Report, title: str | None = None) -> Table:
    """One row a group: where, what it computes, the verdict and why, the config, and KV bytes read against capacity."""
    table = Table(title=title, title_justify="left", show_lines=True, pad_edge=False, collapse_padding=True)
    # In a narrow terminal the columns of words give way, not paths and numbers.
    table.add_column("sites", overflow="fold", no_wrap=True)
    for heading in ("attention", "verdict", "config"):
        table.add_column(heading, overflow="fold")
    table.add_column("KV read\nof capacity", overflow="fold", no_wrap=True)
    for group in group_sites(report):
        table.add_row(*_cells(group))
    return table


def _cells(group: SiteGroup) -> Iterator[str]:
    site = group.first
    yield f"{group.layers}\n{site.form}" + (f" ×{group.count}" if group.count > 1 else "")
    yield "-" if site.spec is None else site.spec.describe()
    verdict = f"[{'green' if site.lowered else 'yellow'}]{site.verdict.value}[/]"
    reason = site.reason if site.reason.startswith(site.verdict.value) else f"{site.verdict.value}: {site.reason}"
    yield verdict + escape(reason.removeprefix(site.verdict.value).removesuffix(": "))
    # Spaces for dashes, so that the name breaks between its parts and not inside one.
    yield "-" if site.config is None else site.config.encode().replace("-", " ")
    yield f"{_bytes(group.read_bytes)}\nof {_bytes(group.capacity_bytes)}"


def summary_line(report: Report) -> str:
    """How much was lowered, in one line."""
    sites, graphs = len(report.sites), report.graphs
    return f"{len(report.lowered)} of {sites} attention sites lowered, in {graphs} compiled graph{'s'[: graphs != 1]}"


def _likeness(site: SiteReport) -> tuple[object, ...]:
    pattern = _LAYER_NUMBER.sub("*", site.layer)
    return (site.graph, pattern, site.form, site.spec, site.verdict, site.template, site.config, site.reason)


def _group(members: list[SiteReport]) -> SiteGroup:
    reads = [site.read_bytes for site in members]
    capacities = [site.capacity_bytes for site in members]
    return SiteGroup(
        layers=_join_layers([site.layer for site in members]) or f"site {members[0].index}",
        first=members[0],
        count=len(members),
        read_bytes=_sum_if_known(reads),
        capacity_bytes=_sum_if_known(capacities),
    )


def _sum_if_known(values: list[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _join_layers(layers: list[str]) -> str:
    """``a.0.b``, ``a.1.b``, ``a.3.b`` become ``a.0-1,3.b``; paths that vary elsewhere too are listed."""
    unique = list(dict.fromkeys(layers))
    numbers = [_LAYER_NUMBER.findall(layer) for layer in unique]
    varying = {position for row in numbers for position, _ in enumerate(row) if row[position] != numbers[0][position]}
    if len(varying) != 1:
        return ", ".join(unique)
    position = varying.pop()
    ranges = _ranges(sorted({int(row[position]) for row in numbers}))
    seen = iter(range(len(numbers[0])))
    return _LAYER_NUMBER.sub(lambda match: ranges if next(seen) == position else match[0], unique[0])


def _ranges(numbers: list[int]) -> str:
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)


def _bytes(count: int | None) -> str:
    if count is None:
        return "?"
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
