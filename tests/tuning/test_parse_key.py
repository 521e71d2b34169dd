"""TuningKey.name is read back exactly."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefetch_compiler.database.key import Alignment, Feature, Layout, MaskClass, TuningKey, key_of, parse_key
from prefetch_compiler.errors import InvalidKeyNameError
from prefetch_compiler.spec import PAGE_SIZES, ROPE_DIMS

POWERS = st.integers(0, 17).map(lambda exponent: 1 << exponent)
DTYPES = st.sampled_from(["float16", "bfloat16", "float32"])


@st.composite
def keys(draw: st.DrawFn) -> TuningKey:
    mask = draw(st.sampled_from(MaskClass))
    additive = mask in (MaskClass.ADDITIVE, MaskClass.ADDITIVE_ROWS)
    return TuningKey(
        dtype=draw(DTYPES),
        kv_dtype=draw(DTYPES),
        group=draw(st.integers(1, 71)),
        kv_heads=draw(st.integers(1, 128)),
        head_dim=8 * draw(st.integers(1, 32)),
        value_dim=8 * draw(st.integers(1, 32)),
        q_len_bucket=draw(POWERS),
        batch_bucket=draw(POWERS),
        capacity_bucket=draw(POWERS),
        layout=draw(st.sampled_from(Layout)),
        alignment=draw(st.sampled_from(Alignment)),
        mask=mask,
        mask_dtype=draw(DTYPES) if additive else "",
        features=draw(st.sampled_from([(), (Feature.GROWING,)])),
    )


PAGED = "bfloat16 32q/8kv d128 q1 b16 s4096 {}-{} lengths page{}"


@pytest.mark.parametrize("page_size", PAGE_SIZES)
@pytest.mark.parametrize("alignment", ["tma", "none"])
@pytest.mark.parametrize("layout", Layout)
def test_a_paged_key_is_that_of_its_spec(layout: Layout, alignment: str, page_size: int) -> None:
    name = PAGED.format(layout.value, alignment, page_size)
    key = parse_key(name)
    assert (key.name, key.page_size, key.bounded) == (name, page_size, True)
    spec = key.spec()
    assert (spec.page_size, spec.kv_len, spec.cache_shape) == (page_size, 4096, (16 * 4096 // page_size, 8, page_size))
    assert key_of(spec) == key


def test_pages_of_a_small_cache_are_whole() -> None:
    assert parse_key(PAGED.format("bhsd", "tma", 64)).at(batch=3, capacity=65).spec().kv_len == 128


@pytest.mark.parametrize("rope_dim", ROPE_DIMS)
@pytest.mark.parametrize("alignment", Alignment)
@pytest.mark.parametrize("layout", [Layout.BHSD, Layout.STRIDED])
def test_a_latent_key_is_that_of_its_spec(layout: Layout, alignment: Alignment, rope_dim: int) -> None:
    name = f"bfloat16 128q/1kv d512 q1 b16 s4096 {layout.value}-{alignment.value} bool rope{rope_dim}"
    key = parse_key(name)
    assert (key.name, key.rope_dim) == (name, rope_dim)
    spec = key.spec()
    assert (spec.rope_dim, spec.query_dim) == (rope_dim, 512 + rope_dim)
    assert spec.kv_bytes_per_key == 16 * 2 * (512 + rope_dim)
    assert key_of(spec) == key


@given(keys())
def test_a_name_reads_back_as_its_key(key: TuningKey) -> None:
    assert parse_key(key.name) == key


def test_sizes_go_to_their_buckets() -> None:
    key = parse_key("bfloat16 32q/8kv d128 q1 b9 s4097 bhsd-tma bool")
    assert (key.batch_bucket, key.capacity_bucket) == (16, 8192)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "form"),
        ("bfloat16 32q/8kv d128", "form"),
        ("int8 32q/8kv d128 q1 b16 s4096 bhsd-tma bool", "int8"),
        ("bfloat16 32q/5kv d128 q1 b16 s4096 bhsd-tma bool", "do not divide"),
        ("bfloat16 32q/0kv d128 q1 b16 s4096 bhsd-tma bool", "do not divide"),
        ("bfloat16 32q/8kv d128 q1 b16 s4096 bhsd-tma additive", "have a dtype"),
        ("bfloat16 32q/8kv d128 q1 b16 s4096 bhsd-tma bool-float16", "have a dtype"),
        ("bfloat16 32q/8kv d128 q1 b16 s4096 bhsd-tma sparse", "sparse"),
        ("bfloat16 32q/8kv d128 q1 b16 s4096 bhsd-tma bool shrinking", "shrinking"),
        ("bfloat16 32q/8kv d128 q1 b16 s4096 bhsd-tma lengths page48", "page48"),
        ("bfloat16 32q/8kv d128 q1 b16 s4096 bhsd-tma lengths page16 page64", "pages of one size"),
        ("bfloat16 32q/8kv d128 q1 b16 s4096 bhsd-tma causal page16", "causality of lengths"),
        ("bfloat16 32q/8kv d128 q1 b16 s4096 bhsd-rows lengths page16", "pages lie apart"),
        ("bfloat16 128q/1kv d512 q1 b1 s4096 bhsd-tma bool rope48", "rope48"),
        ("bfloat16 128q/2kv d512 q1 b1 s4096 bhsd-tma bool rope64", "one KV head"),
        ("bfloat16 128q/1kv d576/512 q1 b1 s4096 bhsd-tma bool rope64", "values as wide"),
        ("bfloat16 128q/1kv d512 q1 b1 s4096 bhsd-tma bool rope16 rope64", "one rotary key"),
        ("bfloat16 128q/1kv d512 q1 b1 s4096 bhsd-tma lengths page16 rope64", "in one piece"),
        ("bfloat16/int8 128q/1kv d512 q1 b1 s4096 bhsd-tma bool rope64", "dtype of the queries"),
    ],
)
def test_what_is_no_name_is_refused_with_the_reason(name: str, why: str) -> None:
    with pytest.raises(InvalidKeyNameError, match=why):
        parse_key(name)
