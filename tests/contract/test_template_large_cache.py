"""Caches of more than 2**31 elements: offsets must not wrap, whichever stride carries them there.

The tensors are strided views of one large allocation. Without a GPU it is never touched outside the keys in use, so
it takes addresses and no memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from prefetch_compiler.config import LoadPath
from prefetch_compiler.device import profile
from prefetch_compiler.lower.launch import launch_decode

from .cases import DEVICE, Case, Operands, build, config_of, spec_of
from .error_bounds import assert_within_bound
from .poison import NAN, uninitialised_is_nan

FAR = 2**31
HALF_WAY = FAR // 2  # a stride that is a 32-bit number; twice it is not
KEYS = 53
DIM = 16


def many_keys(store: Tensor) -> Tensor:
    """One sequence whose last keys lie beyond 2**31 elements: (1, 1, more than 2**23, 16), rows 256 apart"""
    keys = FAR // 256 + 300
    return store.as_strided((1, 1, keys, DIM), (FAR + 64, FAR + 64, 256, 1))


def far_sequences(store: Tensor) -> Tensor:
    return store.as_strided((3, 1, KEYS, DIM), (HALF_WAY + 64, KEYS * DIM, DIM, 1))


def far_sequences_at_an_odd_stride(store: Tensor) -> Tensor:
    return store.as_strided((3, 1, KEYS, DIM), (HALF_WAY + 1, KEYS * DIM, DIM, 1))


def far_heads(store: Tensor) -> Tensor:
    return store.as_strided((1, 3, KEYS, DIM), (FAR + 64, HALF_WAY + 1, DIM, 1))


def far_rows(store: Tensor) -> Tensor:
    """Keys 2**26 elements apart, as in a cache stored (length, ..., dim)."""
    return store.as_strided((1, 1, 33, DIM), (FAR + 64, FAR + 64, FAR // 32, 1))


@pytest.fixture(scope="module")
def stores() -> tuple[Tensor, Tensor]:
    elements = FAR + 100_000
    try:
        stores = [torch.empty(elements, dtype=torch.float16, device=DEVICE) for _ in range(2)]
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        pytest.skip(f"needs {4 * elements / 1e9:.1f} GB: {error}")
    if DEVICE.type == "cuda":
        for store in stores:
            store.fill_(NAN)
    return stores[0], stores[1]


@pytest.mark.parametrize("load_path", [LoadPath.POINTER, LoadPath.TMA])
@pytest.mark.parametrize("num_splits", [1, 3])
@pytest.mark.parametrize(
    "view", [many_keys, far_sequences, far_sequences_at_an_odd_stride, far_heads, far_rows], ids=lambda f: f.__name__
)
def test_offsets_beyond_32_bits(
    view: Callable[[Tensor], Tensor], num_splits: int, load_path: LoadPath, stores: tuple[Tensor, Tensor]
) -> None:
    k, v = (view(store) for store in stores)
    batch, kv_heads, keys, _ = k.shape
    used = min(keys, KEYS)
    case = Case(
        batch=batch, kv_heads=kv_heads, group=2, dtype=torch.float16, tiles=0, extra_keys=used,
        num_splits=num_splits, load_path=load_path,
    )  # fmt: skip
    near = build(case)
    k[:, :, -used:], v[:, :, -used:] = near.k, near.v
    far = replace(near, stale_k=k, stale_v=v)
    assert_within_bound(_solve_last_keys(case, far, used), near)


def _solve_last_keys(case: Case, operands: Operands, used: int) -> Tensor:
    """The last ``used`` keys are visible, by a mask where there are others. Its keys lie far apart as well, and nothing
    is known to be clean, so that it is read."""
    keys = operands.stale_k.shape[2]
    mask = bounds = None
    if keys > used:
        mask = torch.zeros(keys, 257, dtype=torch.bool, device=DEVICE)[:, 0].view(1, 1, 1, keys)
        mask[..., -used:] = True
        bounds = torch.tensor([[keys - used, keys, keys, keys]], dtype=torch.int32, device=DEVICE)
    with uninitialised_is_nan():
        return launch_decode(
            operands.q,
            operands.stale_k,
            operands.stale_v,
            None if mask is None else mask.expand(case.batch, operands.q.shape[1], case.q_len, keys),
            bounds,
            is_causal=False,
            scale=operands.scale,
            heads_first=True,
            config=config_of(case, spec_of(case, operands), profile(DEVICE)),
        )
