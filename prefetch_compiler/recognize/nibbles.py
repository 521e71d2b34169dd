"""Numbers of four bits that a graph takes out of bytes by shifts and masks, two of each: which bytes, in which order?

``torch.stack([x & 15, x >> 4], -1).flatten(-2)`` and ``torch.cat([x & 15, x >> 4], -1)``; signed where the shift is
that of int8: ``(x << 4) >> 4`` is the low half then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from ..spec import PACKED_DTYPES
from .axes import CONVERSIONS, shape_of
from .sizes import is_symbolic
from .views import Atom, Dims, aten

_MASKS = (aten.bitwise_and.Scalar, aten.bitwise_and.Tensor, aten.__and__.Scalar)
_RIGHT = (aten.__rshift__.Scalar, aten.bitwise_right_shift.Tensor_Scalar)
_LEFT = (aten.__lshift__.Scalar, aten.bitwise_left_shift.Tensor_Scalar)
_SAME_BITS = (aten.view.dtype, aten.alias.default)
_SUMS = (aten.add.Tensor, aten.add.Scalar, aten.sub.Tensor, aten.sub.Scalar)
_FEW = 16
_INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)
# All of them hold every number of four bits.
_NUMBERS = (*_INTEGERS, torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Unpacked:
    """``stored`` bytes as numbers of ``packing``, one of PACKED_FORMATS. ``dims`` are what the unpacked tensor is made
    of: dimensions of ``stored``, of which the last has twice as many columns."""

    stored: Node
    packing: str
    dims: Dims


@dataclass(frozen=True)
class _Half:
    """The low or high four bits of every byte of ``stored``."""

    stored: Node
    high: bool
    signed: bool


def unpacked_by(node: Node) -> Unpacked | None:
    """What ``node`` unpacks, if that is what it does."""
    if node.target is not aten.cat.default or node.kwargs:
        return None
    arguments: Any = node.args
    last = len(shape_of(node)) - 1
    dim = arguments[1] % (last + 1) if len(arguments) > 1 else 0
    if len(arguments[0]) != 2 or dim != last:
        return None
    beside = [_without_last_dim(part) for part in arguments[0]]
    interleaved = all(part is not None for part in beside)
    low, high = (_half_of(part) for part in (beside if interleaved else arguments[0]))
    if low is None or high is None or low.high or not high.high:
        return None
    if low.stored is not high.stored or low.signed is not high.signed:
        return None
    return _unpacked(low, interleaved, last)


def _unpacked(half: _Half, interleaved: bool, last: int) -> Unpacked | None:
    shape = shape_of(half.stored)
    if len(shape) != (last if interleaved else last + 1) or is_symbolic(shape[-1]):
        return None
    dim, bytes_ = len(shape) - 1, int(shape[-1])
    dims: Dims = [[Atom(d, size)] for d, size in enumerate(shape[:-1])]
    dims += [[Atom(dim, bytes_, 2)], [Atom(dim, 2)]] if interleaved else [[Atom(dim, 2 * bytes_)]]
    numbers = "int4" if half.signed else "uint4"
    return Unpacked(half.stored, f"{numbers}_{'interleaved' if interleaved else 'halves'}", dims)


def _without_last_dim(node: Node) -> Node | None:
    """What ``node`` adds a last dimension of 1 to, if that is what it does; conversions may come after."""
    node = _before_conversions(node)
    if node.target is not aten.unsqueeze.default:
        return None
    source: Any = node.args[0]
    ndim = len(shape_of(node))
    return source if int(node.args[1]) % ndim == ndim - 1 else None  # type: ignore[arg-type]


def _before_conversions(node: Node) -> Node:
    while node.target in CONVERSIONS and node.meta["val"].dtype in _NUMBERS:
        node = _source(node)
    return node


def _half_of(node: Node | None) -> _Half | None:
    """The half that ``node`` is of every byte; None where it is none, or has lost its sign to uint8."""
    if node is None:
        return None
    half = _half_taken_by(_before_conversions(node))
    while half is not None and half.signed and node.target in CONVERSIONS:
        if node.meta["val"].dtype is torch.uint8:
            return None
        node = _source(node)
    return half


def _half_taken_by(node: Node) -> _Half | None:
    if node.target in _MASKS and _is(node.args[1], 15):
        inner = _source(node)
        shifted = inner.target in _RIGHT and _is(inner.args[1], 4)
        found = _byte(_source(inner) if shifted else inner)
        return None if found is None else _Half(found[0], shifted, False)
    if node.target not in _RIGHT or not _is(node.args[1], 4):
        return None
    inner = _source(node)
    if inner.target in _LEFT and _is(inner.args[1], 4):
        # What is shifted out of a byte is gone; it is not gone of anything wider.
        dtype = inner.meta["val"].dtype
        found = _byte(_source(inner)) if dtype in PACKED_DTYPES else None
        return None if found is None else _Half(found[0], False, dtype is torch.int8)
    found = _byte(inner)
    return None if found is None else _Half(found[0], True, found[1] is torch.int8)


def _byte(node: Node) -> tuple[Node, torch.dtype] | None:
    """The stored bytes that ``node`` is, and as which dtype it takes them: a sign is kept by wider integers."""
    while node.target in CONVERSIONS and node.meta["val"].dtype in _INTEGERS:
        source = _source(node).meta["val"].dtype
        if source not in _INTEGERS or source.itemsize >= node.meta["val"].dtype.itemsize:
            return None
        node = _source(node)
    dtype: torch.dtype = node.meta["val"].dtype
    while node.target in _SAME_BITS and _source(node).meta["val"].dtype.itemsize == 1:
        node = _source(node)
    stored = node.meta["val"].dtype
    return (node, dtype) if dtype in PACKED_DTYPES and stored in PACKED_DTYPES else None


def _source(node: Node) -> Node:
    return node.args[0]  # type: ignore[return-value]


def _is(argument: object, number: int) -> bool:
    if isinstance(argument, int | float) and not isinstance(argument, bool):
        return argument == number
    return False


def keeps_numbers(node: Node) -> bool:
    """Whether a node converts numbers of four bits to integers that may be negative."""
    return node.target in CONVERSIONS and node.meta["val"].dtype in _INTEGERS and node.meta["val"].dtype.is_signed


def moves_numbers(node: Node) -> bool:
    """Whether a node adds so little to numbers of four bits, or subtracts it, that no signed byte overflows."""
    few = len(node.args) == 2 and not node.kwargs and isinstance(node.args[1], int) and abs(node.args[1]) <= _FEW
    return node.target in _SUMS and few and node.meta["val"].dtype in (torch.int8, torch.int16)
