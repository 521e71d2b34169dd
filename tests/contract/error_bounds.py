"""The error bound as an assertion. What it is and why: ``prefetch_compiler/error_bound.py``."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from prefetch_compiler.error_bound import EX2_APPROX_ERROR, FLOAT32_ROUNDING, Problem, yardstick
from prefetch_compiler.reference import exact_lse


def assert_within_bound(actual: Tensor, problem: Problem) -> None:
    """``actual`` has the oracle's shape, the inputs' dtype, no NaN or infinity, and errs no more than it may.

    Raises:
        AssertionError: it does not; the message names the worst query.
    """
    measure = yardstick(problem)
    assert actual.shape == measure.answer.shape
    assert actual.dtype is problem.q.dtype
    unwritten = torch.isfinite(actual).logical_not().sum().item()
    assert unwritten == 0, f"{unwritten} of {actual.numel()} outputs are NaN or infinite"
    error, bound = measure.error(actual), measure.bound
    sequence, query = divmod(int((error - bound).argmax()), bound.shape[1])
    assert (error <= bound).all(), (
        f"{int((error > bound).sum())} of {bound.numel()} queries err too much; the worst is query {query} of sequence "
        f"{sequence}: {error[sequence, query]:.3g} where {bound[sequence, query]:.3g} is allowed"
    )


def assert_lse_within_bound(actual: Tensor, problem: Problem) -> None:
    """``actual`` is float32 (batch, query_heads, q_len), -inf exactly where the oracle is, and errs no more than
    float32 arithmetic may.

    A log-sum-exp moves by no more than its scores do: a sum of head_dim products, each rounded once on its way, and the
    roundings of a score and of its exponential, as in ``error_bound``. The logarithm and the sum with the maximum
    round once more each.
    """
    q, k, scale = problem.q, problem.k, problem.scale
    exact = exact_lse(q, k, problem.mask, is_causal=problem.is_causal, scale=scale, softcap=problem.softcap,
                      sink=problem.sink)  # fmt: skip
    assert actual.shape == exact.shape
    assert actual.dtype is torch.float32
    assert torch.equal(actual == -math.inf, exact == -math.inf)
    seen = exact != -math.inf
    keys = k.double().abs().repeat_interleave(q.shape[1] // k.shape[1], 1)
    size = (q.double().abs() @ keys.transpose(-1, -2)).amax(-1) * abs(scale)  # of the products that a score sums
    if problem.mask is not None and problem.mask.is_floating_point():
        size = size + exact.abs().where(seen, 0.0)
    bound = EX2_APPROX_ERROR * 2 + (q.shape[-1] + 3 * math.log2(math.e)) * FLOAT32_ROUNDING * size
    bound = bound + (problem.softcap or 0.0) * (EX2_APPROX_ERROR / 2 + 6 * FLOAT32_ROUNDING)
    bound = bound + 2 * FLOAT32_ROUNDING * exact.abs().where(seen, 0.0)
    error = (actual.double() - exact).abs().where(seen, 0.0)
    assert (error <= bound).all(), (
        f"{int((error > bound).sum())} of {bound.numel()} log-sum-exps err too much, by up to {error.max():.3g} where "
        f"{bound.flatten()[int((error - bound).argmax())]:.3g} is allowed"
    )
