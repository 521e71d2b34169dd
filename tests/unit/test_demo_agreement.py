"""Where two greedy answers part, and what is said about it."""

from __future__ import annotations

import torch

from prefetch_compiler.demo.agreement import Difference, first_difference
from prefetch_compiler.demo.generation import Answer
from prefetch_compiler.demo.view import describe_difference


def eager(tokens: list[int], *logits: list[float]) -> Answer:
    return Answer(tokens, "", [torch.tensor(row) for row in logits])


def found(expected: Answer, other: list[int], dtype: torch.dtype = torch.bfloat16) -> Difference:
    difference = first_difference(expected, Answer(other, ""), dtype)
    assert difference is not None
    return difference


def test_equal_answers_have_no_difference() -> None:
    assert first_difference(eager([1, 2]), Answer([1, 2], ""), torch.float32) is None


def test_the_first_differing_token_is_told_with_eagers_logits_of_both() -> None:
    difference = found(eager([1, 0], [0.0, 9.0], [5.0, 3.0]), [1, 1])
    assert (difference.step, difference.eager_token, difference.other_token) == (1, 0, 1)
    assert (difference.eager_logit, difference.eager_logit_of_other, difference.gap) == (5.0, 3.0, 2.0)
    assert "no tie" in describe_difference(difference)


def test_a_gap_of_one_step_of_the_dtype_is_a_near_tie() -> None:
    difference = found(eager([0], [20.0, 19.875]), [1])
    assert difference.resolution == 0.125  # bfloat16 has 8 bits of significand: 16 * 2**-7
    assert "a near-tie" in describe_difference(difference)


def test_the_same_gap_is_no_tie_in_float32() -> None:
    assert "no tie" in describe_difference(found(eager([0], [20.0, 19.875]), [1], torch.float32))


def test_stopping_early_is_a_difference_without_logits() -> None:
    shorter = found(eager([4, 5], [0.0], [0.0]), [4])
    assert (shorter.step, shorter.other_token, shorter.gap) == (1, None, None)
    assert "the other had stopped" in describe_difference(shorter)
    assert "eager had stopped" in describe_difference(found(eager([4], [0.0]), [4, 5]))
