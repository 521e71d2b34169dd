"""What the file format's types cannot say of a record: relations between fields."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import datetime

from .key import MaskClass, TuningKey, cache_problem, latent_problem, page_problem
from .record import Evidence, Measurement, Timing, TuningRecord

_ADDITIVE = (MaskClass.ADDITIVE, MaskClass.ADDITIVE_ROWS)


def problem(record: TuningRecord) -> str | None:
    """The first rule that ``record`` breaks, or None."""
    return next(_problems(record), None)


def _problems(record: TuningRecord) -> Iterator[str]:
    yield from _key_problems(record.key)
    yield from _evidence_problems(record.evidence)
    if record.evidence.measurement is not None:
        yield from _measurement_problems(record.evidence.measurement, record.key)


def _key_problems(key: TuningKey) -> Iterator[str]:
    for name in ("q_len_bucket", "batch_bucket", "capacity_bucket"):
        size = getattr(key, name)
        if size & (size - 1):
            yield f"{name} {size} is no power of two"
    if bool(key.mask_dtype) != (key.mask in _ADDITIVE):
        yield f"mask_dtype {key.mask_dtype!r} with a mask of class {key.mask.value}: additive masks have one, no other"
    for problem in (cache_problem(key), page_problem(key), latent_problem(key)):
        if problem is not None:
            yield problem
    if list(key.features) != sorted(set(key.features)):
        yield f"features {[feature.value for feature in key.features]} are not sorted and distinct"


def _evidence_problems(evidence: Evidence) -> Iterator[str]:
    try:
        # Python 3.10 does not know the Z.
        datetime.fromisoformat(evidence.date.removesuffix("Z"))
    except ValueError:
        yield f"date {evidence.date!r} is not in the calendar"
    if evidence.measurement is None and evidence.modelled_us is None:
        yield "neither a measurement nor a modelled time"


def _measurement_problems(measurement: Measurement, key: TuningKey) -> Iterator[str]:
    rivals = (("default", measurement.default), ("best_depth0", measurement.best_depth0))
    yield from _timing_problems("timing", measurement.timing)
    for name, rival in rivals:
        yield from _timing_problems(f"{name}.timing", rival.timing)
    if measurement.best_depth0.config.prefetches:
        yield f"best_depth0 prefetches: {measurement.best_depth0.config.encode()}"
    for value in (measurement.ceiling_share, measurement.error, *(fill.ceiling_us for fill in measurement.fills)):
        # Equal to zero, but written otherwise: equal records are equal bytes.
        if value == 0 and math.copysign(1, value) < 0:
            yield "minus zero"
    held = [fill.held for fill in measurement.fills]
    if held != sorted(held):
        yield f"fills held {held} are not ascending"
    if held[-1] > key.capacity_bucket:
        yield f"a fill of {held[-1]} keys is over the capacity of {key.capacity_bucket}"


def _timing_problems(name: str, timing: Timing) -> Iterator[str]:
    if not timing.p20_us <= timing.median_us <= timing.p80_us:
        yield f"{name} has p20 {timing.p20_us}, median {timing.median_us}, p80 {timing.p80_us}: out of order"
