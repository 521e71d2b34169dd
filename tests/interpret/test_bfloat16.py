"""bfloat16 in Triton's interpreter, which has two traps: tl.dot of bf16 operands, and casts from fp32.

Both are the interpreter's (Triton 3.6): it multiplies the 16-bit patterns as integers, and it cuts low bits off where
a GPU rounds to nearest. The templates work round both; these tests show that the traps are there and that they do.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import triton
import triton.language as tl
from prefetch_compiler.templates.products import multiply
from prefetch_compiler.templates.rounding import round_to

from prefetch_compiler.config import Merge, OperandOrder
from prefetch_compiler.device import interpreting

from ..contract.cases import Case, build, solve

pytestmark = pytest.mark.skipif(not interpreting(), reason="needs TRITON_INTERPRET=1: tests the interpreter")

COUNT = 4096


@triton.jit
def _round_all(x_ptr, out_ptr, COUNT: tl.constexpr, BY_HAND: tl.constexpr):
    index = tl.arange(0, COUNT)
    tl.store(out_ptr + index, round_to(tl.load(x_ptr + index), out_ptr.dtype.element_ty, BY_HAND))


@triton.jit
def _multiply_16(a_ptr, b_ptr, out_ptr, UPCAST: tl.constexpr):
    index = tl.arange(0, 16)[:, None] * 16 + tl.arange(0, 16)[None, :]
    tl.store(out_ptr + index, multiply(tl.load(a_ptr + index), tl.load(b_ptr + index), None, UPCAST))


def values_to_round() -> torch.Tensor:
    """Ordinary values, ties in both directions, carries into the exponent, zeros, infinities: (4096,)"""
    ordinary = torch.randn(3000, generator=torch.Generator().manual_seed(0)) * 100
    patterns = [0x3F808000, 0x3F818000, 0x3FFF8000, 0x3FFFFFFF, 0x3F807FFF, 0x3F808001, 0x7F7F7FFF, 0x00808000]
    special = torch.tensor(patterns, dtype=torch.int32).view(torch.float32)
    named = torch.tensor([0.0, -0.0, float("inf"), float("-inf")])
    values = torch.cat([ordinary, special, -special, named])
    return torch.cat([values, torch.ones(COUNT - len(values))])


def rounded(by_hand: bool) -> torch.Tensor:
    out = torch.empty(COUNT, dtype=torch.bfloat16)
    _round_all[(1,)](values_to_round(), out, COUNT, by_hand)
    return out


def test_rounding_is_pytorchs() -> None:
    assert torch.equal(rounded(by_hand=True), values_to_round().to(torch.bfloat16))


def test_without_help_the_interpreter_cuts_off() -> None:
    """When this fails the trap is gone, and with it the reason for rounding by hand."""
    values, cut = values_to_round(), rounded(by_hand=False)
    finite = torch.isfinite(values)
    assert (cut[finite].abs().float() <= values[finite].abs()).all()
    assert not torch.equal(cut, values.to(torch.bfloat16))


def test_not_a_number_stays_so() -> None:
    x, out = torch.full((COUNT,), float("nan")), torch.empty(COUNT, dtype=torch.bfloat16)
    _round_all[(1,)](x, out, COUNT, True)
    assert out.isnan().all()


def small_integers(seed: int) -> torch.Tensor:
    """(16, 16), exact in bf16, with products and sums exact in fp32."""
    return torch.randint(-8, 9, (16, 16), generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16)


@pytest.mark.parametrize("upcast", [True, False])
def test_products_are_right_only_when_upcast(upcast: bool) -> None:
    a, b, out = small_integers(1), small_integers(2), torch.empty(16, 16)
    _multiply_16[(1,)](a, b, out, upcast)
    assert torch.equal(out, a.float() @ b.float()) is upcast


@pytest.mark.parametrize("order", OperandOrder)
@pytest.mark.parametrize("merge", [{"num_splits": 1}, {"num_splits": 2}, {"num_splits": 2, "merge": Merge.INPLACE}])
def test_a_decode_whose_exact_answer_bf16_holds(merge: dict[str, object], order: OperandOrder) -> None:
    """Queries of 0 weigh all 32 keys alike; 32 integers that sum to a multiple of 32 average to an integer."""
    case = replace(Case(dtype=torch.bfloat16, tiles=2, extra_keys=0, operand_order=order), **merge)  # type: ignore[arg-type]
    operands = build(case)
    steps = torch.arange(32).reshape(1, 1, 32, 1) - 15.5
    values = (steps.sign() * 8 + torch.arange(16)).expand_as(operands.v).to(torch.bfloat16)
    out = solve(case, replace(operands, q=torch.zeros_like(operands.q), stale_v=values))
    assert torch.equal(out, torch.arange(16).to(torch.bfloat16).expand_as(out))
