"""A report as a table for people: alike sites of consecutive layers share one section."""

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
        numbers: the joined numbers alone; empty where paths have none, or vary in more than one.
        first: the group's first site; it speaks for all.
        count: sites in the group.
        read_bytes: K and V bytes that all of them read together; None when they have not been run.
        capacity_bytes: K and V bytes of all their caches together; None when the spec is not known.
    """

    layers: str
    numbers: str
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
    """A section for each group, a line for each thing that is known of it, so that nothing is cut off in a narrow
    terminal: where, what it computes, the verdict, the config and the record that it comes from, KV bytes read in a
    step against the capacity, and the reason."""
    table = Table(title=title, title_justify="left", show_header=False, pad_edge=False, collapse_padding=True)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for group in group_sites(report):
        table.add_section()
        for name, text in _lines(group):
            table.add_row(name, text)
    return table


def _lines(group: SiteGroup) -> Iterator[tuple[str, str]]:
    site = group.first
    count = f"{group.count} site{'s'[: group.count != 1]}"
    numbers = group.numbers.replace("-", "–")
    path = group.layers.replace(group.numbers, "*") if "," in numbers else group.layers  # a long list is read once
    where = f"layer{'s'[: not numbers.isdigit()]} {numbers}: {count}, {path}" if numbers else path
    yield "sites", f"[bold]{escape(where)}[/]"
    yield "form", site.form
    if site.spec is not None:
        yield "attention", escape(site.spec.describe())
    yield "verdict", f"[{'green' if site.lowered else 'yellow'}]{site.verdict.value}[/]"
    if site.config is not None:
        # Spaces for dashes, so that the name breaks between its parts and not inside one.
        yield "config", site.config.encode().replace("-", " ")
    if site.record is not None:
        yield "record", escape(site.record)
    if group.capacity_bytes is not None:
        yield "KV read", f"{_bytes(group.read_bytes)} of {_bytes(group.capacity_bytes)} a step"
    if site.reason:
        yield "reason", escape(site.reason)


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
    layers, numbers = _join_layers([site.layer for site in members])
    return SiteGroup(
        layers=layers or f"site {members[0].index}",
        numbers=numbers,
        first=members[0],
        count=len(members),
        read_bytes=_sum_if_known(reads),
        capacity_bytes=_sum_if_known(capacities),
    )


def _sum_if_known(values: list[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _join_layers(layers: list[str]) -> tuple[str, str]:
    """``a.0.b``, ``a.1.b``, ``a.3.b`` become ``a.0-1,3.b``, and ``0-1,3``; paths that vary elsewhere too are listed."""
    unique = list(dict.fromkeys(layers))
    numbers = [_LAYER_NUMBER.findall(layer) for layer in unique]
    varying = {position for row in numbers for position, _ in enumerate(row) if row[position] != numbers[0][position]}
    if not varying:
        return ", ".join(unique), numbers[0][0] if numbers[0] else ""
    if len(varying) > 1:
        return ", ".join(unique), ""
    position = varying.pop()
    ranges = _ranges(sorted({int(row[position]) for row in numbers}))
    seen = iter(range(len(numbers[0])))
    joined = _LAYER_NUMBER.sub(lambda match: ranges if next(seen) == position else match[0], unique[0])
    return joined, ranges


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
