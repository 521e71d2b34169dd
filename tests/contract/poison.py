"""Memory that tells when it leaks: uninitialised tensors and everything around an operand hold NaN."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch

NAN = float("nan")
_ALLOCATORS = [
    (torch, "empty"),
    (torch, "empty_like"),
    (torch, "empty_strided"),
    (torch.Tensor, "new_empty"),
    (torch.Tensor, "new_empty_strided"),
]


@contextmanager
def uninitialised_is_nan() -> Iterator[None]:
    """Inside, floating-point tensors come out of torch's uninitialised allocators full of NaN."""
    patches = [mock.patch.object(owner, name, _filling(getattr(owner, name))) for owner, name in _ALLOCATORS]
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in patches:
            patch.stop()


def _filling(allocate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def allocate_poisoned(*args: Any, **kwargs: Any) -> torch.Tensor:
        tensor = allocate(*args, **kwargs)
        return tensor.fill_(NAN) if tensor.is_floating_point() else tensor

    return allocate_poisoned
