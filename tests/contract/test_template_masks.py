"""Masks: every broadcastable shape, rows that hide everything in each spelling, and bounds that are obeyed."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from prefetch_compiler.config import Merge, OperandOrder, Partition
from prefetch_compiler.device import profile
from prefetch_compiler.error_bound import exact
from prefetch_compiler.lower.launch import launch_decode

from .cases import DEVICE, Case, Operands, build, config_of, solve, spec_of
from .error_bounds import assert_within_bound
from .poison import NAN, uninitialised_is_nan

NEG_INF = float("-inf")
MERGES = {
    "one split": {"num_splits": 1},
    "separate": {"num_splits": 3, "merge": Merge.SEPARATE},
    "strided": {"num_splits": 3, "partition": Partition.STRIDED},
    "chunked": {"num_splits": 3, "partition": Partition.CHUNKED},
    "balanced": {"num_splits": 3, "partition": Partition.BALANCED},
    "balanced in place": {"num_splits": 2, "partition": Partition.BALANCED, "merge": Merge.INPLACE},
    "streamed": {"num_splits": 3, "partition": Partition.STREAMED},
    "streamed in place": {"num_splits": 2, "partition": Partition.STREAMED, "merge": Merge.INPLACE},
    "in place": {"num_splits": 3, "merge": Merge.INPLACE, "operand_order": OperandOrder.KQ},
}
DTYPES = [torch.float16, torch.bfloat16, torch.float32]


def case_of(dtype: torch.dtype = torch.float32, merge: str = "one split", **changes: object) -> Case:
    """2 sequences of 4 heads, 2 queries, 53 keys."""
    case = Case(batch=2, group=2, q_len=2, dtype=dtype, **MERGES[merge])  # type: ignore[arg-type]
    return replace(case, **changes)  # type: ignore[arg-type]


def masked(case: Case, mask: torch.Tensor, **changes: torch.Tensor) -> Operands:
    return replace(build(case), mask=mask.to(DEVICE), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["bool", "additive"])
@pytest.mark.parametrize("broadcast", list(itertools.product([False, True], repeat=4)), ids=str)
def test_every_broadcastable_shape(broadcast: tuple[bool, ...], kind: str) -> None:
    case = case_of(num_splits=2)
    shape = [1 if flat else size for flat, size in zip(broadcast, (2, 4, 2, 53), strict=True)]
    visible = torch.rand(shape, generator=torch.Generator().manual_seed(sum(broadcast))) < 0.6
    additive = torch.randn(shape, generator=torch.Generator().manual_seed(7)).masked_fill(~visible, NEG_INF)
    operands = masked(case, visible if kind == "bool" else additive)
    assert_within_bound(solve(case, operands), operands)


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("spelling", ["bool", "-inf"])
def test_rows_that_hide_everything_are_zero(spelling: str, dtype: torch.dtype, merge: str) -> None:
    """The first sequence sees nothing; the second sees nothing from its first query."""
    case = case_of(dtype, merge)
    visible = torch.ones(2, 1, 2, 53, dtype=torch.bool)
    visible[0] = False
    visible[1, :, 0] = False
    mask = visible if spelling == "bool" else torch.zeros(visible.shape, dtype=dtype).masked_fill(~visible, NEG_INF)
    operands = masked(case, mask)
    out = solve(case, operands)
    assert_within_bound(out, operands)
    assert out[0].count_nonzero() == 0
    assert out[1, :, 0].count_nonzero() == 0
    assert out[1, :, 1].count_nonzero() > 0


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_masked_by_finfo_min_throughout_are_averages(dtype: torch.dtype, merge: str) -> None:
    """A finite value hides nothing from a row that has nothing better. The query is 0, so that in float16, where
    finfo.min does not swallow a score, the average is plain as well."""
    case = case_of(dtype, merge)
    mask = torch.full((2, 1, 2, 53), torch.finfo(dtype).min, dtype=dtype)
    mask[1, :, 1, 20:30] = 0.0
    operands = masked(case, mask)
    operands = replace(operands, q=torch.zeros_like(operands.q))
    out = solve(case, operands)
    assert_within_bound(out, operands)
    average = operands.v.double().mean(2).repeat_interleave(2, 1)
    assert torch.allclose(exact(operands)[0, :, 0], average[0], rtol=1e-12)


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_finfo_min_swallows_the_scores_of_a_row_that_has_nothing_better(dtype: torch.dtype, merge: str) -> None:
    case = case_of(dtype, merge)
    mask = torch.full((2, 1, 2, 53), torch.finfo(dtype).min, dtype=dtype)
    mask[1, :, 1, 20:30] = 0.0
    operands = masked(case, mask)
    assert_within_bound(solve(case, operands), operands)


@pytest.mark.parametrize("merge", MERGES)
def test_the_best_of_a_row_may_itself_be_very_low(merge: str) -> None:
    """-inf beside finfo.min: the average of the latter. A shift by a large ordinary value: no change."""
    case = case_of(torch.float32, merge)
    mask = torch.full((2, 1, 2, 53), NEG_INF)
    mask[0, ..., 11:29] = torch.finfo(torch.float32).min
    mask[1, ..., 5:50] = -1000.0
    operands = masked(case, mask)
    assert_within_bound(solve(case, operands), operands)


@pytest.mark.parametrize("merge", MERGES)
def test_a_bias_that_grows_tile_by_tile(merge: str) -> None:
    """The running maximum moves at every tile, by more than float32's exponent can hold in one exp2."""
    case = case_of(torch.float32, merge)
    mask = (torch.arange(53) // 16 * 200.0).expand(1, 1, 1, 53)
    operands = masked(case, mask)
    assert_within_bound(solve(case, operands), operands)
    falling = replace(operands, mask=operands.mask.flip(-1))  # type: ignore[union-attr]
    assert_within_bound(solve(case, falling), falling)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_a_mask_in_the_other_float_dtype(dtype: torch.dtype) -> None:
    case = case_of(torch.float16)
    mask = torch.randn(1, 4, 1, 53, generator=torch.Generator().manual_seed(3)).to(dtype)
    operands = masked(case, mask)
    assert_within_bound(solve(case, operands), operands)


def _launch(case: Case, operands: Operands, bounds: list[list[int]] | None) -> torch.Tensor:
    """As ``solve``, with the given bounds."""
    mask = operands.mask
    assert mask is not None
    with uninitialised_is_nan():
        return launch_decode(
            operands.q,
            operands.k,
            operands.v,
            mask.expand(2, 4, 2, 53),
            None if bounds is None else torch.tensor(bounds, dtype=torch.int32, device=DEVICE),
            is_causal=False,
            scale=operands.scale,
            heads_first=True,
            config=config_of(case, spec_of(case, operands), profile(DEVICE)),
        )


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize(("first", "end"), [(0, 53), (0, 1), (52, 53), (7, 39), (16, 32), (15, 33), (53, 53)])
def test_nothing_outside_the_bounds_is_read(first: int, end: int, merge: str) -> None:
    """One row of bounds for both sequences. Outside them K and V hold NaN and the mask says that they may be seen."""
    case = case_of(torch.float32, merge)
    inside = torch.zeros(1, 1, 1, 53, dtype=torch.bool)
    inside[..., first:end] = True
    problem = masked(case, inside)
    outside = inside.logical_not().reshape(1, 1, 53, 1).to(DEVICE)
    poisoned = replace(
        problem,
        k=problem.k.masked_fill(outside, NAN),
        v=problem.v.masked_fill(outside, NAN),
        mask=torch.ones_like(inside).to(DEVICE),
    )
    assert_within_bound(_launch(case, poisoned, [[first, end, first, end]]), problem)


@pytest.mark.parametrize("merge", MERGES)
def test_each_sequence_has_its_own_bounds(merge: str) -> None:
    case = case_of(torch.float32, merge)
    inside = torch.zeros(2, 1, 1, 53, dtype=torch.bool)
    inside[0, ..., 3:20] = True
    inside[1, ..., 30:53] = True
    problem = masked(case, inside)
    poisoned = replace(
        problem,
        k=problem.k.masked_fill(inside.logical_not().reshape(2, 1, 53, 1).to(DEVICE), NAN),
        v=problem.v.masked_fill(inside.logical_not().reshape(2, 1, 53, 1).to(DEVICE), NAN),
    )
    assert_within_bound(_launch(case, poisoned, [[3, 20, 3, 20], [30, 53, 30, 53]]), problem)


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("clean", [(0, 0), (10, 10), (0, 53), (16, 32), (5, 40), (20, 53)], ids=str)
def test_the_mask_rules_outside_the_clean_range(clean: tuple[int, int], merge: str) -> None:
    """The clean range says where the mask need not be looked at; a short one must not change the answer."""
    case = case_of(torch.float32, merge)
    visible = torch.rand(1, 1, 1, 53, generator=torch.Generator().manual_seed(9)) < 0.5
    visible[..., clean[0] : clean[1]] = True
    problem = masked(case, visible)
    assert_within_bound(_launch(case, problem, [[0, 53, *clean]]), problem)


@pytest.mark.parametrize("merge", MERGES)
def test_a_mask_without_bounds_rules_the_whole_cache(merge: str) -> None:
    case = case_of(torch.float32, merge)
    problem = masked(case, torch.rand(2, 4, 2, 53, generator=torch.Generator().manual_seed(4)) < 0.5)
    assert_within_bound(_launch(case, problem, None), problem)
