"""Keys: a record that fits at a bucket's corner fits everywhere in it, and a key is the key of its own corner."""

from __future__ import annotations

import itertools
import os
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prefetch_compiler.templates.manifest import LATENT, SPLIT_KV

from prefetch_compiler.config import KernelConfig, LoadPath, OperandOrder, PrefetchKind
from prefetch_compiler.database.key import PLANNED_SYMBOLIC_KV_LEN, Alignment, Layout, TuningKey, bucket, key_of
from prefetch_compiler.device import INTERPRETER, REFERENCE_DEVICES, DeviceProfile
from prefetch_compiler.select.admissible import why_inadmissible
from prefetch_compiler.spec import AttentionSpec, TensorLayout

from .specs import latent_specs, specs

HIP = DeviceProfile("AMD Instinct MI300X", "hip", 0, 304, 4 << 20, 65_536)
ALL_THAT_ADMISSIBILITY_TELLS_APART = [
    KernelConfig(block_kv, 4, 4, stages, depth, kind, path, order, overlap)
    for block_kv, stages, depth, kind, path, order, overlap in itertools.product(
        (16, 32, 64, 128, 256), range(1, 9), (0, 2), PrefetchKind, LoadPath, OperandOrder, (False, True)
    )
    if depth or kind is PrefetchKind.LINE
]
profiles = st.sampled_from((*REFERENCE_DEVICES.values(), INTERPRETER, HIP))
many = settings(max_examples=int(os.environ.get("KVPREFETCH_FUZZ_EXAMPLES", "300")), deadline=None)


@many
@given(specs() | latent_specs())
def test_a_key_is_the_key_of_its_corner(spec: AttentionSpec) -> None:
    template = LATENT if spec.rope_dim else SPLIT_KV
    assert template.refusal(spec) is None
    key = key_of(spec)
    assert key_of(key.spec()) == key


@settings(max_examples=200, deadline=None)
@given(specs() | latent_specs(), profiles)
def test_what_is_admissible_at_the_corner_is_admissible_in_the_whole_bucket(
    spec: AttentionSpec, profile: DeviceProfile
) -> None:
    corner = key_of(spec).spec()
    for config in ALL_THAT_ADMISSIBILITY_TELLS_APART:
        if why_inadmissible(corner, config, profile) is None:
            assert why_inadmissible(spec, config, profile) is None


@many
@given(specs() | latent_specs(), st.data())
def test_specs_of_one_bucket_have_one_key(spec: AttentionSpec, data: st.DataObject) -> None:
    """Sizes move inside their buckets; scale and memory order of the output do not matter."""
    corner = key_of(spec).spec()
    smaller = {
        name: data.draw(st.integers(size // 2 + 1, size))
        for name in ("batch", "q_len", "kv_len")
        if (size := getattr(corner, name)) > 0
    }
    moved = replace(corner, **smaller, scale=data.draw(st.floats(0.01, 1)), out_heads_first=data.draw(st.booleans()))
    assert key_of(moved) == key_of(spec)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 1023, 1024, 1025])
def test_a_bucket_holds_what_is_above_half_of_it(size: int) -> None:
    assert bucket(size) / 2 < size <= bucket(size)
    assert bin(bucket(size)).count("1") == 1


def _key(**changes: object) -> TuningKey:
    spec = AttentionSpec(
        batch=2, query_heads=8, kv_heads=1, q_len=1, kv_len=100, head_dim=64, value_dim=64, dtype=torch.half, scale=1.0,
        key_layout=TensorLayout(6400, 6400, 64), value_layout=TensorLayout(6400, 6400, 64),
    )  # fmt: skip
    return key_of(replace(spec, **changes))  # type: ignore[arg-type]


def test_a_growing_length_is_planned_for() -> None:
    assert _key(symbolic=frozenset({"kv_len"})).capacity_bucket == PLANNED_SYMBOLIC_KV_LEN
    assert _key(symbolic=frozenset({"kv_len"}), kv_len=20_000).capacity_bucket == 32_768


def test_the_stride_of_a_single_head_names_no_layout() -> None:
    """A lone KV head lies anywhere: only its rows tell whether they are adjacent."""
    apart = TensorLayout(100 * 96, 64, 96)
    assert _key(key_layout=apart, value_layout=apart).layout is Layout.STRIDED
    adjacent = TensorLayout(6400, 64, 64)
    assert _key(key_layout=adjacent, value_layout=adjacent).layout is Layout.BHSD


def test_the_less_aligned_of_keys_and_values_counts() -> None:
    assert _key(value_layout=TensorLayout(0, 6400, 64)).alignment is Alignment.ROWS
    assert _key(value_layout=TensorLayout(6401, 6400, 64)).alignment is Alignment.NONE
