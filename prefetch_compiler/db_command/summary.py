"""What a database holds, in a few figures: coverage, gains and which prefetch depths won. Plain data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log
from statistics import fmean

from ..database.key import TuningKey
from ..database.record import Measurement, TuningRecord


@dataclass(frozen=True)
class Shape:
    """Keys that differ in batch and capacity alone. ``name`` is that of a key without the two."""

    name: str
    records: int
    batches: tuple[int, ...]
    capacities: tuple[int, ...]


@dataclass(frozen=True)
class Summary:
    """Gains are geometric means over measured records, of the other's median time over the winner's: 1.1 is 10 % less
    time in the other's terms. None where nothing was measured. ``depths`` counts measured records by prefetch depth."""

    records: int
    measured: int
    shapes: tuple[Shape, ...]
    gain_over_default: float | None
    gain_over_depth0: float | None
    mean_ceiling_share: float | None
    depths: dict[int, int]


def summarise(records: Sequence[TuningRecord]) -> Summary:
    measured = [(record, record.evidence.measurement) for record in records if record.evidence.measurement is not None]
    measurements = [measurement for _, measurement in measured]
    shares = [measurement.ceiling_share for measurement in measurements if measurement.ceiling_share > 0]
    return Summary(
        records=len(records),
        measured=len(measured),
        shapes=_shapes(records),
        gain_over_default=_geometric_mean([gain_over_default(measurement) for measurement in measurements]),
        gain_over_depth0=_geometric_mean([gain_over_depth0(measurement) for measurement in measurements]),
        mean_ceiling_share=fmean(shares) if shares else None,
        depths=dict(sorted(Counter(record.config.prefetch_depth for record, _ in measured).items())),
    )


def gain_over_default(measurement: Measurement) -> float:
    return measurement.default.timing.median_us / measurement.timing.median_us


def gain_over_depth0(measurement: Measurement) -> float:
    return measurement.best_depth0.timing.median_us / measurement.timing.median_us


def shape_name(key: TuningKey) -> str:
    """A key's name without batch and capacity: ``bfloat16 32q/8kv d128 q1 bhsd-tma bool``."""
    sizes = {f"b{key.batch_bucket}", f"s{key.capacity_bucket}"}
    return " ".join(word for word in key.name.split() if word not in sizes)


def _shapes(records: Sequence[TuningRecord]) -> tuple[Shape, ...]:
    members: dict[str, list[TuningKey]] = {}
    for record in records:
        members.setdefault(shape_name(record.key), []).append(record.key)
    return tuple(
        Shape(
            name=name,
            records=len(keys),
            batches=tuple(sorted({key.batch_bucket for key in keys})),
            capacities=tuple(sorted({key.capacity_bucket for key in keys})),
        )
        for name, keys in members.items()
    )


def _geometric_mean(ratios: Sequence[float]) -> float | None:
    return exp(fmean(map(log, ratios))) if ratios else None
