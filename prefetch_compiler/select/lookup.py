"""Spec + device + databases -> a recorded configuration, or why there is none.

Measured records, in this order:

1. ``exact``: of the spec's own key, on this GPU model.
2. ``bucket``: of a key that differs in the 16-bit dtype only (float16 for bfloat16 or the other way: as many bytes, and
   products of the same speed), or by one power of two in batch, in capacity or in both, on this GPU model. The same
   batch first, because the batch decides how many programs there are; then the same capacity; a larger neighbour
   before a smaller one (``NEIGHBOURS`` is the order); neighbours in the own dtype before those in the other.
3. ``family``: of the spec's own key, on another GPU model of the same backend and compute capability whose database
   declares it.

Then, only where that is allowed, records that were never measured, as ``exact`` and ``bucket``. Within one key:
measured before unmeasured, fresh before stale, a higher overlay before a lower one, better evidence before less.

A record of another size or GPU model is made to fit first (``transfer``). Every configuration must be admissible for
the spec itself; one that is not is passed over, with the reason.

A measured neighbour of another size that kept the heuristic's choice is made to fit by asking the heuristic about this
size: its choice for twice as long a cache has tiles of that cache's size.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from ..config import KernelConfig
from ..database.device_identity import identity_of
from ..database.key import TuningKey, key_of
from ..database.merge import objective_us
from ..database.overlay import Overlays
from ..database.record import TuningRecord
from ..device import DeviceProfile
from ..report import Verdict
from ..spec import AttentionSpec
from .admissible import why_inadmissible
from .candidates import BySizes, Candidate, Candidates, candidates_for, kind_of
from .heuristic import choose
from .transfer import transferred

log = logging.getLogger(__name__)

# Steps in powers of two of (batch, capacity), in the order in which they are tried.
NEIGHBOURS = ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1))

# Dtypes that kernels treat alike: as many bytes, and tensor cores as fast.
TWINS = {"float16": "bfloat16", "bfloat16": "float16"}

# Asked before a recorded configuration is used: why it is not to be, or None. The second argument is what is stale
# about its record, empty where nothing is.
Objection = Callable[[KernelConfig, str], str | None]


@dataclass(frozen=True)
class Found:
    """A configuration that is on record, made to fit; ``reason`` is for people."""

    verdict: Verdict
    config: KernelConfig
    record: TuningRecord
    reason: str


@dataclass(frozen=True)
class Missed:
    """Nothing on record can be used; ``passed_over`` says why not, for what there was."""

    passed_over: tuple[str, ...] = ()


def lookup(
    spec: AttentionSpec,
    profile: DeviceProfile,
    template: str,
    databases: Overlays,
    *,
    allow_unmeasured: bool = False,
    objection: Objection | None = None,
) -> Found | Missed:
    """The first record, in the order above, whose configuration can run ``spec`` on ``profile``."""
    if not databases.layers:
        return Missed()
    candidates = candidates_for(identity_of(profile), databases)
    key = key_of(spec)
    log.debug("looking up %s on %s", key.name, profile.name)
    passed_over = []
    for verdict, candidate in _in_order(candidates, key, template):
        config = _fitted(candidate, spec, key, verdict, profile)
        why_not = _why_not(candidate, config, spec, profile, allow_unmeasured, objection)
        outcome = "used" if why_not is None else f"passed over: {why_not}"
        log.debug(
            "%s %s of %s %s, %s: %s", verdict.value, candidate.record.key.name, candidate.device.name, config.encode(),
            candidate.stale or "fresh", outcome,
        )  # fmt: skip
        if why_not is None:
            return Found(verdict, config, candidate.record, _reason(verdict, candidate, key, config))
        passed_over.append(f"{candidate.record.key.name}: {why_not}")
    return Missed(tuple(passed_over))


def _in_order(candidates: Candidates, key: TuningKey, template: str) -> Iterator[tuple[Verdict, Candidate]]:
    kind = kind_of(key, template)
    own, donors = candidates.own.get(kind, {}), candidates.donors.get(kind, {})
    batch, capacity = key.batch_bucket, key.capacity_bucket
    exact = own.get((batch, capacity), ())
    yield from ((Verdict.EXACT, one) for one in exact if one.record.measured)
    twins = candidates.own.get(kind_of(twin, template), {}) if (twin := _twin(key)) is not None else {}
    in_twin = twins.get((batch, capacity), ())
    near = [one for of_kind in (own, twins) for one in _near(of_kind, batch, capacity)]
    yield from ((Verdict.BUCKET, one) for one in (*in_twin, *near) if one.record.measured)
    yield from ((Verdict.FAMILY, one) for one in donors.get((batch, capacity), ()) if one.record.measured)
    yield from ((Verdict.EXACT, one) for one in exact if not one.record.measured)
    yield from ((Verdict.BUCKET, one) for one in (*in_twin, *near) if not one.record.measured)


def _near(of_kind: BySizes, batch: int, capacity: int) -> Iterator[Candidate]:
    for step in NEIGHBOURS if of_kind else ():
        yield from of_kind.get(_stepped(batch, capacity, step), ())


def _twin(key: TuningKey) -> TuningKey | None:
    """The key in the other 16-bit dtype."""
    if key.dtype not in TWINS:
        return None
    names = ("dtype", "kv_dtype", "mask_dtype")
    return replace(key, **{name: TWINS.get(getattr(key, name), getattr(key, name)) for name in names})


def _stepped(batch: int, capacity: int, step: tuple[int, int]) -> tuple[int, int]:
    """Powers of two up or down; below 1 there is 0, which no key has."""
    return batch << 1 >> 1 - step[0], capacity << 1 >> 1 - step[1]


def _fitted(
    candidate: Candidate, spec: AttentionSpec, key: TuningKey, verdict: Verdict, profile: DeviceProfile
) -> KernelConfig:
    record = candidate.record
    if verdict is Verdict.EXACT:
        return record.config
    if _confirms_heuristic(record, key):
        return choose(spec, profile)
    return transferred(record.config, record.key, candidate.device.sm_count, key, profile.sm_count)


def _confirms_heuristic(record: TuningRecord, key: TuningKey) -> bool:
    """Whether ``record`` is of another size than ``key``, and measuring left the heuristic's choice in place there."""
    same_size = (record.key.batch_bucket, record.key.capacity_bucket) == (key.batch_bucket, key.capacity_bucket)
    measurement = record.evidence.measurement
    return not same_size and measurement is not None and measurement.default.config == record.config


def _why_not(
    candidate: Candidate,
    config: KernelConfig,
    spec: AttentionSpec,
    profile: DeviceProfile,
    allow_unmeasured: bool,
    objection: Objection | None,
) -> str | None:
    if not (candidate.record.measured or allow_unmeasured):
        return "never measured, only ranked by a model (the option kvprefetch.allow_unmeasured admits it)"
    inadmissible = why_inadmissible(spec, config, profile)
    if inadmissible is not None or objection is None:
        return inadmissible
    return objection(config, candidate.stale)


def _reason(verdict: Verdict, candidate: Candidate, key: TuningKey, config: KernelConfig) -> str:
    """``tuned for NVIDIA H200: bfloat16 32q/8kv d128 q1 b16 s4096 ..., 33.1 us, 1.08x over the heuristic``."""
    record = candidate.record
    where = {Verdict.BUCKET: ", a neighbouring key", Verdict.FAMILY: ", a GPU of the same family"}.get(verdict, "")
    words = [f"tuned for {candidate.device.name}{where}: {record.key.name}", _evidence(record)]
    if verdict is not Verdict.EXACT and _confirms_heuristic(record, key):
        words.append("where nothing beat the heuristic, which chose for this size too")
    elif config.num_splits != record.config.num_splits:
        words.append(f"{record.config.num_splits} splits there, {config.num_splits} here")
    if candidate.stale:
        words.append(candidate.stale)
    return ", ".join(words)


def _evidence(record: TuningRecord) -> str:
    measurement = record.evidence.measurement
    if measurement is None:
        return f"never measured, {objective_us(record):.1f} us by a model"
    gain = measurement.default.timing.median_us / measurement.timing.median_us
    return f"{measurement.timing.median_us:.1f} us, {gain:.2f}x over the heuristic"
