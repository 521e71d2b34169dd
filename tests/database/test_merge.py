"""merge, diff, prune and export: laws by hypothesis, the documented order by examples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefetch_compiler.database.document import Database, decode, encode
from prefetch_compiler.database.errors import DeviceMismatchError
from prefetch_compiler.database.merge import diff, evidence_rank, export, keep, merge, prune
from prefetch_compiler.database.record import TuningRecord

from .examples import CONFIG, H100, H200, KEY, TOOLCHAIN, database, databases, measured, modelled, rival_databases

OTHER_KEY = KEY.at(batch=1, capacity=1024)
any_h200 = rival_databases | databases(st.just(H200))


@given(any_h200, any_h200, any_h200)
def test_merging_is_associative(a: Database, b: Database, c: Database) -> None:
    assert encode(merge(merge(a, b), c)) == encode(merge(a, merge(b, c))) == encode(merge(a, b, c))


@given(rival_databases, rival_databases)
def test_merging_is_commutative(a: Database, b: Database) -> None:
    assert encode(merge(a, b)) == encode(merge(b, a))


@given(any_h200, any_h200)
def test_merging_is_idempotent(a: Database, b: Database) -> None:
    assert merge(a) == merge(a, a) == a
    assert merge(merge(a, b), b) == merge(a, b)


@given(rival_databases, rival_databases)
def test_merging_keeps_one_record_of_every_identity_and_invents_none(a: Database, b: Database) -> None:
    merged = merge(a, b).records
    given_records = {*a.records, *b.records}
    assert set(merged) <= given_records
    assert sorted(map(repr, {record.identity for record in given_records})) == sorted(repr(r.identity) for r in merged)


@given(any_h200, any_h200)
def test_what_merging_gives_can_be_written_and_read(a: Database, b: Database) -> None:
    assert decode(encode(merge(a, b))) == merge(a, b)


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (measured(trials=1, median_us=99.0, date="2020-01-01"), modelled(trials=1000)),
        (measured(trials=1, median_us=19.9, date="2020-01-01"), measured(trials=64, median_us=20.0)),
        (measured(trials=65, date="2020-01-01"), measured(trials=64)),
        (modelled(modelled_us=9.0), modelled(modelled_us=10.0)),
        (measured(date="2026-02-01"), measured(date="2026-01-31T23:59:59Z")),
        (measured(date="2026-02-01T00:00:01Z"), measured(date="2026-02-01T00:00:00Z")),
    ],
    ids=["measured", "faster", "trials", "modelled faster", "later day", "later second"],
)
def test_the_better_evidenced_record_stays(better: TuningRecord, worse: TuningRecord) -> None:
    assert better.identity == worse.identity
    for pair in ((better, worse), (worse, better)):
        assert merge(*(database(record) for record in pair)).records == (better,)


def test_records_that_differ_in_nothing_that_counts_are_still_ordered() -> None:
    one, other = measured(config=CONFIG), measured(config=replace(CONFIG, num_splits=5))
    assert merge(database(one), database(other)) == merge(database(other), database(one))


@pytest.mark.parametrize(
    "toolchain",
    [replace(TOOLCHAIN, template_hash="f" * 64), replace(TOOLCHAIN, triton="3.7.0"), replace(TOOLCHAIN, template="x")],
)
def test_other_kernels_are_no_rivals(toolchain: object) -> None:
    one, other = measured(), measured(toolchain=toolchain)  # type: ignore[arg-type]
    assert set(merge(database(one), database(other)).records) == {one, other}


def test_another_patch_version_of_triton_is_a_rival() -> None:
    one, other = measured(), measured(trials=65, toolchain=replace(TOOLCHAIN, triton="3.6.1", torch="2.12.0"))
    assert merge(database(one), database(other)).records == (other,)


def test_a_declared_family_fallback_stays_declared() -> None:
    declared, undeclared = database(family_fallback=True), database()
    assert merge(declared, undeclared).family_fallback and merge(undeclared, declared).family_fallback
    assert not merge(undeclared, undeclared).family_fallback


@pytest.mark.parametrize("combine", [merge, diff])
def test_devices_are_not_mixed(combine: Callable[[Database, Database], object]) -> None:
    for other in (H100, replace(H200, sm_count=114), replace(H200, arch=100), replace(H200, backend="hip")):
        with pytest.raises(DeviceMismatchError, match="NVIDIA H200") as error:
            combine(database(measured()), Database(other, ()))
        assert f"{other.name} ({other.backend}, arch {other.arch}, {other.sm_count} SMs)" in str(error.value)


# diff


@given(any_h200, any_h200)
def test_a_difference_accounts_for_every_record(before: Database, after: Database) -> None:
    found = diff(before, after)
    gone = {*found.removed, *(change.before for change in found.changed)}
    new = {*found.added, *(change.after for change in found.changed)}
    assert set(before.records) - gone | new == set(after.records)
    assert not gone & new
    assert len(gone) == len(found.removed) + len(found.changed)
    assert found.empty == (before.records == after.records)


@given(any_h200, any_h200)
def test_a_difference_turned_round_is_turned_round(before: Database, after: Database) -> None:
    there, back = diff(before, after), diff(after, before)
    assert set(there.added) == set(back.removed)
    assert {(c.before, c.after) for c in there.changed} == {(c.after, c.before) for c in back.changed}


def test_a_change_tells_the_ratio_of_times() -> None:
    faster = diff(database(measured(median_us=20.0)), database(measured(median_us=15.0)))
    assert [change.time_ratio for change in faster.changed] == [0.75]
    assert not faster.added and not faster.removed
    unmeasured = diff(database(modelled()), database(measured()))
    assert [change.time_ratio for change in unmeasured.changed] == [None]


def test_a_key_tuned_again_for_other_kernels_is_a_change() -> None:
    old = measured()
    new = measured(median_us=15.0, toolchain=replace(TOOLCHAIN, template_hash="f" * 64))
    found = diff(database(old), database(new, measured(OTHER_KEY)))
    assert [(change.before, change.after) for change in found.changed] == [(old, new)]
    assert found.added == (measured(OTHER_KEY),)


def test_which_record_replaced_which_is_not_guessed() -> None:
    hashes = ("e" * 64, "f" * 64)
    new = [measured(toolchain=replace(TOOLCHAIN, template_hash=name)) for name in hashes]
    found = diff(database(measured()), database(*new))
    assert found.removed == (measured(),)
    assert set(found.added) == set(new)
    assert not found.changed


# prune and export

FRESH = measured()
OTHER_SOURCE = measured(toolchain=replace(TOOLCHAIN, template_hash="f" * 64))
OTHER_TRITON = measured(toolchain=replace(TOOLCHAIN, triton="3.7.1"))
OTHER_TEMPLATE = measured(toolchain=replace(TOOLCHAIN, template="gone"))
MODELLED = modelled(OTHER_KEY)
ALL = {FRESH, OTHER_SOURCE, OTHER_TRITON, OTHER_TEMPLATE, MODELLED}
STALE = {OTHER_SOURCE, OTHER_TRITON, OTHER_TEMPLATE}


@pytest.mark.parametrize(
    ("options", "dropped"),
    [
        ({}, set()),
        ({"stale": STALE.__contains__}, STALE),
        ({"unmeasured": True}, {MODELLED}),
        ({"stale": STALE.__contains__, "unmeasured": True}, ALL - {FRESH}),
        ({"outranked": STALE.__contains__}, set()),
        ({"outranked": (STALE - {OTHER_SOURCE}).__contains__}, {min(FRESH, OTHER_SOURCE, key=evidence_rank)}),
    ],
)
def test_pruning_drops_what_it_is_told(options: dict[str, object], dropped: set[TuningRecord]) -> None:
    everything = database(*ALL, family_fallback=True)
    pruned = prune(everything, **options)  # type: ignore[arg-type]
    assert set(pruned.records) == ALL - dropped
    assert pruned.family_fallback and pruned.device == H200


def test_what_is_outranked_goes_though_it_is_no_rival() -> None:
    """Another knob, and so other sources: merging leaves both."""
    slow = measured(toolchain=replace(TOOLCHAIN, template_hash="e" * 64), trials=FRESH.evidence.trials - 1)
    both = merge(database(slow, MODELLED), database(FRESH))
    assert {slow, FRESH} < set(both.records)
    assert set(prune(both, outranked=lambda record: False).records) == {FRESH, MODELLED}


def test_exporting_keeps_the_keys_asked_for() -> None:
    everything = database(*ALL, family_fallback=True)
    assert set(export(everything, [OTHER_KEY, KEY.at(batch=256, capacity=128)]).records) == {MODELLED}
    assert export(everything, [KEY, OTHER_KEY]) == everything
    assert export(everything, []) == replace(everything, records=())
    assert keep(everything, lambda record: record.measured) == prune(everything, unmeasured=True)
