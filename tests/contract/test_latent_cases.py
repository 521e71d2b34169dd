"""Latent caches: every case within its error bound, reading nothing that no query sees."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from prefetch_compiler.templates.manifest import LATENT, TEMPLATES

from prefetch_compiler.config import LoadPath, Partition
from prefetch_compiler.lower.quick_check import why_wrong

from .cases import DEVICE
from .error_bounds import assert_within_bound
from .latent_cases import CASES, LatentCase, build, solve

# Triton's interpreter warns at every scalar that it converts: recording them takes longer than computing.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")

SMALL = LatentCase(batch=1, heads=2)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(case: LatentCase) -> None:
    given = build(case)
    out = solve(case, given)
    assert_within_bound(out, given)
    order = (0, 1, 2, 3) if case.heads_first else (0, 2, 1, 3)
    assert out.permute(order).is_contiguous()


@pytest.mark.parametrize("keys", [1, 15, 16, 17, 33, 48])
@pytest.mark.parametrize(
    "kernel",
    [
        SMALL,
        replace(SMALL, num_splits=3, partition=Partition.STRIDED),
        replace(SMALL, num_splits=2, load_path=LoadPath.TMA),
    ],
    ids=["one split", "3 strided splits", "TMA"],
)
def test_length(kernel: LatentCase, keys: int) -> None:
    case = replace(kernel, keys=keys)
    given = build(case)
    assert_within_bound(solve(case, given), given)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_latent_cache_has_one_template(case: LatentCase) -> None:
    assert [template for template in TEMPLATES if template.refusal(case.spec()) is None] == [LATENT]


def test_the_quick_check_passes_what_is_right() -> None:
    case = replace(SMALL, sink=True, softcap=3.0, dtype=torch.bfloat16)
    assert why_wrong(case.spec(), case.config(), DEVICE) is None
