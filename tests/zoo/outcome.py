"""What became of a cell under one workload, in the words that the record and the table are made of."""

from __future__ import annotations

from enum import Enum

import msgspec

from prefetch_compiler.report import Report

from .zoo_model import ZooModel


class Kind(str, Enum):
    """What the table says of a cell."""

    LOWERED = "lowered"
    PARTLY = "partly lowered"
    REFUSED = "refused"
    NOT_RECOGNISED = "not recognised"
    NOT_COMPILED = "not compiled"
    UNSUPPORTED = "unsupported"


class Outcome(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """``lowered`` of the architecture's attention layers run on our kernels; ``reasons`` say why the others do not (our
    report's words, or Dynamo's where it broke the graph and we saw none), or why the cell does not run at all (the
    exception). ``graphs`` is how many Dynamo captured."""

    kind: Kind
    lowered: int = 0
    reasons: tuple[str, ...] = ()
    graphs: int = 0


def outcome_of(report: Report, zoo_model: ZooModel, graphs: int, breaks: tuple[str, ...] = ()) -> Outcome:
    """A layer counts as lowered if it is in every graph that holds it. ``breaks``: why Dynamo broke graphs."""
    untouched = {site.layer: site.reason for site in report.sites if not site.lowered}
    lowered = len({site.layer for site in report.lowered} - set(untouched))
    reasons = tuple(sorted(set(untouched.values())))
    if lowered == zoo_model.sites and not reasons:
        kind = Kind.LOWERED
    elif lowered:
        kind = Kind.PARTLY
    else:
        kind = Kind.REFUSED if reasons else Kind.NOT_RECOGNISED
        reasons = reasons or breaks
    return Outcome(kind, lowered, reasons, graphs)


def first_sentence(error: BaseException) -> str:
    """An exception in a few words."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    name = type(error).__name__
    return f"{name}: {lines[0].partition('. ')[0]}" if lines else name
