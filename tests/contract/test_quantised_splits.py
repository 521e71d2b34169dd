"""Splits of a quantised cache: any number of them in any partition, and the same bits whoever finishes first."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch

from prefetch_compiler.config import LoadPath, Partition
from prefetch_compiler.spec import ScaleGranularity

from .cases import DEVICE, WITHIN_SEQUENCES
from .error_bounds import assert_within_bound
from .quantised_cases import E4M3, INT8, QuantisedCase, QuantisedOperands, build_quantised, solve_quantised

# Programs of the interpreter run one after another, so only a GPU's schedule can vary.
REPEATS = 2 if DEVICE.type == "cpu" else 50
TOKEN = ScaleGranularity.TOKEN
RAGGED = QuantisedCase(mask="ragged", q_len=2, tiles=4, kv_heads=1, value_scales=TOKEN, num_warps=2)


@pytest.mark.parametrize("partition", WITHIN_SEQUENCES)
@pytest.mark.parametrize(("num_splits", "load_path"), [(2, LoadPath.TMA), (9, LoadPath.POINTER)])
def test_fewer_and_more_splits_than_tiles(num_splits: int, load_path: LoadPath, partition: Partition) -> None:
    case = replace(RAGGED, num_splits=num_splits, load_path=load_path, partition=partition, head_dim=64, value_dim=32)
    operands = build_quantised(case)
    assert_within_bound(solve_quantised(case, operands), operands)


@pytest.mark.parametrize("partition", WITHIN_SEQUENCES)
def test_the_same_launch_gives_the_same_bits(partition: Partition) -> None:
    case = replace(RAGGED, num_splits=4, partition=partition, kv_dtype=INT8)
    operands = build_quantised(case)
    first = solve_quantised(case, operands)
    assert all(torch.equal(solve_quantised(case, operands), first) for _ in range(REPEATS - 1))


@pytest.mark.parametrize("partition", [Partition.EVEN, Partition.STRIDED, Partition.CHUNKED])
def test_a_sequence_does_not_depend_on_its_batch(partition: Partition) -> None:
    """With the number of splits given, each sequence's bits are the same alone and in company."""
    case = replace(RAGGED, num_splits=3, mask="left_padding", partition=partition, kv_dtype=E4M3)
    operands = build_quantised(case)
    together = solve_quantised(case, operands)
    for sequence in range(case.batch):
        alone = _only(operands, sequence)
        assert torch.equal(solve_quantised(replace(case, batch=1), alone)[0], together[sequence])


def _only(operands: QuantisedOperands, sequence: int) -> QuantisedOperands:
    given = {field.name: getattr(operands, field.name) for field in fields(operands)}
    return QuantisedOperands(
        **{
            name: one[sequence : sequence + 1] if isinstance(one, torch.Tensor) and one.shape[0] > 1 else one
            for name, one in given.items()
        }
    )


@pytest.mark.parametrize(
    ("lengths", "num_splits"),
    [((100, 1, 1, 1, 1), 2), ((1, 0, 0, 97, 0), 6), ((0, 0, 0, 0, 0), 2), ((16, 32, 48, 64, 80), 2)],
    ids=str,
)
def test_balanced_splits_of_very_different_lengths(lengths: tuple[int, ...], num_splits: int) -> None:
    """One sequence may take nearly all splits, up to its limit; those that hold nothing still write their zeros."""
    case = QuantisedCase(
        batch=5, kv_heads=1, tiles=6, extra_keys=4, spare_keys=0, mask="prefix", num_splits=num_splits, num_warps=2,
        partition=Partition.BALANCED,
    )  # fmt: skip
    held = torch.tensor(lengths, device=DEVICE)[:, None]
    mask = (torch.arange(case.capacity, device=DEVICE) < held)[:, None, None, :]
    operands = replace(build_quantised(case), mask=mask)
    out = solve_quantised(case, operands)
    assert_within_bound(out, operands)
    assert all(out[sequence].count_nonzero() == 0 for sequence, length in enumerate(lengths) if length == 0)
