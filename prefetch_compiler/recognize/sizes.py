"""Asking about sizes that may be symbolic, without adding guards: a guard that Inductor alone would not add is a
recompile that Inductor alone would not have."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.fx.experimental.symbolic_shapes import statically_known_true

Size = int | torch.SymInt


def same(a: Size, b: Size) -> bool:
    """Whether two sizes are known to be equal."""
    return bool(statically_known_true(a == b))


def product(sizes: Iterable[Size]) -> Size:
    total: Size = 1
    for size in sizes:
        total = total * size
    return total


def is_symbolic(size: Size) -> bool:
    return not isinstance(size, int) and not _constant(size)


def _constant(size: torch.SymInt) -> bool:
    return bool(size.node.is_constant()) or size.node.maybe_as_int() is not None


def hint(size: Size, default: int) -> int:
    """The value that a size had when the graph was captured; ``default`` where there is none (data-dependent sizes)."""
    if isinstance(size, int):
        return size
    known = size.node.maybe_as_int()
    if known is not None:
        return int(known)
    value = size.node.hint
    return default if value is None else int(value)
