"""AttentionSpec: derived sizes are computed from the shapes, and the TMA rule from the strides."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from prefetch_compiler.spec import AttentionSpec, MaskKind, TensorLayout


def layout_of(heads: int, length: int, dim: int) -> TensorLayout:
    return TensorLayout(heads * length * dim, length * dim, dim)


def a_spec(**changes: object) -> AttentionSpec:
    """9 query heads over 3 KV heads, as in SmolLM2-135M, over a cache of 100 keys."""
    spec = AttentionSpec(
        batch=2,
        query_heads=9,
        kv_heads=3,
        q_len=4,
        kv_len=100,
        head_dim=64,
        value_dim=32,
        dtype=torch.bfloat16,
        scale=0.125,
        key_layout=layout_of(3, 100, 64),
        value_layout=layout_of(3, 100, 32),
    )
    return dataclasses.replace(spec, **changes)  # type: ignore[arg-type]


def test_rows_that_share_a_kv_head() -> None:
    assert a_spec().group == 3
    assert a_spec().rows == 12
    assert a_spec(query_heads=3).rows == 4


@pytest.mark.parametrize(("dtype", "size"), [(torch.float16, 2), (torch.bfloat16, 2), (torch.float32, 4)])
def test_kv_bytes(dtype: torch.dtype, size: int) -> None:
    spec = a_spec(dtype=dtype)
    k = torch.empty(2, 3, 100, 64, dtype=dtype)
    v = torch.empty(2, 3, 100, 32, dtype=dtype)
    assert spec.element_bytes == size
    assert spec.capacity_bytes == k.nbytes + v.nbytes
    assert spec.kv_bytes_per_key * 100 == spec.capacity_bytes


@pytest.mark.parametrize(
    ("layout", "element_bytes", "loadable"),
    [
        (TensorLayout(19200, 6400, 64), 2, True),
        (TensorLayout(19200, 6400, 8), 2, True),
        (TensorLayout(19200, 6400, 4), 2, False),
        (TensorLayout(19200, 6400, 4), 4, True),
        (TensorLayout(19200, 6400, 65), 2, False),
        (TensorLayout(19201, 6400, 64), 2, False),
        (TensorLayout(19200, 6401, 64), 2, False),
        (TensorLayout(0, 6400, 64), 2, False),
        (TensorLayout(19200, 0, 64), 2, False),
    ],
)
def test_tma_needs_positive_strides_of_16_bytes(layout: TensorLayout, element_bytes: int, loadable: bool) -> None:
    assert layout.aligned(element_bytes) is loadable


def test_tma_needs_both_tensors_aligned() -> None:
    odd = TensorLayout(19200, 6400, 65)
    assert a_spec().tma_loadable
    assert not a_spec(key_layout=odd).tma_loadable
    assert not a_spec(value_layout=odd).tma_loadable


def test_specs_are_keys() -> None:
    assert {a_spec(): "kernel"}[a_spec()] == "kernel"
    assert a_spec() != a_spec(scale=0.25)


def test_the_line_for_people_tells_what_tells_sites_apart() -> None:
    assert a_spec().describe() == "9q/3kv d64/32 q4 S100 b2 bfloat16 mask=none"
    assert a_spec(value_dim=64).describe() == "9q/3kv d64 q4 S100 b2 bfloat16 mask=none"
    assert a_spec(mask=MaskKind.ADDITIVE).describe().endswith("mask=additive")
    assert a_spec(is_causal=True).describe().endswith("mask=causal")
    assert "S100? b2 " in a_spec(symbolic=frozenset({"kv_len"})).describe()
