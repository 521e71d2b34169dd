"""Combining databases of one GPU model: merge, diff, prune and export.

Rivals are records of one identity: the same key, template, template source and Triton minor version. Of rivals the
better evidenced stays, by the first of these that differs:

1. measured before unmeasured;
2. the lower median time (of unmeasured records: the lower modelled time);
3. more trials;
4. the later date;
5. the greater canonical bytes, which mean nothing and make the order total.

As the order is total and ``merge`` takes the greatest of each identity, it is associative, commutative and idempotent.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from .canonical import record_bytes
from .document import Database
from .errors import DeviceMismatchError
from .key import TuningKey
from .record import TuningRecord


def objective_us(record: TuningRecord) -> float:
    """The median time of a measured record, the modelled one of an unmeasured one; infinite where there is neither."""
    measurement = record.evidence.measurement
    if measurement is not None:
        return measurement.timing.median_us
    return float("inf") if record.evidence.modelled_us is None else record.evidence.modelled_us


def evidence_rank(record: TuningRecord) -> tuple[bool, float, int, str, bytes]:
    """Greater is better evidenced. No two different records have one rank."""
    evidence = record.evidence
    return record.measured, -objective_us(record), evidence.trials, evidence.date, record_bytes(record)


def merge(first: Database, *others: Database) -> Database:
    """Every record of all of them, and of rivals the better evidenced. A family fallback that one declares, all do.

    Raises:
        DeviceMismatchError: they are not of one GPU model.
    """
    _require_one_device(first, *others)
    best: dict[object, TuningRecord] = {}
    for database in (first, *others):
        for record in database.records:
            rival = best.get(record.identity)
            if rival is None or evidence_rank(record) > evidence_rank(rival):
                best[record.identity] = record
    fallback = any(database.family_fallback for database in (first, *others))
    return Database(first.device, tuple(best.values()), fallback)


@dataclass(frozen=True)
class Change:
    """A record and what takes its place: its rival, or the record of its key from another toolchain."""

    before: TuningRecord
    after: TuningRecord

    @property
    def time_ratio(self) -> float | None:
        """New over old median time, under 1 when it became faster; None unless both were measured.

        They were measured in different runs, so that a few per cent mean nothing.
        """
        if not (self.before.measured and self.after.measured):
            return None
        return objective_us(self.after) / objective_us(self.before)


@dataclass(frozen=True)
class Difference:
    """What turns one database into another; records in the order of the file."""

    added: tuple[TuningRecord, ...]
    removed: tuple[TuningRecord, ...]
    changed: tuple[Change, ...]

    @property
    def empty(self) -> bool:
        return not (self.added or self.removed or self.changed)


def diff(before: Database, after: Database) -> Difference:
    """Records are paired by identity first; of those left over, by key and template where just one is left on either
    side (a key that was tuned again under another toolchain).

    Raises:
        DeviceMismatchError: they are not of one GPU model.
    """
    _require_one_device(before, after)
    old = {record.identity: record for record in before.records}
    new = {record.identity: record for record in after.records}
    changed = [Change(old[name], new[name]) for name in old.keys() & new.keys() if old[name] != new[name]]
    removed = [record for name, record in old.items() if name not in new]
    added = [record for name, record in new.items() if name not in old]
    retuned = _retuned(removed, added)
    changed += retuned
    removed_ids = {change.before.identity for change in retuned}
    added_ids = {change.after.identity for change in retuned}
    place = {record.identity: index for index, record in enumerate(before.records)}
    return Difference(
        added=tuple(record for record in added if record.identity not in added_ids),
        removed=tuple(record for record in removed if record.identity not in removed_ids),
        changed=tuple(sorted(changed, key=lambda change: place[change.before.identity])),
    )


def _retuned(removed: list[TuningRecord], added: list[TuningRecord]) -> list[Change]:
    old, new = _by_key_and_template(removed), _by_key_and_template(added)
    return [Change(old[name][0], new[name][0]) for name in old if len(old[name]) == len(new.get(name, ())) == 1]


def _by_key_and_template(records: list[TuningRecord]) -> dict[object, list[TuningRecord]]:
    found: dict[object, list[TuningRecord]] = {}
    for record in records:
        found.setdefault((record.key, record.evidence.toolchain.template), []).append(record)
    return found


def keep(database: Database, wanted: Callable[[TuningRecord], bool]) -> Database:
    """The records for which ``wanted`` holds."""
    return replace(database, records=tuple(filter(wanted, database.records)))


def prune(
    database: Database,
    *,
    stale: Callable[[TuningRecord], bool] | None = None,
    unmeasured: bool = False,
    outranked: Callable[[TuningRecord], bool] | None = None,
) -> Database:
    """Drop what is stale, unmeasured or outranked.

    Args:
        stale: says of a record whether it was made with other kernels or another Triton; None keeps such records.
        unmeasured: whether records that never ran on the device go.
        outranked: as ``stale``: of the others of a key only the best evidenced stays. They need not be rivals, for a
            configuration with other features has other sources. None keeps them.
    """

    def stays(record: TuningRecord) -> bool:
        if stale is not None and stale(record):
            return False
        return record.measured or not unmeasured

    kept = keep(database, stays)
    return kept if outranked is None else _best_of_each_key(kept, outranked)


def _best_of_each_key(database: Database, stale: Callable[[TuningRecord], bool]) -> Database:
    fresh = [record for record in database.records if not stale(record)]
    best: dict[TuningKey, TuningRecord] = {}
    for record in sorted(fresh, key=evidence_rank):
        best[record.key] = record
    dropped = {record.identity for record in fresh if best[record.key] is not record}
    return keep(database, lambda record: record.identity not in dropped)


def export(database: Database, keys: Collection[TuningKey]) -> Database:
    """The records of ``keys`` alone. Which neighbours a model needs beside its own keys is the caller's choice."""
    wanted = set(keys)
    return keep(database, lambda record: record.key in wanted)


def _require_one_device(first: Database, *others: Database) -> None:
    for other in others:
        if other.device != first.device:
            raise DeviceMismatchError(first.device, other.device)
