"""The error bound is worth having: right answers are inside it, and each kind of subtly wrong answer is outside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from prefetch_compiler.error_bound import error_bound, exact, yardstick
from prefetch_compiler.reference import same_dtype_attention

from .cases import DEVICE, Case, Operands, build
from .error_bounds import assert_within_bound

DTYPES = [torch.float16, torch.bfloat16, torch.float32]


def problem(dtype: torch.dtype) -> Operands:
    """100 keys in use of 137, two queries that see all but each other's future, 3 sequences of 8 heads."""
    return build(Case(dtype=dtype, head_dim=64, value_dim=64, q_len=2, tiles=6, extra_keys=4, mask="window"))


def solved(p: Operands) -> torch.Tensor:
    return exact(p).to(p.q.dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_exact_answer_rounded_once_is_inside(dtype: torch.dtype) -> None:
    assert_within_bound(solved(problem(dtype)), problem(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_reference_is_inside(dtype: torch.dtype) -> None:
    p = problem(dtype)
    assert_within_bound(same_dtype_attention(p.q, p.k, p.v, p.mask, scale=p.scale), p)


def _one_key_less(p: Operands) -> torch.Tensor:
    assert p.mask is not None
    mask = p.mask.clone()
    mask[..., int(mask[0, 0, -1].nonzero().max())] = False
    return solved(replace(p, mask=mask))


def _one_key_more(p: Operands) -> torch.Tensor:
    assert p.mask is not None
    mask = p.mask.clone()
    mask[..., int(mask[0, 0, -1].nonzero().max()) + 1] = True
    return solved(replace(p, mask=mask))


def _heads_interleaved(p: Operands) -> torch.Tensor:
    """Query head h on KV head h % kv_heads, the other convention."""
    order = torch.arange(p.q.shape[1]).reshape(-1, p.k.shape[1]).T.flatten().to(DEVICE)
    out = torch.empty_like(solved(p))
    out[:, order] = solved(replace(p, q=p.q[:, order]))
    return out


def _one_output_unwritten(p: Operands) -> torch.Tensor:
    out = solved(p)
    out[1, 2, 0, 3] = float("nan")
    return out


def _one_output_stale(p: Operands) -> torch.Tensor:
    out = solved(p)
    out[1, 2, 0, 3] = 0.0
    return out


WRONG: dict[str, Callable[[Operands], torch.Tensor]] = {
    "no mask": lambda p: solved(replace(p, mask=None)),
    "one key less": _one_key_less,
    "one key more": _one_key_more,
    "scale off by 2%": lambda p: solved(replace(p, scale=p.scale * 1.02)),
    "heads interleaved": _heads_interleaved,
    "queries swapped": lambda p: solved(replace(p, q=p.q.flip(2))),
    "one output unwritten": _one_output_unwritten,
    "one output stale": _one_output_stale,
    "a column dropped": lambda p: solved(
        replace(p, q=p.q.clone().index_fill_(3, torch.tensor([63], device=DEVICE), 0))
    ),
    "values shifted by a key": lambda p: solved(replace(p, v=p.v.roll(1, dims=2))),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_answer_is_outside(wrong: str, dtype: torch.dtype) -> None:
    p = problem(dtype)
    with pytest.raises(AssertionError):
        assert_within_bound(WRONG[wrong](p), p)


def _rounded_to(bits: int, x: torch.Tensor) -> torch.Tensor:
    """Keep ``bits`` of a float32 mantissa, rounding to nearest."""
    drop = 23 - bits
    return ((x.view(torch.int32) + (1 << (drop - 1))) >> drop << drop).view(torch.float32)


def test_tf32_is_outside_for_float32() -> None:
    p = problem(torch.float32)
    q, k = (_rounded_to(10, x.contiguous()) for x in (p.q, p.k))
    with pytest.raises(AssertionError, match="err too much"):
        assert_within_bound(solved(replace(p, q=q, k=k)), p)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_an_accumulator_in_the_inputs_dtype_is_outside(dtype: torch.dtype) -> None:
    """Long rows, where summing in the inputs' dtype loses most."""
    p = build(Case(dtype=dtype, tiles=64, batch=1))
    scores = torch.matmul(p.q.float(), p.k.float().repeat_interleave(4, 1).mT) * p.scale
    weights = torch.exp(scores - scores.amax(-1, keepdim=True)).to(dtype)
    values = p.v.repeat_interleave(4, 1)
    total, accumulator = torch.zeros_like(weights[..., :1]), torch.zeros_like(p.q)
    for key in range(weights.shape[-1]):
        total += weights[..., key, None]
        accumulator += weights[..., key, None] * values[:, :, key, None]
    with pytest.raises(AssertionError, match="err too much"):
        assert_within_bound(accumulator / total, p)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_that_sees_nothing_must_be_zero(dtype: torch.dtype) -> None:
    p = build(Case(dtype=dtype, mask="ragged"))
    assert error_bound(p)[1].item() == 0.0
    assert_within_bound(solved(p), p)
    out = solved(p)
    out[1, 0, 0, 0] = torch.finfo(dtype).tiny
    with pytest.raises(AssertionError, match="sequence 1"):
        assert_within_bound(out, p)


def test_a_short_row_does_not_excuse_a_long_one() -> None:
    """The first sequence sees two keys and returns large values; the third averages many."""
    p = build(Case(dtype=torch.bfloat16, tiles=20, mask="ragged"))
    assert p.mask is not None
    mask = p.mask.clone()
    mask[0, ..., 2:] = False
    bound = error_bound(replace(p, mask=mask))
    assert bound[2].item() < bound[0].item() / 2


@pytest.mark.parametrize("mask", ["per_row", "additive_inf", "ragged", "causal", "none"])
def test_the_bound_does_not_depend_on_how_much_is_computed_at_a_time(mask: str) -> None:
    """One KV head of one sequence at a time, or everything: the same up to the order of float64 sums. The reference's
    own sums are in float32, so that its part of the bound may differ as roundings fall."""
    p = build(Case(dtype=torch.float32, q_len=2, mask=mask))
    whole, parts = yardstick(p), yardstick(p, working_bytes=1)
    assert torch.allclose(whole.answer, parts.answer, rtol=1e-12, atol=1e-14)
    assert torch.equal(whole.bound == 0, parts.bound == 0)
    assert parts.share(solved(p)) <= 1
    assert parts.share(_one_output_unwritten(p)) == float("inf")


def test_a_share_above_1_is_an_error_beyond_the_bound() -> None:
    p = problem(torch.float16)
    measure = yardstick(p)
    off = torch.zeros_like(measure.answer)
    off[2, 1, 1, 7] = 3 * measure.bound[2, 1]
    assert measure.share(measure.answer + off) == pytest.approx(3)
    assert measure.share(measure.answer) == 0
    off[0, 0, 0, 0] = float("nan")
    assert measure.share(measure.answer + off) == float("inf")


def test_a_share_where_nothing_may_be_wrong() -> None:
    p = build(Case(mask="ragged"))
    measure = yardstick(p)
    assert measure.share(solved(p)) <= 1
    off = torch.zeros_like(measure.answer)
    off[1, 0, 0, 0] = 1e-300
    assert measure.share(measure.answer + off) == float("inf")
