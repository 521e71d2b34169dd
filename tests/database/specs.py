"""Hypothesis strategies for every spec that recognising may give, its strides drawn freely."""

from __future__ import annotations

from dataclasses import replace

import torch
from hypothesis import strategies as st

from prefetch_compiler.spec import (
    HEAD_DIM_MULTIPLE,
    MAX_HEAD_DIM,
    MAX_LATENT_DIM,
    MAX_Q_LEN,
    PAGE_SIZES,
    ROPE_DIMS,
    AttentionSpec,
    MaskKind,
    TensorLayout,
)

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
MAX_BATCH, MAX_KV_LEN = 300, 140_000
dims = st.integers(1, MAX_HEAD_DIM // HEAD_DIM_MULTIPLE).map(lambda count: count * HEAD_DIM_MULTIPLE)


def near_powers_of_two(largest: int) -> st.SearchStrategy[int]:
    """Sizes of which many stand at the edges of buckets."""
    powers = st.integers(0, largest.bit_length() - 1).map(lambda exponent: 1 << exponent)
    edges = st.tuples(powers, st.sampled_from((-1, 0, 1))).map(sum)
    return (edges | st.integers(1, largest)).filter(lambda size: 1 <= size <= largest)


@st.composite
def layouts(draw: st.DrawFn, heads: int, length: int, dim: int) -> TensorLayout:
    """Contiguous in either order, slices of a larger tensor, repeated along the batch, or with any strides at all."""
    padding = draw(st.sampled_from((0, 0, 1, 8, 16)))
    row = dim + draw(st.sampled_from((0, 0, padding)))
    room = length + draw(st.sampled_from((0, 0, padding)))
    orders = {
        "heads first": (heads * room * row, room * row, row),
        "positions first": (room * heads * row, row, heads * row),
        "positions first, apart": (room * (heads * row + 16), row, heads * row + 16),
        "one for all sequences": (0, room * row, row),
        "one for all heads": (room * row, 0, row),
        "batch not aligned": (heads * room * row + 1, room * row, row),
    }
    strides = st.integers(0, 1 << 20)
    return TensorLayout(*draw(st.sampled_from(tuple(orders.values())) | st.tuples(strides, strides, strides)))


@st.composite
def specs(draw: st.DrawFn) -> AttentionSpec:
    """Any spec that a template covers."""
    heads, group = draw(st.sampled_from((1, 2, 8)) | st.integers(1, 40)), draw(st.integers(1, 80))
    batch, length = draw(near_powers_of_two(MAX_BATCH)), draw(near_powers_of_two(MAX_KV_LEN))
    head_dim = draw(dims)
    value_dim = draw(st.just(head_dim) | dims)
    mask = draw(st.sampled_from(MaskKind))
    page_size = draw(st.sampled_from((0, *PAGE_SIZES))) if mask is MaskKind.LENGTHS else 0
    rows = page_size or length
    key_layout = draw(layouts(heads, rows, head_dim))
    alike = TensorLayout(*(stride * value_dim // head_dim for stride in key_layout.strides))
    dtype = draw(st.sampled_from(DTYPES))
    mask_dtypes = {MaskKind.BOOL: (torch.bool,), MaskKind.ADDITIVE: DTYPES}
    masked = mask in mask_dtypes
    return AttentionSpec(
        batch=batch,
        query_heads=heads * group,
        kv_heads=heads,
        q_len=draw(near_powers_of_two(MAX_Q_LEN)),
        kv_len=-(-length // page_size) * page_size if page_size else length,
        head_dim=head_dim,
        value_dim=value_dim,
        dtype=dtype,
        scale=draw(st.floats(0.01, 1)),
        key_layout=key_layout,
        value_layout=draw(st.just(alike) | layouts(heads, rows, value_dim)),
        mask=mask,
        mask_dtype=draw(st.sampled_from(mask_dtypes[mask])) if masked else None,
        mask_per_row=masked and draw(st.booleans()),
        is_causal=not masked and draw(st.booleans()),
        out_heads_first=draw(st.booleans()),
        symbolic=frozenset(draw(st.sets(st.sampled_from(("batch", "kv_len"))))),
        page_size=page_size,
        softcap=draw(st.sampled_from((None, 30.0))),
        sink=draw(st.booleans()),
    )


@st.composite
def latent_specs(draw: st.DrawFn) -> AttentionSpec:
    """Any spec of a latent cache, in two tensors or in one."""
    spec = draw(specs().filter(lambda spec: not spec.page_size))
    latent_dim = HEAD_DIM_MULTIPLE * draw(st.integers(1, MAX_LATENT_DIM // HEAD_DIM_MULTIPLE))
    rope_dim = draw(st.sampled_from(ROPE_DIMS))
    one, other = (draw(layouts(1, spec.kv_len, dim)) for dim in (latent_dim, rope_dim))
    row = latent_dim + rope_dim
    joint = TensorLayout(spec.kv_len * row, spec.kv_len * row, row)
    latents, rope = draw(st.sampled_from(((one, other), (joint, joint))))
    return replace(
        spec, kv_heads=1, head_dim=latent_dim, value_dim=latent_dim, key_layout=latents, value_layout=latents,
        rope_dim=rope_dim, rope_layout=rope,
    )  # fmt: skip
