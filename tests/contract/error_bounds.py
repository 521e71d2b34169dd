"""The error bound as an assertion. What it is and why: ``prefetch_compiler/error_bound.py``."""

from __future__ import annotations

import torch
from torch import Tensor

from prefetch_compiler.error_bound import Problem, yardstick


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
