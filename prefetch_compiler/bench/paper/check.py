"""No kernel is timed before its output over the first cache is within the error bound of the float64 answer."""

from __future__ import annotations

from ...error_bound import Yardstick, yardstick
from .contestants import Contestant
from .errors import WrongOutputError
from .inputs import CaseInputs

# What every result of ours may be compared with: the first cache's answer.
CHECKED_CACHE = 0


def yardstick_of(inputs: CaseInputs) -> Yardstick:
    """The float64 answer over the first cache, all sequences of it, and how far a kernel may be from it."""
    inputs.write_queries(CHECKED_CACHE)
    return yardstick(inputs.problems[CHECKED_CACHE])


def verified(contestant: Contestant, expected: Yardstick) -> float:
    """The largest error over its bound.

    Raises:
        WrongOutputError: it is more than 1, or something that is not finite was returned.
    """
    share = expected.share(contestant.launch(CHECKED_CACHE))
    if not share <= 1.0:
        raise WrongOutputError(f"the error is {share:.3g} times its bound")
    return share
