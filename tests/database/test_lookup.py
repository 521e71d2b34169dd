"""Lookup: which record serves a site, made to fit how, and said why."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prefetch_compiler.templates.manifest import SPLIT_KV

from prefetch_compiler.config import KernelConfig, Merge, Partition
from prefetch_compiler.database.device_identity import identity_of
from prefetch_compiler.database.document import Database
from prefetch_compiler.database.key import Alignment, Feature, Layout, MaskClass, TuningKey, key_of
from prefetch_compiler.database.overlay import NO_DATABASES, Overlays
from prefetch_compiler.database.record import DeviceIdentity, Toolchain, TuningRecord
from prefetch_compiler.database.template_hash import hash_for
from prefetch_compiler.device import REFERENCE_DEVICES, DeviceProfile
from prefetch_compiler.report import Verdict
from prefetch_compiler.select.admissible import why_inadmissible
from prefetch_compiler.select.candidates import triton_minor
from prefetch_compiler.select.heuristic import choose
from prefetch_compiler.select.lookup import NEIGHBOURS
from prefetch_compiler.select.selection import Selection, select
from prefetch_compiler.select.transfer import transferred

from .examples import H100, H200, KEY, configs, measured, modelled
from .specs import specs

ON_H200 = REFERENCE_DEVICES[90]
CONFIG, SECOND, THIRD = (KernelConfig(64, splits, 4, 3) for splits in (4, 6, 8))
FRESH = Toolchain(SPLIT_KV.name, hash_for(SPLIT_KV, KEY, CONFIG), "2.11.0", f"{triton_minor()}.0", "580")
OLD_TRITON = replace(FRESH, triton="2.1.0")
OTHER_SOURCE = replace(FRESH, template_hash="0" * 64)
# Not what the heuristic would say, and no two alike.


def fresh(key: TuningKey) -> Toolchain:
    return replace(FRESH, template_hash=hash_for(SPLIT_KV, key, CONFIG))


def record(key: TuningKey = KEY, config: KernelConfig = CONFIG, **values: Any) -> TuningRecord:
    return measured(key, config=config, **{"toolchain": fresh(key), **values})


def unmeasured(key: TuningKey = KEY, config: KernelConfig = CONFIG) -> TuningRecord:
    made = modelled(key)
    return replace(made, config=config, evidence=replace(made.evidence, toolchain=fresh(key)))


def overlays(*layers: Any, device: DeviceIdentity = H200, family_fallback: bool = False) -> Overlays:
    """A database for each layer, of a record or several."""
    listed = [(layer,) if isinstance(layer, TuningRecord) else layer for layer in layers]
    return Overlays(tuple((Database(device, records, family_fallback),) for records in listed))


def selected(databases: Overlays, key: TuningKey = KEY, profile: DeviceProfile = ON_H200, **more: Any) -> Selection:
    return select(key.spec(), profile, databases, **more)


def test_the_identities_agree() -> None:
    assert identity_of(ON_H200) == H200


def test_nothing_on_record_is_the_heuristic() -> None:
    found = selected(NO_DATABASES)
    assert (found.verdict, found.config) == (Verdict.HEURISTIC, choose(KEY.spec(), ON_H200))
    assert found.reason == "heuristic for NVIDIA H200"


def test_the_own_key_is_exact_and_says_what_it_was_worth() -> None:
    found = selected(overlays(record(median_us=20.0, default_us=25.0)))
    assert (found.verdict, found.config, found.tuned_at) == (Verdict.EXACT, CONFIG, KEY)
    assert found.reason == f"tuned for NVIDIA H200: {KEY.name}, 20.0 us, 1.25x over the heuristic"


@settings(max_examples=200, deadline=None)
@given(specs(), configs)
def test_every_spec_of_a_bucket_finds_its_record(spec: Any, config: KernelConfig) -> None:
    key = key_of(spec)
    if why_inadmissible(key.spec(), config, ON_H200) is None:
        found = select(spec, ON_H200, overlays(record(key, config)))
        assert (found.verdict, found.config) == (Verdict.EXACT, config)


KEY_CHANGES: dict[str, Any] = {
    "dtype": "float16",
    "kv_dtype": "float16",
    "group": 8,
    "kv_heads": 4,
    "head_dim": 64,
    "value_dim": 64,
    "q_len_bucket": 2,
    "batch_bucket": 32,
    "capacity_bucket": 8192,
    "layout": Layout.BSHD,
    "alignment": Alignment.ROWS,
    "mask": MaskClass.NONE,
    "mask_dtype": "float16",
    "features": (Feature.GROWING,),
}


def test_every_field_of_a_key_is_changed_below() -> None:
    assert KEY_CHANGES.keys() == {field.name for field in fields(TuningKey)}


@pytest.mark.parametrize("name", KEY_CHANGES)
def test_another_key_is_no_exact_hit(name: str) -> None:
    found = selected(overlays(record(replace(KEY, **{name: KEY_CHANGES[name]}))))
    assert found.verdict is (Verdict.BUCKET if name in ("batch_bucket", "capacity_bucket") else Verdict.HEURISTIC)


DEVICE_CHANGES: dict[str, Any] = {"name": "NVIDIA H20", "backend": "hip", "arch": 100, "sm_count": 131}


def test_every_field_of_a_device_is_changed_below() -> None:
    assert DEVICE_CHANGES.keys() == {field.name for field in fields(DeviceIdentity)}


@pytest.mark.parametrize("name", DEVICE_CHANGES)
@pytest.mark.parametrize("other_is", ["the record's", "the site's"])
def test_another_device_takes_no_record_unless_it_is_declared(name: str, other_is: str) -> None:
    if other_is == "the record's":
        found = selected(overlays(record(), device=replace(H200, **{name: DEVICE_CHANGES[name]})))
    else:
        found = selected(overlays(record()), profile=replace(ON_H200, **{name: DEVICE_CHANGES[name]}))
    assert found.verdict is Verdict.HEURISTIC


# Neighbouring buckets


def at(batch_step: int, capacity_step: int) -> TuningKey:
    return KEY.at(batch=int(KEY.batch_bucket * 2.0**batch_step), capacity=int(KEY.capacity_bucket * 2.0**capacity_step))


def kept(key: TuningKey) -> TuningRecord:
    """A record of ``key`` that nothing beat the heuristic's choice for."""
    config = choose(key.spec(), ON_H200)
    made = record(key, config, toolchain=replace(FRESH, template_hash=hash_for(SPLIT_KV, key, config)))
    measurement = made.evidence.measurement
    assert measurement is not None
    measurement = replace(measurement, default=replace(measurement.default, config=config))
    return replace(made, evidence=replace(made.evidence, measurement=measurement))


def test_of_a_neighbour_that_kept_the_heuristics_choice_the_heuristics_choice_for_this_size_is_taken() -> None:
    """Here the two differ: half as long a cache gets fewer splits than are right for the whole."""
    longer = at(0, 1)
    assert transferred(choose(longer.spec(), ON_H200), longer, 132, KEY, 132) != choose(KEY.spec(), ON_H200)
    found = selected(overlays([kept(longer), record(at(0, -1), SECOND)]))
    assert (found.verdict, found.config, found.tuned_at) == (Verdict.BUCKET, choose(KEY.spec(), ON_H200), longer)
    assert found.reason.endswith("where nothing beat the heuristic, which chose for this size too")


def test_the_own_key_and_its_twin_serve_the_heuristics_choice_as_it_was_measured() -> None:
    assert selected(overlays(kept(KEY))).verdict is Verdict.EXACT
    twin = replace(KEY, dtype="float16", kv_dtype="float16")
    found = selected(overlays(kept(twin)))
    assert (found.verdict, found.config) == (Verdict.BUCKET, choose(twin.spec(), ON_H200))


def test_a_nearer_neighbour_that_beat_the_heuristic_is_used() -> None:
    found = selected(overlays([record(at(0, 1), SECOND), kept(at(1, 0))]))
    assert (found.verdict, found.tuned_at) == (Verdict.BUCKET, at(0, 1))


@pytest.mark.parametrize("batch_step", [-2, -1, 0, 1, 2])
@pytest.mark.parametrize("capacity_step", [-2, -1, 0, 1, 2])
def test_a_neighbour_is_one_power_of_two_away(batch_step: int, capacity_step: int) -> None:
    found = selected(overlays(record(at(batch_step, capacity_step))))
    far = max(abs(batch_step), abs(capacity_step))
    assert found.verdict is (Verdict.EXACT, Verdict.BUCKET, Verdict.HEURISTIC)[far]
    if far == 1:
        assert found.reason.startswith("tuned for NVIDIA H200, a neighbouring key: ")
        assert at(batch_step, capacity_step).name in found.reason


def test_neighbours_are_tried_in_their_order() -> None:
    """Every record but those already tried: the next in the documented order is taken."""
    assert len(set(NEIGHBOURS)) == 8
    same_batch = [(0, 1), (0, -1)]
    same_capacity = [(1, 0), (-1, 0)]
    assert [*NEIGHBOURS[:4]] == same_batch + same_capacity
    for tried in range(len(NEIGHBOURS)):
        found = selected(overlays(tuple(record(at(*step)) for step in reversed(NEIGHBOURS[tried:]))))
        assert found.tuned_at == at(*NEIGHBOURS[tried])


def test_the_own_key_goes_before_its_neighbours() -> None:
    found = selected(overlays((record(config=SECOND), *(record(at(*step)) for step in NEIGHBOURS))))
    assert (found.verdict, found.config) == (Verdict.EXACT, SECOND)


def in_other_dtype(key: TuningKey) -> TuningKey:
    """float16 for bfloat16, throughout."""
    assert key.dtype == key.kv_dtype == "bfloat16"
    assert not key.mask_dtype
    return replace(key, dtype="float16", kv_dtype="float16")


def test_the_two_16_bit_dtypes_serve_one_another() -> None:
    other = in_other_dtype(KEY)
    for recorded, wanted in ((KEY, other), (other, KEY)):
        found = selected(overlays(record(recorded)), wanted)
        assert (found.verdict, found.config, found.tuned_at) == (Verdict.BUCKET, CONFIG, recorded)
        assert recorded.name in found.reason
    additive = [replace(key, mask=MaskClass.ADDITIVE, mask_dtype=key.dtype) for key in (KEY, other)]
    assert selected(overlays(record(additive[0])), additive[1]).tuned_at == additive[0]


def test_float32_serves_no_16_bit_dtype() -> None:
    single = replace(KEY, dtype="float32", kv_dtype="float32")
    assert selected(overlays(record(single))).verdict is Verdict.HEURISTIC
    assert selected(overlays(record()), single).verdict is Verdict.HEURISTIC


def test_the_other_dtype_at_the_same_sizes_goes_before_neighbours() -> None:
    neighbours = [at(*step) for step in NEIGHBOURS]
    everyone = [KEY, in_other_dtype(KEY), *neighbours, *map(in_other_dtype, neighbours)]
    for tried in range(len(everyone)):
        assert selected(overlays(tuple(map(record, reversed(everyone[tried:]))))).tuned_at == everyone[tried]


SMALLEST = KEY.at(batch=1, capacity=1)


def test_there_is_no_bucket_below_the_smallest() -> None:
    neighbours = [SMALLEST.at(batch=2, capacity=1), SMALLEST.at(batch=1, capacity=2)]
    assert selected(overlays(tuple(map(record, neighbours))), SMALLEST).tuned_at == neighbours[1]


# Making a configuration fit


def splits(config: KernelConfig, there: TuningKey, here: TuningKey, sms: tuple[int, int] = (132, 132)) -> int:
    return transferred(config, there, sms[0], here, sms[1]).num_splits


def test_twice_the_batch_takes_half_the_splits() -> None:
    assert splits(CONFIG, KEY, at(1, 0)) == 2
    assert splits(CONFIG, KEY, at(-1, 0)) == 8
    assert splits(CONFIG, KEY, at(0, 1)) == splits(CONFIG, KEY, at(0, -1)) == 4
    assert splits(replace(CONFIG, num_splits=3), KEY, at(1, 0)) == 2


def test_splits_follow_the_number_of_sms() -> None:
    assert splits(CONFIG, KEY, KEY, (132, 66)) == 2
    assert splits(CONFIG, KEY, KEY, (66, 132)) == 8


def test_there_are_no_more_splits_than_tiles() -> None:
    tiny = KEY.at(batch=1, capacity=128)
    assert splits(replace(CONFIG, num_splits=16), tiny.at(batch=1, capacity=256), tiny) == 128 // CONFIG.block_kv


def test_what_fills_the_device_unsplit_stays_unsplit() -> None:
    unsplit = replace(CONFIG, num_splits=1)
    filled = KEY.at(batch=32, capacity=4096)
    assert filled.batch_bucket * filled.kv_heads >= 132
    assert splits(unsplit, filled.at(batch=64, capacity=4096), filled) == 1
    assert splits(unsplit, KEY, at(-1, 0)) == 2


def test_streamed_programs_share_a_batch_of_any_size() -> None:
    """Their number follows that of SMs, and is limited by the tiles of all sequences."""
    streamed = replace(CONFIG, num_splits=33, partition=Partition.STREAMED)
    long = KEY.at(batch=16, capacity=8192)
    assert splits(streamed, long, long.at(batch=64, capacity=8192)) == 33
    assert splits(streamed, long, long, (132, 66)) == 17
    tiles = 256 // CONFIG.block_kv
    assert splits(streamed, long, long.at(batch=4, capacity=256)) == 4 * tiles
    assert splits(streamed, long, long.at(batch=1, capacity=256)) == tiles


def test_one_split_has_nothing_to_merge() -> None:
    made = transferred(replace(CONFIG, num_splits=2, merge=Merge.INPLACE), KEY, 132, at(1, 0), 132)
    assert (made.num_splits, made.merge) == (1, Merge.SEPARATE)


@settings(max_examples=300)
@given(configs, st.integers(0, 9), st.integers(0, 17), st.integers(-1, 1), st.integers(-1, 1), st.integers(1, 300))
def test_programs_stay_about_what_was_tuned(
    config: KernelConfig, batch: int, capacity: int, batch_step: int, capacity_step: int, sm_count: int
) -> None:
    there = KEY.at(batch=2 << batch, capacity=2 << capacity)
    here = KEY.at(batch=int((2 << batch) * 2.0**batch_step), capacity=int((2 << capacity) * 2.0**capacity_step))
    made = transferred(config, there, sm_count, here, sm_count)
    assert replace(made, num_splits=config.num_splits, merge=config.merge) == config
    tiles = -(-here.capacity_bucket // config.block_kv)
    limited = made.num_splits in (1, tiles, 512)
    tuned, programs = (k.batch_bucket * s for k, s in ((there, config.num_splits), (here, made.num_splits)))
    assert 1 <= made.num_splits <= min(512, max(1, tiles))
    assert limited or abs(programs - tuned) <= here.batch_bucket / 2


def test_the_reason_tells_what_was_changed() -> None:
    found = selected(overlays(record(at(1, 0))))
    assert found.config.num_splits == 8
    assert "4 splits there, 8 here" in found.reason


# Other GPU models of the family

ON_H100 = replace(ON_H200, name=H100.name)


@pytest.mark.parametrize("declared", [False, True])
def test_a_family_fallback_is_declared(declared: bool) -> None:
    found = selected(overlays(record(), family_fallback=declared), profile=ON_H100)
    assert found.verdict is (Verdict.FAMILY if declared else Verdict.HEURISTIC)
    assert ("NVIDIA H200" in found.reason) is declared


def test_a_family_is_one_architecture_and_backend() -> None:
    declared = overlays(record(), family_fallback=True)
    for other in (replace(ON_H100, arch=100), replace(ON_H100, backend="hip"), REFERENCE_DEVICES[80]):
        assert selected(declared, profile=other).verdict is Verdict.HEURISTIC


def test_where_no_architecture_is_known_there_is_no_family() -> None:
    """AMD's are all numbered 0 here: an MI300X is no Radeon."""
    donor = DeviceIdentity("AMD Instinct MI300X", "hip", 0, 304)
    radeon = DeviceProfile("AMD Radeon RX 7900", "hip", 0, 96, 6 << 20, 65_536)
    small = replace(CONFIG, block_kv=16, num_stages=1)
    databases = overlays(record(config=small), device=donor, family_fallback=True)
    assert selected(databases, profile=replace(radeon, name=donor.name, sm_count=304)).verdict is Verdict.EXACT
    assert selected(databases, profile=radeon).verdict is Verdict.HEURISTIC


def test_a_family_record_is_made_for_fewer_sms() -> None:
    found = selected(overlays(record(), family_fallback=True), profile=replace(ON_H100, sm_count=66))
    assert (found.verdict, found.config.num_splits) == (Verdict.FAMILY, 2)


def test_the_nearest_donor_is_taken_and_own_records_go_first() -> None:
    def of(name: str, sm_count: int, config: KernelConfig, key: TuningKey = KEY) -> tuple[Database, ...]:
        device = replace(H200, name=name, sm_count=sm_count)
        return (Database(device, (record(key, config),), family_fallback=True),)

    near, far = of("near", 130, CONFIG), of("far", 66, SECOND)
    own = of(H100.name, 132, THIRD, at(0, 1))
    for donors in ((near, far), (far, near)):
        assert "tuned for near" in selected(Overlays(donors), profile=ON_H100).reason
        assert selected(Overlays((*donors, own)), profile=ON_H100).verdict is Verdict.BUCKET


# What is not used


def test_what_the_device_cannot_run_is_passed_over_with_the_reason() -> None:
    huge = replace(CONFIG, block_kv=256, num_stages=8)
    refusal = why_inadmissible(KEY.spec(), huge, ON_H200)
    assert refusal is not None
    found = selected(overlays(record(config=huge)))
    assert found.verdict is Verdict.HEURISTIC
    assert found.reason == f"heuristic for NVIDIA H200; on record but not used: {KEY.name}: {refusal}"
    found = selected(overlays((record(config=huge), record(at(0, 1), SECOND))))
    assert (found.verdict, found.config) == (Verdict.BUCKET, SECOND)


def test_what_the_donor_could_run_is_checked_for_this_device() -> None:
    smaller = replace(ON_H100, shared_memory_bytes=65_536)
    assert why_inadmissible(KEY.spec(), CONFIG, ON_H200) is None
    assert why_inadmissible(KEY.spec(), CONFIG, smaller) is not None
    found = selected(overlays(record(), family_fallback=True), profile=smaller)
    assert found.verdict is Verdict.HEURISTIC
    assert "bytes of shared memory are needed" in found.reason


def test_unmeasured_records_are_used_only_when_allowed() -> None:
    refused = selected(overlays(unmeasured()))
    assert refused.verdict is Verdict.HEURISTIC
    assert "never measured" in refused.reason
    assert "kvprefetch.allow_unmeasured" in refused.reason
    allowed = selected(overlays(unmeasured()), allow_unmeasured=True)
    assert (allowed.verdict, allowed.config) == (Verdict.EXACT, CONFIG)
    assert "never measured" in allowed.reason


@pytest.mark.parametrize("step", [(0, 0), *NEIGHBOURS])
def test_whatever_is_measured_goes_before_what_is_not(step: tuple[int, int]) -> None:
    databases = overlays(unmeasured(config=SECOND), record(at(*step), THIRD))
    assert selected(databases, allow_unmeasured=True).tuned_at == at(*step)
    assert selected(databases, allow_unmeasured=True).config.block_kv == THIRD.block_kv
    assert "never measured" not in selected(databases, allow_unmeasured=True).reason


def test_a_familys_measured_record_goes_before_an_own_unmeasured_one() -> None:
    donor = overlays(record(), family_fallback=True).layers
    own = overlays(unmeasured(config=SECOND), device=H100).layers
    assert selected(Overlays(own + donor), profile=ON_H100, allow_unmeasured=True).verdict is Verdict.FAMILY


def test_a_record_of_an_unknown_template_is_none() -> None:
    other = record(toolchain=replace(FRESH, template="paged_decode"))
    assert selected(overlays(other)).reason == "heuristic for NVIDIA H200"


# Staleness


@pytest.mark.parametrize(
    ("toolchain", "words"),
    [
        (OLD_TRITON, f"stale: tuned with Triton 2.1, here is {triton_minor()}"),
        (OTHER_SOURCE, "stale: tuned with other sources of split_kv_decode (00000000, here "),
    ],
)
def test_a_stale_record_is_used_and_said_to_be_stale(toolchain: Toolchain, words: str) -> None:
    found = selected(overlays(record(toolchain=toolchain)))
    assert (found.verdict, found.config) == (Verdict.EXACT, CONFIG)
    assert words in found.reason


@pytest.mark.parametrize("toolchain", [OLD_TRITON, OTHER_SOURCE])
def test_a_fresh_record_goes_before_a_stale_one_of_its_key(toolchain: Toolchain) -> None:
    stale, fresh = record(config=SECOND, toolchain=toolchain, trials=10_000, median_us=0.5), record(trials=1)
    for databases in (overlays((stale, fresh)), overlays(stale, fresh), overlays(fresh, stale)):
        assert selected(databases).config == CONFIG


def test_a_patch_release_of_triton_makes_nothing_stale() -> None:
    patched = replace(FRESH, triton=f"{triton_minor()}.99+git1234")
    assert "stale" not in selected(overlays(record(toolchain=patched))).reason


def test_an_objection_leads_to_the_next_verdict() -> None:
    heard = []

    def objection(config: KernelConfig, stale: str) -> str | None:
        heard.append((config, bool(stale)))
        return "no good" if stale else None

    stale, neighbour = record(toolchain=OLD_TRITON), record(at(0, 1), SECOND)
    found = selected(overlays((stale, neighbour)), objection=objection)
    assert (found.verdict, found.config) == (Verdict.BUCKET, SECOND)
    assert heard == [(CONFIG, True), (SECOND, False)]
    assert "no good" in selected(overlays(stale), objection=objection).reason


# Overlays


def test_a_higher_overlay_replaces_a_lower_one() -> None:
    better = record(config=SECOND, trials=10_000, median_us=0.5)
    assert selected(overlays(record(), better)).config == CONFIG
    assert selected(overlays(better, record())).config == SECOND


def test_lower_overlays_serve_other_keys() -> None:
    databases = overlays(record(at(2, 0)), record(config=SECOND))
    assert selected(databases).config == SECOND
    assert selected(databases, at(2, 0)).config == CONFIG


def test_within_one_overlay_the_better_evidenced_counts_in_whatever_order() -> None:
    weak, strong = record(trials=8), record(config=SECOND, trials=64)
    for pair in ((weak, strong), (strong, weak)):
        layer = tuple(Database(H200, (one,)) for one in pair)
        assert selected(Overlays((layer,))).config == SECOND
