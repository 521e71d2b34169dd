"""TuningKey.name is read back exactly."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefetch_compiler.database.key import Alignment, Feature, Layout, MaskClass, TuningKey, parse_key
from prefetch_compiler.errors import InvalidKeyNameError

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
    ],
)
def test_what_is_no_name_is_refused_with_the_reason(name: str, why: str) -> None:
    with pytest.raises(InvalidKeyNameError, match=why):
        parse_key(name)
