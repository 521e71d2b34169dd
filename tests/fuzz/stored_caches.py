"""Random attention over caches that the graph makes K and V of: dequantised, or gathered from pages."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from ..contract.golden import dequantised, paged
from ..contract.golden.dequantised import Dequantised
from ..contract.golden.paged import Paged

HALVES = (torch.float16, torch.bfloat16)
_FORMATS = (torch.int8, dequantised.E4M3, dequantised.E5M2)
_SCALES = ("", "1.H.1.1", "B.H.1.1", "B.1.S.1", "B.H.S.1", "1.1.1.D", "1.H.1.D")
_WHOLE = tuple(name for name in _SCALES if name)


@st.composite
def dequantised_caches(draw: st.DrawFn) -> Dequantised:
    """Numbers of one byte and their scales, in float32 too, which no kernel reads as they are."""
    numbers = draw(st.sampled_from(_FORMATS))
    ways = [
        dequantised.in_float32, dequantised.in_the_models_dtype, dequantised.divided, dequantised.expanded,
        dequantised.by_two_scales,
    ]  # fmt: skip
    way = draw(st.sampled_from([*ways, dequantised.promoted] if numbers is torch.int8 else ways))
    # Four dimensions are expanded or lie in another order; a scalar has neither.
    length_first = draw(st.booleans())
    names = st.sampled_from(_WHOLE if length_first or way is dequantised.expanded else _SCALES)
    exponent = {dequantised.divided: 6, dequantised.by_two_scales: -3}.get(way, -6)
    return Dequantised(
        "fuzzed",
        format=numbers,
        dequantise=way,
        key_scale=draw(names),
        value_scale=draw(names),
        dtype=draw(st.sampled_from((*HALVES, torch.float32))),
        q_len=draw(st.sampled_from((1, 1, 2, 5))),
        mask=draw(st.booleans()),
        length_first=length_first,
        by_products=draw(st.booleans()),
        seed=draw(st.integers(0, 3)),
        key_exponent=exponent,
        value_exponent=exponent,
    )


@st.composite
def paged_caches(draw: st.DrawFn) -> Paged:
    """Pools of pages, quantised perhaps, and pages of a size that no kernel knows."""
    numbers = draw(st.sampled_from((None, None, torch.int8, dequantised.E4M3)))
    gathers = [paged.keys_then_heads, paged.heads_then_keys, paged.heads_outermost, paged.selected, paged.by_slots]
    if numbers is dequantised.E4M3:
        gathers = [paged.as_bytes]  # indexing is not defined for fp8 everywhere
    gather = draw(st.sampled_from(gathers))
    written = numbers is None and gather is paged.keys_then_heads and draw(st.booleans())
    return Paged(
        "fuzzed",
        gather,
        page_size=1 if gather is paged.by_slots else 4 if written else draw(st.sampled_from((1, 2, 3, 4, 8))),
        dtype=draw(st.sampled_from(HALVES if numbers is not None else (torch.float32, *HALVES))),
        format=numbers,
        table_dtype=draw(st.sampled_from((torch.int32, torch.int64))),
        masked=draw(st.booleans()),
        negative=gather is not paged.selected and draw(st.booleans()),
        written=written,
        q_len=draw(st.sampled_from((1, 1, 2, 5))),
        other_pages=draw(st.booleans()),
        values_flipped=draw(st.sampled_from((False, False, False, True))),
    )
