"""The covering design meets every pair, in far fewer rows than the product, and is the same every time."""

from __future__ import annotations

import itertools

import pytest

from .cases import CASES, FACTORS, Case
from .covering import covering_rows

SMALL = {"a": [1, 2, 3], "b": "xyz", "c": [True, False], "d": [0.5]}


@pytest.mark.parametrize("factors", [SMALL, FACTORS], ids=["small", "contract"])
def test_every_pair_meets(factors: dict[str, list[object]]) -> None:
    rows = covering_rows(factors, seed=5)
    for one, other in itertools.combinations(factors, 2):
        met = {(row[one], row[other]) for row in rows}
        assert met == set(itertools.product(factors[one], factors[other]))


def test_the_design_is_small_and_repeatable() -> None:
    assert covering_rows(FACTORS, seed=5) == covering_rows(FACTORS, seed=5)
    assert len(CASES) <= 160


def test_cases_have_distinct_names() -> None:
    assert len({case.name for case in CASES}) == len(CASES)
    assert Case().name == "default"
