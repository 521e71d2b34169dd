"""Every field that a record's use depends on, changed one by one: a hit never becomes a wrong hit.

The tables below name every field of the dataclasses they are about, so that a new field without a change fails here.
Fields of ``TuningKey`` and ``DeviceIdentity``, changed in the record, are in test_lookup.py; here it is the site, the
device and the environment that change, and what is found is held against a rule that knows nothing of the lookup.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from enum import Enum
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prefetch_compiler.templates.manifest import QUANTISED, SPLIT_KV, Template

from prefetch_compiler.config import KernelConfig, LoadPath, OperandOrder
from prefetch_compiler.database import wire
from prefetch_compiler.database.document import Database, decode, encode
from prefetch_compiler.database.errors import UnsupportedVersionError
from prefetch_compiler.database.key import TuningKey, key_of
from prefetch_compiler.database.overlay import Overlays
from prefetch_compiler.database.record import Toolchain, TuningRecord
from prefetch_compiler.database.template_hash import hash_for
from prefetch_compiler.device import REFERENCE_DEVICES, DeviceProfile
from prefetch_compiler.report import Verdict
from prefetch_compiler.select import candidates
from prefetch_compiler.select.admissible import why_inadmissible
from prefetch_compiler.select.candidates import triton_minor
from prefetch_compiler.select.heuristic import choose
from prefetch_compiler.select.selection import Selection, select, why_not_covered
from prefetch_compiler.spec import AttentionSpec, MaskKind, QuantisedCache, ScaleGranularity, Storage, TensorLayout

from .examples import H200, KEY, measured
from .specs import specs

ON_H200 = REFERENCE_DEVICES[90]
# Splits that no heuristic comes to, and that a transfer to other sizes changes.
CONFIG = KernelConfig(64, 7, 4, 3)
NONE, TENSOR, HEAD, TOKEN, GROUP = ScaleGranularity


class Effect(str, Enum):
    """What a change does to a record that was made before it."""

    MISS = "another key: no record, or a neighbour's that says so"
    NEIGHBOUR = "a neighbouring key's, which says so"
    STALE = "used, and said to be stale"
    NOTHING = "the same record: the best configuration is the same, and it is admissible"


def fresh(key: TuningKey, template: Template = SPLIT_KV, config: KernelConfig = CONFIG) -> Toolchain:
    return Toolchain(template.name, hash_for(template, key, config), "2.11.0", f"{triton_minor()}.0", "580")


def record_for(key: TuningKey, config: KernelConfig = CONFIG, template: Template = SPLIT_KV) -> TuningRecord:
    return measured(key, config=config, toolchain=fresh(key, template, config))


def overlays(*records: TuningRecord) -> Overlays:
    return Overlays(((Database(H200, records),),))


def effect_of(found: Selection, spec: AttentionSpec, profile: DeviceProfile, record: TuningRecord) -> Effect:
    """What became of ``record``. Whatever was selected can run, whichever it is."""
    assert why_inadmissible(spec, found.config, profile) is None
    if found.tuned_at is None:
        assert (found.verdict, found.config) == (Verdict.HEURISTIC, choose(spec, profile))
        return Effect.MISS
    assert found.tuned_at == record.key
    if found.verdict is Verdict.BUCKET:
        assert f"a neighbouring key: {record.key.name}" in found.reason
        return Effect.NEIGHBOUR
    assert (found.verdict, found.config) == (Verdict.EXACT, record.config)
    return Effect.STALE if "stale" in found.reason else Effect.NOTHING


# The device

SITE = KEY.spec()
DEVICE: dict[str, tuple[Any, Effect]] = {
    "name": ("NVIDIA H20", Effect.MISS),
    "backend": ("hip", Effect.MISS),
    "arch": (100, Effect.MISS),
    "sm_count": (131, Effect.MISS),
    "l2_bytes": (1 << 20, Effect.NOTHING),
    # Less than this configuration takes, as on a GPU that is shared or set up otherwise.
    "shared_memory_bytes": (64 << 10, Effect.MISS),
}


def test_every_field_of_the_device_is_changed() -> None:
    assert DEVICE.keys() == {field.name for field in fields(DeviceProfile)}


@pytest.mark.parametrize("name", DEVICE)
def test_another_device(name: str) -> None:
    value, effect = DEVICE[name]
    assert getattr(ON_H200, name) != value
    profile = replace(ON_H200, **{name: value})
    record = record_for(KEY)
    assert effect_of(select(SITE, profile, overlays(record)), SITE, profile, record) is effect


# What the record was made with

TOOLCHAIN: dict[str, tuple[Any, Effect]] = {
    "template": (QUANTISED.name, Effect.MISS),
    "template_hash": ("0" * 64, Effect.STALE),
    "triton": ("2.1.0", Effect.STALE),
    # Evidence: kernels are Triton's, and the same under another torch and another driver.
    "torch": ("2.99.0", Effect.NOTHING),
    "driver": ("999.0", Effect.NOTHING),
}


def test_every_field_of_the_toolchain_is_changed() -> None:
    assert TOOLCHAIN.keys() == {field.name for field in fields(Toolchain)}


@pytest.mark.parametrize("name", TOOLCHAIN)
def test_another_toolchain(name: str) -> None:
    value, effect = TOOLCHAIN[name]
    record = record_for(KEY)
    record = measured(KEY, config=CONFIG, toolchain=replace(record.evidence.toolchain, **{name: value}))
    assert effect_of(select(SITE, ON_H200, overlays(record)), SITE, ON_H200, record) is effect


HERE: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "another Triton": lambda patch: patch.setattr(candidates, "triton_minor", lambda: "99.0"),
    "no Triton": lambda patch: patch.setattr(candidates, "triton_minor", lambda: ""),
    "other template sources": lambda patch: patch.setattr(candidates, "present_hash", lambda *kernels: "1" * 64),
}


@pytest.mark.parametrize("change", HERE)
def test_the_same_record_is_stale_where_something_else_is_installed(
    change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = record_for(KEY)
    HERE[change](monkeypatch)
    heard: list[str] = []

    def objection(config: KernelConfig, stale: str) -> str | None:
        heard.append(stale)
        return None

    found = select(SITE, ON_H200, overlays(record), objection=objection)
    assert effect_of(found, SITE, ON_H200, record) is Effect.STALE
    # Under strict it is tried before it is trusted.
    assert len(heard) == 1 and heard[0].startswith("stale: ")


def test_another_version_of_the_format_is_no_database() -> None:
    data = encode(Database(H200, (record_for(KEY),)))
    version = f'"schema_version": {wire.SCHEMA_VERSION}'.encode()
    for other in (0, wire.SCHEMA_VERSION - 1, wire.SCHEMA_VERSION + 1):
        with pytest.raises(UnsupportedVersionError):
            decode(data.replace(version, f'"schema_version": {other}'.encode()))


# The site


@dataclass(frozen=True)
class Case:
    """A site, and changes of it with what each does to the record of the unchanged one."""

    spec: AttentionSpec
    changes: dict[str, list[tuple[Any, Effect]]]
    template: Template = SPLIT_KV
    config: KernelConfig = CONFIG


PLAIN = replace(SITE, kv_len=4000, batch=16)
PAGED = replace(
    PLAIN, mask=MaskKind.LENGTHS, mask_dtype=None, kv_len=4096, page_size=64,
    key_layout=TensorLayout(8 * 64 * 128, 64 * 128, 128), value_layout=TensorLayout(8 * 64 * 128, 64 * 128, 128),
)  # fmt: skip
UNALIGNED = TensorLayout(PLAIN.key_layout.batch_stride + 1, *PLAIN.key_layout.strides[1:])
SPEC = Case(
    PLAIN,
    {
        "batch": [(9, Effect.NOTHING), (17, Effect.NEIGHBOUR), (8, Effect.NEIGHBOUR), (64, Effect.MISS)],
        "query_heads": [(64, Effect.MISS), (8, Effect.MISS)],
        "kv_heads": [(4, Effect.MISS), (32, Effect.MISS)],
        "q_len": [(2, Effect.MISS), (16, Effect.MISS)],
        "kv_len": [(2049, Effect.NOTHING), (2048, Effect.NEIGHBOUR), (5000, Effect.NEIGHBOUR), (70_000, Effect.MISS)],
        "head_dim": [(64, Effect.MISS), (120, Effect.MISS)],
        "value_dim": [(64, Effect.MISS)],
        "dtype": [(torch.float32, Effect.MISS), (torch.float16, Effect.NEIGHBOUR)],
        "scale": [(1.0, Effect.NOTHING), (1e-3, Effect.NOTHING)],
        "key_layout": [(UNALIGNED, Effect.MISS)],
        "value_layout": [(UNALIGNED, Effect.MISS)],
        "mask": [(kind, Effect.MISS) for kind in (MaskKind.NONE, MaskKind.LENGTHS, MaskKind.ADDITIVE)],
        "mask_dtype": [(torch.float32, Effect.NOTHING)],  # of an additive mask alone; see ADDITIVE
        "mask_per_row": [(True, Effect.MISS)],
        "is_causal": [(True, Effect.MISS)],
        "out_heads_first": [(False, Effect.NOTHING)],
        "softcap": [(30.0, Effect.MISS)],
        "sink": [(True, Effect.MISS)],
        "symbolic": [(frozenset({"kv_len"}), Effect.MISS), (frozenset({"batch"}), Effect.NOTHING)],
        "cache": [(QuantisedCache(torch.int8, HEAD, HEAD, torch.float32), Effect.MISS)],
        "page_size": [(64, Effect.MISS)],
        "lse": [(True, Effect.NOTHING)],
        "rope_dim": [(64, Effect.MISS)],
        "rope_layout": [(TensorLayout(64, 64, 64), Effect.MISS)],
    },
)
ADDITIVE = Case(
    replace(PLAIN, mask=MaskKind.ADDITIVE, mask_dtype=torch.bfloat16),
    {"mask_dtype": [(torch.float32, Effect.MISS)], "mask_per_row": [(True, Effect.MISS)]},
)
PAGES = Case(PAGED, {"page_size": [(128, Effect.MISS), (16, Effect.MISS), (0, Effect.MISS)]})
CAPPED = Case(replace(PLAIN, softcap=50.0), {"softcap": [(30.0, Effect.NOTHING), (None, Effect.MISS)]})

BYTES = QuantisedCache(torch.uint8, HEAD, HEAD, torch.float32, HEAD, HEAD, torch.float32)
IN_BYTES = replace(
    PLAIN, cache=BYTES, mask=MaskKind.NONE, mask_dtype=None,
)  # fmt: skip
KEYS_FIRST = KernelConfig(64, 7, 2, 3, operand_order=OperandOrder.KQ)


def _cached(**changes: Any) -> QuantisedCache:
    return replace(BYTES, **changes)


CACHE = Case(
    IN_BYTES,
    {
        "dtype": [(_cached(dtype=torch.int8), Effect.MISS), (_cached(dtype=torch.float8_e4m3fn), Effect.MISS)],
        "key_scales": [(_cached(key_scales=TOKEN), Effect.MISS), (_cached(key_scales=TENSOR), Effect.NOTHING)],
        "value_scales": [(_cached(value_scales=TOKEN), Effect.MISS)],
        "scale_dtype": [(_cached(scale_dtype=torch.float16), Effect.NOTHING)],
        "key_zeros": [(_cached(key_zeros=NONE), Effect.MISS), (_cached(key_zeros=TOKEN), Effect.NOTHING)],
        "value_zeros": [(_cached(value_zeros=NONE), Effect.MISS)],
        "zero_dtype": [(_cached(zero_dtype=torch.uint8), Effect.NOTHING)],
        "storage": [
            (_cached(storage=Storage(key_minima=True)), Effect.MISS),
            (_cached(storage=Storage(value_minima=True)), Effect.MISS),
            (_cached(storage=Storage(packing="uint4_halves")), Effect.MISS),
        ],
        "key_group": [
            (_cached(key_scales=GROUP, key_group=(1, 32)), Effect.MISS),
            (_cached(key_scales=GROUP, key_group=(32, 1)), Effect.MISS),
        ],
        "value_group": [(_cached(value_scales=GROUP, value_group=(1, 32)), Effect.MISS)],
    },
    QUANTISED,
    KEYS_FIRST,
)


def test_every_field_of_a_site_is_changed() -> None:
    assert SPEC.changes.keys() == {field.name for field in fields(AttentionSpec)}


def test_every_field_of_a_cache_is_changed() -> None:
    assert CACHE.changes.keys() == {field.name for field in fields(QuantisedCache)}
    changed = [cache.storage for cache, _ in CACHE.changes["storage"]]
    for field in fields(Storage):
        assert any(getattr(storage, field.name) != getattr(Storage(), field.name) for storage in changed), field.name


LAYOUTS = {"batch_stride": 1, "head_stride": 1, "row_stride": 8}


def test_every_stride_is_changed() -> None:
    assert LAYOUTS.keys() == {field.name for field in fields(TensorLayout)}


def changes_of(case: Case) -> list[Any]:
    return [
        pytest.param(case, name, value, effect, id=f"{name}={str(value)[:40]}")
        for name, listed in case.changes.items()
        for value, effect in listed
    ]


@pytest.mark.parametrize(
    ("case", "name", "value", "effect"), [one for case in (SPEC, ADDITIVE, PAGES, CAPPED) for one in changes_of(case)]
)
def test_another_site(case: Case, name: str, value: Any, effect: Effect) -> None:
    _judge(case, replace(case.spec, **{name: value}), effect)


@pytest.mark.parametrize(("case", "name", "value", "effect"), changes_of(CACHE))
def test_another_cache(case: Case, name: str, value: QuantisedCache, effect: Effect) -> None:
    _judge(case, replace(case.spec, cache=value), effect)


@pytest.mark.parametrize("side", ["key_layout", "value_layout"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_another_stride(name: str, side: str) -> None:
    """In the record by TMA, which must not meet a stride that is no multiple of 16 bytes."""
    layout = getattr(PLAIN, side)
    spec = replace(PLAIN, **{side: replace(layout, **{name: getattr(layout, name) + LAYOUTS[name]})})
    case = replace(SPEC, config=replace(CONFIG, load_path=LoadPath.TMA))
    assert why_inadmissible(PLAIN, case.config, ON_H200) is None
    _judge(case, spec, Effect.MISS)


def _judge(case: Case, spec: AttentionSpec, effect: Effect) -> None:
    record = record_for(key_of(case.spec), case.config, case.template)
    databases = overlays(record)
    assert effect_of(select(case.spec, ON_H200, databases), case.spec, ON_H200, record) is Effect.NOTHING
    if why_not_covered(spec) is not None:
        assert effect is Effect.MISS  # no kernel at all
        return
    found = effect_of(select(spec, ON_H200, databases), spec, ON_H200, record)
    assert found is effect
    # What shares a key shares a record, and nothing else does.
    assert (found is Effect.NOTHING) == (key_of(spec) == record.key)


# Any site, and a record that differs in any few of its fields

SIZES = ("batch_bucket", "capacity_bucket")


def rule(record: TuningKey, site: TuningKey) -> Effect:
    """The documented rule, by fields and not by way of lookup's tables."""
    different = {field.name for field in fields(TuningKey) if getattr(record, field.name) != getattr(site, field.name)}
    if not different:
        return Effect.NOTHING
    sixteen_bits = {"float16", "bfloat16"}
    dtypes = different & {"dtype", "kv_dtype", "mask_dtype"}
    if dtypes and site.dtype not in sixteen_bits:
        return Effect.MISS  # float32 has no other dtype of its size, whatever its mask has
    if dtypes and not all({getattr(record, name), getattr(site, name)} == sixteen_bits for name in dtypes):
        return Effect.MISS
    if dtypes and dtypes != {
        name for name in ("dtype", "kv_dtype", "mask_dtype") if getattr(site, name) in sixteen_bits
    }:
        return Effect.MISS
    near = all(
        getattr(record, name) in (getattr(site, name) * 2, getattr(site, name) // 2) for name in different & {*SIZES}
    )
    return Effect.NEIGHBOUR if different <= {*SIZES, "dtype", "kv_dtype", "mask_dtype"} and near else Effect.MISS


@settings(max_examples=150, deadline=None)
@given(specs(), specs(), st.sets(st.sampled_from([field.name for field in fields(TuningKey)]), max_size=3), st.data())
def test_a_record_that_differs_in_any_few_fields(
    spec: AttentionSpec, other: AttentionSpec, names: set[str], data: st.DataObject
) -> None:
    site, another = key_of(spec), key_of(other)
    changed = {name: getattr(another, name) for name in names}
    for name in names & {*SIZES}:
        changed[name] = max(1, data.draw(st.sampled_from((getattr(site, name) * 2, getattr(site, name) // 2))))
    if data.draw(st.booleans()):
        swap = {"float16": "bfloat16", "bfloat16": "float16"}
        changed |= {
            name: swap.get(getattr(site, name), getattr(site, name)) for name in ("dtype", "kv_dtype", "mask_dtype")
        }
    key = replace(site, **changed)
    smallest = KernelConfig(16, 1, 4, 1)
    record = measured(key, config=smallest, toolchain=fresh(site))
    found = select(spec, ON_H200, overlays(record))
    effects = {Verdict.EXACT: Effect.NOTHING, Verdict.BUCKET: Effect.NEIGHBOUR, Verdict.HEURISTIC: Effect.MISS}
    assert why_inadmissible(spec, found.config, ON_H200) is None
    # What fits is passed over only because it cannot run.
    assert effects[found.verdict] is rule(key, site) or "on record but not used" in found.reason
