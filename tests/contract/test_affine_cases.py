"""Caches with zero points and minima, of signed and unsigned numbers, are within the bound of those without."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from prefetch_compiler.templates.manifest import QUANTISED

from prefetch_compiler.config import LoadPath, Partition
from prefetch_compiler.reference import exact_attention, same_dtype_attention
from prefetch_compiler.spec import PACKED_FORMATS, ScaleGranularity

from .covering import covering_rows
from .error_bounds import assert_within_bound
from .quantised_cases import (
    E4M3,
    INT8,
    UINT8,
    QuantisedCase,
    QuantisedOperands,
    build_quantised,
    quantised_spec,
    solve_quantised,
)

NONE, TENSOR, HEAD, TOKEN, GROUP = ScaleGranularity
FACTORS: dict[str, list[Any]] = {
    "kv_dtype": [UINT8, INT8, E4M3],
    "dtype": [torch.bfloat16, torch.float16],
    "key_scales": [TOKEN, HEAD, NONE],
    "value_scales": [TOKEN, TENSOR, NONE],
    "key_zeros": [TOKEN, HEAD, NONE],
    "value_zeros": [TOKEN, TENSOR, NONE],
    "key_minima": [False, True],
    "value_minima": [False, True],
    "zero_dtype": [torch.float32, torch.float16],
    "mask": ["none", "ragged", "left_padding"],
    "softcap": [None, 1.5],
    "sink": [False, True],
    "q_len": [1, 3],
    "num_splits": [1, 3],
    "load_path": [LoadPath.POINTER, LoadPath.TMA],
    "partition": [Partition.EVEN, Partition.STRIDED],
    "head_dim": [16, 40],
}
SMALL = QuantisedCase(batch=2, kv_heads=2, group=2, value_dim=24, tiles=2, num_warps=2)
CASES = [replace(SMALL, **row) for row in covering_rows(FACTORS, seed=11)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(case: QuantisedCase) -> None:
    operands = build_quantised(case)
    assert QUANTISED.refusal(quantised_spec(operands)) is None
    assert_within_bound(solve_quantised(case, operands), operands)


# 48 keys in all: groups of (tokens, columns), the zeros' and the scales'.
GROUPED: dict[str, list[Any]] = {
    "kv_dtype": [UINT8, INT8, E4M3],
    "dtype": [torch.bfloat16, torch.float16],
    "key_group": [(1, 8), (16, 1), (3, 4), None],
    "value_group": [(1, 8), (1, 1), (0, 12), None],
    "key_scales": [GROUP, HEAD],
    "value_scales": [GROUP, NONE],
    "key_zeros": [GROUP, TENSOR, NONE],
    "value_zeros": [GROUP, HEAD, NONE],
    "key_minima": [False, True],
    "value_minima": [False, True],
    "mask": ["none", "left_padding"],
    "q_len": [1, 3],
    "num_splits": [1, 3],
    "load_path": [LoadPath.POINTER, LoadPath.TMA],
    "head_dim": [16, 40],
}


def _grouped(row: dict[str, Any]) -> QuantisedCase:
    """With groups on a side where its scales or zeros are of any, and none where neither is."""
    for side in ("key", "value"):
        scales, zeros, group = f"{side}_scales", f"{side}_zeros", f"{side}_group"
        if row[group] is None:
            row |= {name: TOKEN for name in (scales, zeros) if row[name] is GROUP}
        elif GROUP not in (row[scales], row[zeros]):
            row[scales] = GROUP
    spare = 0 if row["mask"] == "none" else 32
    return replace(SMALL, tiles=1 if spare else 3, extra_keys=0, spare_keys=spare, **row)


GROUPED_CASES = [_grouped(row) for row in covering_rows(GROUPED, seed=3)]


@pytest.mark.parametrize("case", GROUPED_CASES, ids=lambda case: case.name)
def test_case_of_groups(case: QuantisedCase) -> None:
    operands = build_quantised(case)
    assert QUANTISED.refusal(quantised_spec(operands)) is None
    assert_within_bound(solve_quantised(case, operands), operands)


PACKED: dict[str, list[Any]] = {
    "packing": list(PACKED_FORMATS),
    "kv_dtype": [UINT8, INT8],
    "dtype": [torch.bfloat16, torch.float16],
    "key_scales": [TOKEN, GROUP],
    "value_scales": [HEAD, TOKEN, GROUP],
    "key_zeros": [NONE, TOKEN],
    "value_zeros": [NONE, HEAD],
    "value_minima": [False, True],
    "mask": ["none", "ragged"],
    "num_splits": [1, 3],
    "load_path": [LoadPath.POINTER, LoadPath.TMA],
    "head_dim": [24, 64, 128],
    "value_dim": [16, 64],
}


def _packed(row: dict[str, Any]) -> QuantisedCase:
    groups = {f"{side}_group": (1, 8) if row[f"{side}_scales"] is GROUP else None for side in ("key", "value")}
    if row["value_scales"] is GROUP and row["value_zeros"] is HEAD:
        row["value_zeros"] = GROUP
    return replace(SMALL, **row, **groups)


PACKED_CASES = [_packed(row) for row in covering_rows(PACKED, seed=7)]


@pytest.mark.parametrize("case", PACKED_CASES, ids=lambda case: case.name)
def test_case_of_four_bits(case: QuantisedCase) -> None:
    operands = build_quantised(case)
    assert operands.stored_k.shape[3] * 2 == case.head_dim
    assert QUANTISED.refusal(quantised_spec(operands)) is None
    assert_within_bound(solve_quantised(case, operands), operands)


@pytest.mark.parametrize("zero_dtype", [torch.uint8, torch.int32], ids=str)
def test_zeros_may_be_integers(zero_dtype: torch.dtype) -> None:
    case = replace(SMALL, kv_dtype=UINT8, key_zeros=TOKEN, value_zeros=HEAD, zero_dtype=zero_dtype, mask="ragged")
    operands = build_quantised(case)
    assert_within_bound(solve_quantised(case, operands), operands)


@pytest.mark.parametrize(("dtype", "minima"), [(torch.bfloat16, False), (torch.float16, True)], ids=str)
def test_the_error_is_no_larger_than_that_of_dequantising_first(dtype: torch.dtype, minima: bool) -> None:
    """Root mean square, as for caches without zeros. In float16 it is what the rounding of weights
    may add, which is why it matters that unsigned numbers are read as numbers about 0."""
    case = QuantisedCase(
        batch=1, head_dim=64, value_dim=128, tiles=9, block_kv=32, kv_dtype=UINT8, key_scales=TOKEN, value_scales=TOKEN,
        key_zeros=TOKEN, value_zeros=TOKEN, key_minima=minima, value_minima=minima, dtype=dtype,
    )  # fmt: skip
    o = build_quantised(case)
    exact = exact_attention(o.q, o.k, o.v, o.mask, scale=o.scale)
    first = same_dtype_attention(o.q, o.k.to(dtype), o.v.to(dtype), o.mask, scale=o.scale)

    def error(out: torch.Tensor) -> float:
        return float((out.double() - exact).square().mean().sqrt())

    assert error(solve_quantised(case, o)) <= error(first)


def _with(operands: QuantisedOperands, **changes: Any) -> QuantisedOperands:
    return replace(operands, **changes)


def _exact(numbers: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, minima: bool) -> torch.Tensor:
    wide, scale, zero = numbers.double(), scale.double()[..., None], zero.double()[..., None]
    return wide * scale + zero if minima else (wide - zero) * scale


@pytest.mark.parametrize("minima", [False, True])
def test_zeros_far_beyond_the_numbers_and_tokens_without_a_scale(minima: bool) -> None:
    """Tokens whose numbers are nearly equal have tiny scales and, as minima or as zeros, nearly all of their size."""
    case = replace(SMALL, kv_dtype=UINT8, key_scales=TOKEN, value_scales=TOKEN, key_zeros=TOKEN, value_zeros=TOKEN,
                   key_minima=minima, value_minima=minima, tiles=3)  # fmt: skip
    o = build_quantised(case)
    assert o.v_scale is not None and o.v_zero is not None
    tokens = torch.arange(o.v_scale.shape[2], device=o.v_scale.device)
    tiny, size = torch.ldexp(torch.ones_like(o.v_scale), -(tokens % 3) * 12), 1.0 + tokens % 5
    scale = o.v_scale * tiny
    zero = size.expand_as(scale) if minima else (size / scale).round()
    if minima:
        scale = scale.masked_fill(tokens % 7 == 3, 0.0)
    o = _with(o, v_scale=scale, v_zero=zero, v=_exact(o.stored_v, scale, zero, minima))
    assert_within_bound(solve_quantised(case, o), o)
