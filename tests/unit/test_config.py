"""KernelConfig: every field's range is enforced, and the short name is reversible."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefetch_compiler.config import (
    MAX_PREFETCH_DEPTH,
    MAX_SPLITS,
    KernelConfig,
    LoadPath,
    Merge,
    OperandOrder,
    Partition,
    PrefetchKind,
)
from prefetch_compiler.errors import InvalidConfigError

VALID = {"block_kv": 64, "num_splits": 4, "num_warps": 4, "num_stages": 2}

configs = st.builds(
    KernelConfig,
    block_kv=st.sampled_from([16, 32, 64, 128, 256]),
    num_splits=st.integers(1, MAX_SPLITS),
    num_warps=st.sampled_from([1, 2, 4, 8]),
    num_stages=st.integers(1, 8),
    prefetch_depth=st.integers(0, MAX_PREFETCH_DEPTH),
    prefetch_kind=st.sampled_from(PrefetchKind),
    load_path=st.sampled_from(LoadPath),
    operand_order=st.sampled_from(OperandOrder),
    launch_overlap=st.booleans(),
    merge=st.sampled_from(Merge),
)


@given(configs)
def test_decode_inverts_encode(config: KernelConfig) -> None:
    assert KernelConfig.decode(config.encode()) == config


@given(configs, configs)
def test_names_of_different_configs_differ(one: KernelConfig, other: KernelConfig) -> None:
    assert (one.encode() == other.encode()) == (one == other)


@given(configs)
def test_to_dict_is_json_and_rebuilds_the_config(config: KernelConfig) -> None:
    plain = json.loads(json.dumps(config.to_dict()))
    assert set(plain) == {field.name for field in dataclasses.fields(KernelConfig)}
    assert plain == config.to_dict()
    assert (
        KernelConfig(
            **plain
            | {
                "prefetch_kind": PrefetchKind(plain["prefetch_kind"]),
                "load_path": LoadPath(plain["load_path"]),
                "operand_order": OperandOrder(plain["operand_order"]),
                "merge": Merge(plain["merge"]),
                "partition": Partition(plain["partition"]),
            }
        )
        == config
    )


def test_the_documented_name_is_understood() -> None:
    documented = KernelConfig(128, 16, 4, 3, prefetch_depth=0, launch_overlap=True, partition=Partition.STRIDED)
    assert KernelConfig.decode("b128-s16-w4-st3-p0line-pointer-qk-pdl-separate-strided") == documented
    early = dataclasses.replace(documented, prologue_prefetch=True)
    assert KernelConfig.decode("b128-s16-w4-st3-p0line-pointer-qk-pdl-separate-strided-early") == early


def test_without_prefetch_there_is_none_of_any_kind() -> None:
    plain = KernelConfig(128, 16, 4, 3)
    assert not plain.prefetches
    for prefetching in (
        dataclasses.replace(plain, prefetch_depth=2, prefetch_kind=PrefetchKind.BULK),
        dataclasses.replace(plain, prologue_prefetch=True),
    ):
        assert prefetching.prefetches
        assert prefetching.without_prefetch() == plain


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("block_kv", 0),
        ("block_kv", -64),
        ("block_kv", 8),
        ("block_kv", 48),
        ("block_kv", 512),
        ("num_splits", 0),
        ("num_splits", MAX_SPLITS + 1),
        ("num_warps", 0),
        ("num_warps", 3),
        ("num_warps", 16),
        ("num_stages", 0),
        ("num_stages", 9),
        ("prefetch_depth", -1),
        ("prefetch_depth", MAX_PREFETCH_DEPTH + 1),
    ],
)
def test_a_field_outside_its_range_is_named_with_its_value(field: str, value: int) -> None:
    arguments: dict[str, Any] = VALID | {field: value}
    with pytest.raises(InvalidConfigError, match=rf"KernelConfig\.{field} is {value}\b"):
        KernelConfig(**arguments)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "b128",
        "b128-s16-w4-st3-p0line-pointer-qk-pdl-separate",
        "b128-s16-w4-st3-p0line-pointer-qk-pdl-separate-even ",
        "b128-s16-w4-st3-p0sector-pointer-qk-pdl-separate-even",
        "b-128-s16-w4-st3-p0line-pointer-qk-pdl-separate-even",
        "b128-s16-w4-st3-p0line-pointer-qk-pdl-separate-even-more",
    ],
)
def test_decode_refuses_what_encode_never_says(name: str) -> None:
    with pytest.raises(InvalidConfigError):
        KernelConfig.decode(name)


def test_decode_enforces_the_ranges_too() -> None:
    with pytest.raises(InvalidConfigError, match="block_kv is 100"):
        KernelConfig.decode("b100-s16-w4-st3-p0line-pointer-qk-pdl-separate-even")


def test_a_config_is_hashable_and_immutable() -> None:
    config = KernelConfig(**VALID)
    assert {config: 1}[KernelConfig(**VALID)] == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.block_kv = 32  # type: ignore[misc]
