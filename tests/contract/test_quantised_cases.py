"""Attention over a quantised cache is within its bound, reads nothing that no query sees, and errs no more than code
that dequantises first."""

from __future__ import annotations

import pytest
import torch
from prefetch_compiler.templates.manifest import QUANTISED

from prefetch_compiler.reference import exact_attention, same_dtype_attention
from prefetch_compiler.spec import ScaleGranularity

from .error_bounds import assert_within_bound
from .quantised_cases import (
    E4M3,
    E5M2,
    INT8,
    QUANTISED_CASES,
    QuantisedCase,
    build_quantised,
    quantised_spec,
    solve_quantised,
)


@pytest.mark.parametrize("case", QUANTISED_CASES, ids=lambda case: case.name)
def test_case(case: QuantisedCase) -> None:
    operands = build_quantised(case)
    refusal = QUANTISED.refusal(quantised_spec(operands))
    assert refusal is None
    out = solve_quantised(case, operands)
    assert_within_bound(out, operands)
    order = (0, 1, 2, 3) if case.heads_first else (0, 2, 1, 3)
    assert out.permute(order).is_contiguous()


@pytest.mark.parametrize(
    ("dtype", "kv_dtype", "scales"),
    [
        (torch.bfloat16, E4M3, ScaleGranularity.TOKEN),
        (torch.bfloat16, INT8, ScaleGranularity.HEAD),
        (torch.float16, E5M2, ScaleGranularity.TENSOR),
        (torch.float16, INT8, ScaleGranularity.NONE),
    ],
    ids=str,
)
def test_the_error_is_no_larger_than_that_of_dequantising_first(
    dtype: torch.dtype, kv_dtype: torch.dtype, scales: ScaleGranularity
) -> None:
    """Root mean square over 3,072 outputs, of which all but a rounding of the output is to be less."""
    case = QuantisedCase(
        batch=3, head_dim=64, value_dim=128, tiles=9, block_kv=32, kv_dtype=kv_dtype, key_scales=scales,
        value_scales=scales, dtype=dtype,
    )  # fmt: skip
    o = build_quantised(case)
    exact = exact_attention(o.q, o.k, o.v, o.mask, scale=o.scale)
    first = same_dtype_attention(o.q, o.k.to(dtype), o.v.to(dtype), o.mask, scale=o.scale)

    def error(out: torch.Tensor) -> float:
        return float((out.double() - exact).square().mean().sqrt())

    assert error(solve_quantised(case, o)) <= error(first)
