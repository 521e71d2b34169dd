"""Splits: any number of them, merged by either road, always in the same order."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from prefetch_compiler.config import MAX_SPLITS, Merge, Partition

from .cases import DEVICE, Case, build, solve
from .error_bounds import assert_within_bound

RAGGED = Case(mask="ragged", q_len=2, tiles=4)
# Programs of the interpreter run one after another, so only a GPU's schedule can vary.
REPEATS = 2 if DEVICE.type == "cpu" else 50


@pytest.mark.parametrize("partition", Partition)
@pytest.mark.parametrize("merge", Merge)
@pytest.mark.parametrize("num_splits", [2, 4, 5, 8, 9, 33])
def test_fewer_and_more_splits_than_tiles(num_splits: int, merge: Merge, partition: Partition) -> None:
    case = replace(RAGGED, num_splits=num_splits, merge=merge, partition=partition)
    operands = build(case)
    assert_within_bound(solve(case, operands), operands)


@pytest.mark.parametrize("merge", Merge)
def test_the_most_splits(merge: Merge) -> None:
    """A chunked merge of many partial results: as many tiles as splits would take too long without a GPU."""
    tiles = 3 if DEVICE.type == "cpu" else MAX_SPLITS + 100
    case = Case(batch=1, kv_heads=1, group=3, mask="prefix", tiles=tiles, num_splits=MAX_SPLITS, merge=merge)
    operands = build(case)
    assert_within_bound(solve(case, operands), operands)


@pytest.mark.parametrize("merge", Merge)
def test_more_partial_results_than_one_chunk_of_the_merge(merge: Merge) -> None:
    case = Case(batch=1, kv_heads=1, group=3, mask="prefix", tiles=19, num_splits=20, merge=merge)
    operands = build(case)
    assert_within_bound(solve(case, operands), operands)


@pytest.mark.parametrize("partition", Partition)
@pytest.mark.parametrize("merge", Merge)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_the_same_launch_gives_the_same_bits(dtype: torch.dtype, merge: Merge, partition: Partition) -> None:
    """Whichever program finishes last."""
    case = replace(RAGGED, num_splits=4, merge=merge, dtype=dtype, partition=partition)
    operands = build(case)
    first = solve(case, operands)
    assert all(torch.equal(solve(case, operands), first) for _ in range(REPEATS - 1))


@pytest.mark.parametrize("partition", [Partition.EVEN, Partition.STRIDED, Partition.CHUNKED])
@pytest.mark.parametrize("merge", Merge)
def test_a_sequence_does_not_depend_on_its_batch(merge: Merge, partition: Partition) -> None:
    """With the number of splits given, each sequence's bits are the same alone and in company."""
    case = replace(RAGGED, num_splits=3, merge=merge, mask="left_padding", partition=partition)
    operands = build(case)
    together = solve(case, operands)
    assert operands.mask is not None
    for sequence in range(case.batch):
        alone = replace(
            operands,
            **{
                name: getattr(operands, name)[sequence : sequence + 1]
                for name in ("q", "k", "v", "stale_k", "stale_v", "mask")
            },
        )
        assert torch.equal(solve(replace(case, batch=1), alone)[0], together[sequence])


@pytest.mark.parametrize("partition", [Partition.BALANCED, Partition.STREAMED])
@pytest.mark.parametrize("merge", Merge)
@pytest.mark.parametrize("num_splits", [2, 3, 6, 23])
@pytest.mark.parametrize(
    "lengths",
    [
        (100, 1, 1, 1, 1),
        (1, 0, 0, 97, 0),
        (0, 0, 0, 0, 0),
        (33, 34, 35, 36, 37),
        (16, 32, 48, 64, 80),
        (96,) * 5,
        (17,) * 5,
    ],
    ids=str,
)
def test_very_different_lengths(lengths: tuple[int, ...], num_splits: int, merge: Merge, partition: Partition) -> None:
    """One sequence may take nearly all splits, up to its limit; those that hold nothing still write their zeros."""
    case = Case(
        batch=5, tiles=6, extra_keys=4, spare_keys=0, mask="prefix", num_splits=num_splits, merge=merge,
        partition=partition,
    )  # fmt: skip
    held = torch.tensor(lengths, device=DEVICE)[:, None]
    mask = (torch.arange(case.capacity, device=DEVICE) < held)[:, None, None, :]
    operands = replace(build(case), mask=mask)
    out = solve(case, operands)
    assert_within_bound(out, operands)
    assert all(out[sequence].count_nonzero() == 0 for sequence, length in enumerate(lengths) if length == 0)


@pytest.mark.parametrize("num_splits", [9, 17])
def test_a_sequence_has_more_balanced_parts_than_a_merge_holds_at_once(num_splits: int) -> None:
    """The merge's tile is an even share's; a long sequence beside short ones has nearly all parts of the batch."""
    case = Case(
        batch=3, kv_heads=1, group=3, tiles=45, spare_keys=0, mask="prefix", num_splits=num_splits,
        partition=Partition.BALANCED,
    )  # fmt: skip
    held = torch.tensor((case.capacity, 5, 0), device=DEVICE)[:, None]
    operands = replace(build(case), mask=(torch.arange(case.capacity, device=DEVICE) < held)[:, None, None, :])
    out = solve(case, operands)
    assert_within_bound(out, operands)
    assert out[2].count_nonzero() == 0
