"""The report: every attention site that a compile met, its verdict, and the reason."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from .config import KernelConfig
from .spec import AttentionSpec


class Verdict(str, Enum):
    """How a site's configuration was chosen; ``untouched`` sites are Inductor's, with a reason."""

    EXACT = "exact"
    BUCKET = "bucket"
    FAMILY = "family"
    HEURISTIC = "heuristic"
    UNTOUCHED = "untouched"


@dataclass
class SiteReport:
    """One attention site of one compiled graph.

    Attributes:
        index: number of the site in its graph, in program order.
        graph: number of the graph in this report (a model may compile into several).
        layer: path of the module that the site belongs to, as in ``model.layers.0.self_attn``.
        form: name of the recogniser that found it.
        reason: why the configuration was chosen, or why the site is untouched.
        record: name of the tuning key whose record the configuration comes from; None where it comes from none.
        keys_read: keys read per sequence, averaged over the batch, in the run that explain() made; None if not run.
        decode: False for attention that is no decode step (long queries, training), which nothing here is meant for.
    """

    index: int
    graph: int
    layer: str
    form: str
    verdict: Verdict = Verdict.UNTOUCHED
    reason: str = ""
    spec: AttentionSpec | None = None
    template: str | None = None
    config: KernelConfig | None = None
    record: str | None = None
    keys_read: float | None = None
    decode: bool = True

    @property
    def lowered(self) -> bool:
        return self.verdict is not Verdict.UNTOUCHED

    @property
    def capacity_bytes(self) -> int | None:
        """K and V bytes of the whole cache."""
        return None if self.spec is None else self.spec.capacity_bytes

    @property
    def read_bytes(self) -> int | None:
        """K and V bytes that the kernel reads; None when the site has not run under explain()."""
        if self.spec is None or self.keys_read is None:
            return None
        return round(self.spec.kv_bytes_per_key * self.keys_read)

    def __str__(self) -> str:
        """All that is known of the site, in one line."""
        spec = "-" if self.spec is None else self.spec.describe()
        config = "-" if self.config is None else self.config.encode()
        return f"{self.layer or self.index}: {self.verdict.value} | {spec} | {config} | {self.reason}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "index": self.index,
            "graph": self.graph,
            "layer": self.layer,
            "form": self.form,
            "verdict": self.verdict.value,
            "reason": self.reason,
            "spec": None if self.spec is None else self.spec.describe(),
            "template": self.template,
            "config": None if self.config is None else self.config.to_dict(),
            "record": self.record,
            "kv_bytes_read": self.read_bytes,
            "kv_bytes_capacity": self.capacity_bytes,
        }


@dataclass
class Report:
    """Every site met while the report was open, in order of compilation. ``digest`` is the ``selection_digest`` that
    its configurations were selected under; empty where nobody asked for it."""

    sites: list[SiteReport] = field(default_factory=list)
    graphs: int = 0
    number_across_graphs: bool = False
    digest: str = ""

    @property
    def lowered(self) -> list[SiteReport]:
        return [site for site in self.sites if site.lowered]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: ``{"graphs": n, "selection_digest": "...", "sites": [...]}``."""
        return {
            "graphs": self.graphs,
            "selection_digest": self.digest,
            "sites": [site.to_dict() for site in self.sites],
        }

    def __str__(self) -> str:
        lines = [f"{len(self.lowered)} of {len(self.sites)} attention sites lowered in {self.graphs} graph(s)"]
        return "\n".join([*lines, *(f"  {site}" for site in self.sites)])


_open_reports: ContextVar[tuple[Report, ...]] = ContextVar("kvprefetch_reports", default=())


@contextmanager
def collect_reports(*, number_across_graphs: bool = False) -> Iterator[Report]:
    """Collect into one Report the sites of every graph compiled by this backend inside the ``with`` block.

    A graph that torch.compile loads from its own compile cache reports its sites with what marking knew; use
    :func:`prefetch_compiler.explain`, which compiles afresh, for the whole account.

    Args:
        number_across_graphs: give every site its own number, where otherwise each graph's numbers begin at 0 (numbers
            are part of the compiled code, so that equal graphs find each other in compile caches).
    """
    report = Report(number_across_graphs=number_across_graphs)
    token = _open_reports.set((*_open_reports.get(), report))
    try:
        yield report
    finally:
        _open_reports.reset(token)


def first_number() -> int:
    """The number of the next graph's first site."""
    reports = _open_reports.get()
    return len(reports[-1].sites) if reports and reports[-1].number_across_graphs else 0


def publish(sites: list[SiteReport]) -> None:
    """Add one compiled graph's sites to every open report."""
    for report in _open_reports.get():
        report.sites.extend(replace(site, graph=report.graphs) for site in sites)
        report.graphs += 1
