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

    weight_error = 2**-22 + 3 * 2**-24 * log2(e) * max |score| + softcap * (2**-23 + 6 * 2**-24)

2**-22 is the relative error of ``ex2.approx.f32`` (PTX ISA); the exponent reaches it through three float32 roundings
(log2(e) folded into the scale, the product, the difference from the maximum), each at most 2**-24 of its size. A soft
cap's tanh(x) is 1 - 2 / (1 + exp2(2 log2(e) x)): the relative error of exp2 reaches it by a half at most, the roundings
of the argument, the sum, the quotient, the difference and the product with the cap by 2**-24 each. For
float16 and bfloat16 this term is about a hundredth of the first two. For float32 it is the largest, and still a
thousand times smaller than what rounding the operands to TF32 would do.

Over a quantised cache K and V are the dequantised numbers, exactly, in a wider dtype than q. The reference rounds them
to q's dtype, as code that dequantises first does, and a kernel need not. What a kernel may round instead is a weight
times V's scale, to float16, where the reference rounds V times its scale: one rounding each, of different draws, hence

  + 2**-11 * max sum(p * |v|)                  which is at most the bound of one rounding of V

The maxima are over heads and columns, one bound for each query of each sequence: a row that sees one key and returns
large values does not excuse a row that averages a thousand. A row that sees nothing has a bound of 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from .reference import exact_attention, same_dtype_attention

EX2_APPROX_ERROR = 2.0**-22
FLOAT32_ROUNDING = 2.0**-24
FLOAT16_ROUNDING = 2.0**-11
# Memory that the float64 oracle may take at a time, but for a single KV head of a single sequence.
WORKING_BYTES = 1 << 30
_HEADS_AND_COLUMNS = (1, 3)


class Problem(Protocol):
    """The inputs of one attention, finite throughout; ``mask`` need not be expanded. ``k`` and ``v`` have the dtype of
    ``q``, or are the exact numbers of a quantised cache in a wider one."""

    @property
    def q(self) -> Tensor: ...
    @property
    def k(self) -> Tensor: ...
    @property
    def v(self) -> Tensor: ...
    @property
    def mask(self) -> Tensor | None: ...
    @property
    def is_causal(self) -> bool: ...
    @property
    def scale(self) -> float: ...
    @property
    def softcap(self) -> float | None: ...
    @property
    def sink(self) -> Tensor | None: ...


@dataclass(frozen=True)
class GivenProblem:
    """A :class:`Problem` and nothing else."""

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None
    is_causal: bool
    scale: float
    softcap: float | None = None
    sink: Tensor | None = None


@dataclass(frozen=True)
class Yardstick:
    """What a kernel's output is held against, both float64: ``answer`` (batch, query_heads, q_len, value_dim) is the
    oracle's, ``bound`` (batch, q_len) the most that a kernel may err."""

    answer: Tensor
    bound: Tensor

    def error(self, actual: Tensor) -> Tensor:
        """The largest error of each query, over heads and columns: (batch, q_len)."""
        return (actual.double() - self.answer).abs().amax(_HEADS_AND_COLUMNS)

    def share(self, actual: Tensor) -> float:
        """The largest error over its bound: at most 1 for a kernel that is right, infinite where something that is not
        finite was returned, or something other than 0 where the bound is 0."""
        error = self.error(actual)
        wrong = error.isfinite().logical_not() | ((error > 0) & (self.bound == 0))
        shares = (error / self.bound.clamp(min=torch.finfo(torch.float64).tiny)).masked_fill(wrong, math.inf)
        return float(shares.max())


def exact(problem: Problem) -> Tensor:
    """The oracle's answer: float64 (batch, query_heads, q_len, value_dim)."""
    return exact_attention(
        problem.q, problem.k, problem.v, problem.mask, is_causal=problem.is_causal, scale=problem.scale,
        softcap=problem.softcap, sink=problem.sink,
    )  # fmt: skip


def error_bound(problem: Problem) -> Tensor:
    """The most that a kernel may err, in float64: (batch, q_len)."""
    return yardstick(problem).bound


def yardstick(problem: Problem, working_bytes: int = WORKING_BYTES) -> Yardstick:
    """Answer and bound, computed some sequences and KV heads at a time, so that the float64 copies of a large cache
    take no more than about ``working_bytes``."""
    problem = _broadcast(problem)
    batch, heads, q_len, _ = problem.q.shape
    group = heads // problem.k.shape[1]
    answer = problem.q.new_empty((batch, heads, q_len, problem.v.shape[3]), dtype=torch.float64)
    terms = problem.q.new_zeros((4, batch, q_len), dtype=torch.float64)
    for sequences, kv_heads in _parts(problem, group, working_bytes):
        part = _part(problem, sequences, kv_heads, group)
        part_answer = exact(part)
        answer[sequences, kv_heads.start * group : kv_heads.stop * group] = part_answer
        terms[:, sequences] = torch.maximum(terms[:, sequences], _terms(part, part_answer))
    reference_error, answer_size, value_size, largest_score = terms
    output_rounding = torch.finfo(problem.q.dtype).eps / 2 * answer_size
    weight_error = EX2_APPROX_ERROR + 3 * FLOAT32_ROUNDING * math.log2(math.e) * largest_score
    weight_error += (problem.softcap or 0.0) * (EX2_APPROX_ERROR / 2 + 6 * FLOAT32_ROUNDING)
    if problem.v.dtype != problem.q.dtype:
        output_rounding += FLOAT16_ROUNDING * value_size
    return Yardstick(answer, reference_error + output_rounding + 2 * weight_error * value_size)


@dataclass(frozen=True)
class _Part:
    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None
    is_causal: bool
    scale: float
    softcap: float | None
    sink: Tensor | None


def _broadcast(problem: Problem) -> _Part:
    """The problem with batch sizes of 1 expanded, and a mask of four dimensions."""
    mask = problem.mask
    if mask is not None:
        mask = mask[(None,) * (4 - mask.ndim)]
    batch = max(problem.q.shape[0], problem.k.shape[0], problem.v.shape[0])
    q, k, v = (tensor.expand(batch, -1, -1, -1) for tensor in (problem.q, problem.k, problem.v))
    return _Part(q, k, v, mask, problem.is_causal, problem.scale, problem.softcap, problem.sink)


def _parts(problem: Problem, group: int, working_bytes: int) -> Iterator[tuple[slice, slice]]:
    """Ranges of sequences and KV heads that cover the problem. The oracle repeats KV heads for their queries."""
    batch, kv_heads, kv_len, dim = problem.k.shape
    columns = dim + problem.v.shape[3] + 4 * problem.q.shape[2]  # of K and V, and of scores in various stages
    heads_at_once = max(1, working_bytes // (group * kv_len * columns * 8))
    sequences_at_once = max(1, heads_at_once // kv_heads)
    for first in range(0, batch, sequences_at_once):
        for head in range(0, kv_heads, heads_at_once):
            yield (
                slice(first, min(batch, first + sequences_at_once)),
                slice(head, min(kv_heads, head + heads_at_once)),
            )


def _part(problem: Problem, sequences: slice, kv_heads: slice, group: int) -> _Part:
    heads = slice(kv_heads.start * group, kv_heads.stop * group)
    mask = problem.mask
    if mask is not None:
        mask = mask[sequences] if mask.shape[0] > 1 else mask
        mask = mask[:, heads] if mask.shape[1] > 1 else mask
    return _Part(
        problem.q[sequences, heads], problem.k[sequences, kv_heads], problem.v[sequences, kv_heads], mask,
        problem.is_causal, problem.scale, problem.softcap, None if problem.sink is None else problem.sink[heads],
    )  # fmt: skip


def _terms(part: _Part, answer: Tensor) -> Tensor:
    """Maxima over heads and columns that the bound is made of: what the reference errs, the size of the answer, the
    size of what is summed, and the largest score; (4, batch, q_len)."""
    k, v = part.k.to(part.q.dtype), part.v.to(part.q.dtype)
    reference = same_dtype_attention(
        part.q, k, v, part.mask, is_causal=part.is_causal, scale=part.scale, softcap=part.softcap, sink=part.sink
    )
    sizes = exact(replace(part, v=part.v.abs()))
    terms = [(reference - answer).abs(), answer.abs(), sizes, _scores(part)]
    return torch.stack([term.amax(_HEADS_AND_COLUMNS) for term in terms])


def _scores(part: _Part) -> Tensor:
    """The magnitude that each score has on its way to the softmax: (batch, query_heads, q_len, kv_len).

    A bias that hides its key does not count: -inf and finfo.min swallow a score whole in any arithmetic.
    """
    group = part.q.shape[1] // part.k.shape[1]
    keys = part.k.double().repeat_interleave(group, dim=1)
    scores = torch.matmul(part.q.double(), keys.transpose(-1, -2)).abs() * abs(part.scale)
    if part.mask is not None and part.mask.is_floating_point():
        hiding = part.mask < torch.finfo(part.mask.dtype).min / 2
        scores = scores + part.mask.double().abs().masked_fill(hiding, 0.0)
    return scores
