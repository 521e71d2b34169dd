"""How far a kernel may be from the float64 oracle, derived from the inputs of each comparison.

A kernel keeps scores, softmax statistics and accumulators in float32; it rounds to the inputs' dtype twice: the
unnormalised probabilities, because the tensor cores want them so, and the output. The same-dtype reference
(:func:`prefetch_compiler.reference.same_dtype_attention`) rounds there too, and besides each score, once after the
product and again after the scale and the mask. So the kernel makes a subset of the reference's roundings and its error
is bounded by::

    max |reference - exact|                    what the same roundings do to these inputs, measured, not assumed
  + eps / 2 * max |exact|                      one rounding of the output: the two maxima are over different draws of
                                               rounding errors, and where the reference is exact by luck (one key, so
                                               one weight of 1) the kernel still may round once
  + 2 * weight_error * max sum(p * |v|)        float32 arithmetic that the reference does otherwise: if each weight has
                                               a relative error of at most w, a normalised sum of values moves by at
                                               most 2 w sum(p |v|)

    weight_error = 2**-22 + 3 * 2**-24 * log2(e) * max |score|

2**-22 is the relative error of ``ex2.approx.f32`` (PTX ISA); the exponent reaches it through three float32 roundings
(log2(e) folded into the scale, the product, the difference from the maximum), each at most 2**-24 of its size. For
float16 and bfloat16 this term is about a hundredth of the first two. For float32 it is the largest, and still a
thousand times smaller than what rounding the operands to TF32 would do.

The maxima are over heads and columns, one bound for each query of each sequence: a row that sees one key and returns
large values does not excuse a row that averages a thousand. A row that sees nothing has a bound of 0.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from prefetch_compiler.reference import exact_attention, same_dtype_attention

EX2_APPROX_ERROR = 2.0**-22
FLOAT32_ROUNDING = 2.0**-24
_HEADS_AND_COLUMNS = (1, 3)


class Problem(Protocol):
    """The inputs of one attention, finite throughout."""

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None
    is_causal: bool
    scale: float


def exact(problem: Problem) -> Tensor:
    """The oracle's answer: float64 (batch, query_heads, q_len, value_dim)."""
    return exact_attention(
        problem.q, problem.k, problem.v, problem.mask, is_causal=problem.is_causal, scale=problem.scale
    )


def error_bound(problem: Problem) -> Tensor:
    """The most that a kernel may err, in float64: (batch, q_len)."""
    answer = exact(problem)
    reference = same_dtype_attention(
        problem.q, problem.k, problem.v, problem.mask, is_causal=problem.is_causal, scale=problem.scale
    )
    output_rounding = torch.finfo(problem.q.dtype).eps / 2 * answer.abs().amax(_HEADS_AND_COLUMNS)
    return (reference - answer).abs().amax(_HEADS_AND_COLUMNS) + output_rounding + _float32_arithmetic(problem)


def assert_within_bound(actual: Tensor, problem: Problem) -> None:
    """``actual`` has the oracle's shape, the inputs' dtype, no NaN or infinity, and errs no more than it may.

    Raises:
        AssertionError: it does not; the message names the worst query.
    """
    answer = exact(problem)
    assert actual.shape == answer.shape
    assert actual.dtype is problem.q.dtype
    unwritten = torch.isfinite(actual).logical_not().sum().item()
    assert unwritten == 0, f"{unwritten} of {actual.numel()} outputs are NaN or infinite"
    error = (actual.double() - answer).abs().amax(_HEADS_AND_COLUMNS)
    bound = error_bound(problem)
    sequence, query = divmod(int((error - bound).argmax()), bound.shape[1])
    assert (error <= bound).all(), (
        f"{int((error > bound).sum())} of {bound.numel()} queries err too much; the worst is query {query} of sequence "
        f"{sequence}: {error[sequence, query]:.3g} where {bound[sequence, query]:.3g} is allowed"
    )


def _float32_arithmetic(problem: Problem) -> Tensor:
    """The third term of the bound: (batch, q_len)."""
    weight_error = EX2_APPROX_ERROR + 3 * FLOAT32_ROUNDING * math.log2(math.e) * _largest_score(problem)
    size = exact_attention(
        problem.q, problem.k, problem.v.abs(), problem.mask, is_causal=problem.is_causal, scale=problem.scale
    )
    return 2 * weight_error * size.amax(_HEADS_AND_COLUMNS)


def _largest_score(problem: Problem) -> Tensor:
    """The largest magnitude that a score has on its way to the softmax: (batch, q_len).

    A bias that hides its key does not count: -inf and finfo.min swallow a score whole in any arithmetic.
    """
    group = problem.q.shape[1] // problem.k.shape[1]
    keys = problem.k.double().repeat_interleave(group, dim=1)
    scores = torch.matmul(problem.q.double(), keys.transpose(-1, -2)).abs() * abs(problem.scale)
    if problem.mask is not None and problem.mask.is_floating_point():
        hiding = problem.mask < torch.finfo(problem.mask.dtype).min / 2
        scores = scores + problem.mask.double().abs().masked_fill(hiding, 0.0)
    return scores.amax(_HEADS_AND_COLUMNS)
