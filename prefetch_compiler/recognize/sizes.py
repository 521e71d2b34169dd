"""Asking about sizes that may be symbolic, without adding guards: a guard that Inductor alone would not add is a
recompile that Inductor alone would not have. ``fixed`` and ``holds`` do add one, where nothing can be lowered without.

In an exported program nothing checks a guard. There, inside ``no_guards``, what would need one is refused."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch.fx.experimental.symbolic_shapes import statically_known_true

from ..errors import Refused

Size = int | torch.SymInt

_no_guards: ContextVar[bool] = ContextVar("kvprefetch_no_guards", default=False)


@contextmanager
def no_guards() -> Iterator[None]:
    """Refuse, inside the ``with`` block, what would hold for some sizes of a graph only."""
    token = _no_guards.set(True)
    try:
        yield
    finally:
        _no_guards.reset(token)


def fixed(size: Size, name: str) -> int:
    """A size that never changes in a model, with a guard where ``dynamic=True`` made it a symbol.

    Raises:
        Refused: it is a symbol, and guards are not to be added.
    """
    if is_symbolic(size) and _no_guards.get():
        raise Refused(f"{name} is a dynamic dimension of the exported program: export it with a fixed one")
    return int(size)


def holds(condition: bool | torch.SymBool, text: str) -> bool:
    """Whether a condition on sizes holds, with a guard where it depends on symbols.

    Raises:
        Refused: it depends on symbols, and guards are not to be added. ``text`` says what would have to hold.
    """
    if not _no_guards.get() or isinstance(condition, bool):
        return bool(condition)
    if statically_known_true(condition):
        return True
    if statically_known_true(torch.sym_not(condition)):
        return False
    raise Refused(f"whether {text} depends on dynamic dimensions: bound them where the program is exported")


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
