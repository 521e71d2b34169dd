"""Addresses: caches that start anywhere, whatever their strides promise."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from prefetch_compiler.config import LoadPath, PrefetchKind
from prefetch_compiler.device import profile
from prefetch_compiler.lower.ops import DECODE_ATTENTION
from prefetch_compiler.recognize.bounds import mask_bounds

from .cases import DEVICE, Case, Operands, build, config_of, solve, spec_of
from .error_bounds import assert_within_bound
from .layouts import off_by


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("offset_elements", [1, 2, 4])
def test_a_cache_that_is_not_16_byte_aligned(offset_elements: int, dtype: torch.dtype) -> None:
    """Strides are multiples of 16 bytes, so nothing but the address tells that loads must be narrow."""
    case = Case(dtype=dtype, mask="prefix", num_splits=2)
    operands = _moved(build(case), offset_elements)
    assert_within_bound(solve(case, operands), operands)


@pytest.mark.parametrize("offset_elements", [0, 1])
def test_the_operator_gives_up_what_the_address_does_not_allow(offset_elements: int) -> None:
    """A graph was compiled for TMA loads and bulk prefetch; a later call brings a cache that cannot have them."""
    case = Case(
        dtype=torch.float16, mask="prefix", num_splits=2, load_path=LoadPath.TMA, prefetch_depth=1,
        prefetch_kind=PrefetchKind.BULK,
    )  # fmt: skip
    operands = build(case)
    config = config_of(case, spec_of(case, operands), profile(DEVICE))
    moved = _moved(operands, offset_elements)
    assert moved.mask is not None
    out = DECODE_ATTENTION(
        moved.q, moved.stale_k, moved.stale_v, moved.mask, mask_bounds(moved.mask, case.capacity),
        False, moved.scale, True, config.encode(), 0, True,
    )  # fmt: skip
    assert_within_bound(out, moved)


def _moved(operands: Operands, offset_elements: int) -> Operands:
    def move(x: Tensor) -> Tensor:
        moved = off_by(x, offset_elements)
        assert moved.data_ptr() % 16 == offset_elements * x.element_size() % 16
        return moved

    return replace(operands, stale_k=move(operands.stale_k), stale_v=move(operands.stale_v))
