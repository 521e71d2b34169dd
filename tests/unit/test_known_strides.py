"""Which distances between the rows of a cache kernels are compiled for."""

from __future__ import annotations

import pytest
import torch

from prefetch_compiler.lower.specialise import known_row_stride

BATCH, HEADS, KEYS, DIM = 3, 4, 24, 64
HEADS_OUTERMOST = torch.empty(BATCH, HEADS, KEYS, DIM)
HEADS_INNERMOST = torch.empty(BATCH, KEYS, HEADS, DIM).transpose(1, 2)
KEYS_OUTERMOST = torch.empty(KEYS, BATCH, HEADS, DIM).permute(1, 2, 0, 3)


@pytest.mark.parametrize(
    ("cache", "stride"),
    [
        (HEADS_OUTERMOST, DIM),
        (HEADS_OUTERMOST[:, :, 5:20], DIM),
        (HEADS_INNERMOST, HEADS * DIM),
        # A row holds keys and values, or the batch lies between rows: another batch would be another kernel.
        (torch.empty(BATCH, HEADS, KEYS, 2 * DIM)[..., :DIM], 0),
        (KEYS_OUTERMOST, 0),
    ],
)
def test_row_strides_that_a_model_fixes_are_known(cache: torch.Tensor, stride: int) -> None:
    assert known_row_stride(cache) == stride
