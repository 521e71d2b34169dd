"""Seeing through view chains: which stored tensor does an operand repeat, reorder or copy?

Repeat-KV (``K[:, :, None].expand(...).reshape(...)``, ``repeat_interleave``) turns a (batch, kv_heads, len, dim) cache
into (batch, query_heads, len, dim) by copying it once per group. Instead of matching spellings, every dimension of the
operand is written as an ordered product of *atoms*, each a dimension of the stored tensor or a repetition, and the
chain's views are replayed on those products. The graph must be functional, so that a view's value is its base's value.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from .sizes import Size, product, same

log = logging.getLogger(__name__)
aten = torch.ops.aten


@dataclass(frozen=True)
class Atom:
    """A factor of a dimension: dimension ``source`` of the stored tensor, or a repetition when None. Of a dimension
    that a view splits it is a part: its indices are those of the dimension divided by ``step``, modulo ``size``."""

    source: int | None
    size: Size
    step: int = 1


Dims = list[list[Atom]]


@dataclass(frozen=True)
class StoredKV:
    """``base`` permuted by ``order`` is (batch, kv_heads, len, dim)."""

    base: Node
    order: tuple[int, ...]


class NotRepresentable(Exception):
    """A view that splits or mixes dimensions of the stored tensor, or drops part of it."""


def _shape(node: Any) -> torch.Size:
    shape: torch.Size = node.meta["val"].shape
    return shape


def _arguments(node: Node) -> Any:
    """The node's arguments: of an ATen view their types follow from its schema, which Python's types do not know."""
    return node.args


def _is_one(size: Size) -> bool:
    return same(size, 1)


def _replay_unsqueeze(dims: Dims, node: Node) -> Dims:
    at = _arguments(node)[1] % (len(dims) + 1)
    return [*dims[:at], [], *dims[at:]]


def _replay_expand(dims: Dims, node: Node) -> Dims:
    result: Dims = []
    before, after = _shape(node.args[0]), _shape(node)
    if len(before) != len(after):
        raise NotRepresentable
    for atoms, old, new in zip(dims, before, after, strict=True):
        repeated = _is_one(old) and not _is_one(new)
        result.append([Atom(None, new)] if repeated else atoms)
    return result


def _replay_permute(dims: Dims, node: Node) -> Dims:
    return [dims[d] for d in _arguments(node)[1]]


def _replay_transpose(dims: Dims, node: Node) -> Dims:
    _, a, b = _arguments(node)
    result = list(dims)
    result[a], result[b] = dims[b], dims[a]
    return result


def _replay_squeeze(dims: Dims, node: Node) -> Dims:
    before = _shape(node.args[0])
    drop = _arguments(node)[1]
    dropped = {d % len(dims) for d in (drop if isinstance(drop, list | tuple) else [drop])}
    return [atoms for d, atoms in enumerate(dims) if not (d in dropped and _is_one(before[d]))]


def _replay_view(dims: Dims, node: Node) -> Dims:
    """Regroup the flat sequence of atoms by the new sizes. Atoms of size 1 carry nothing and are dropped."""
    flat = [atom for atoms in dims for atom in atoms if not _is_one(atom.size)]
    result: Dims = []
    for size in _shape(node):
        group: list[Atom] = []
        while not same(product(atom.size for atom in group), size):
            if not flat:
                raise NotRepresentable
            group.append(flat.pop(0))
        result.append(group)
    if flat:
        raise NotRepresentable
    return result


def _replay_slice(dims: Dims, node: Node) -> Dims:
    before, after = _shape(node.args[0]), _shape(node)
    if not all(same(old, new) for old, new in zip(before, after, strict=True)):
        raise NotRepresentable
    return dims


def _replay_same(dims: Dims, node: Node) -> Dims:
    return dims


REPLAY: dict[Any, Any] = {
    aten.unsqueeze.default: _replay_unsqueeze,
    aten.expand.default: _replay_expand,
    aten.permute.default: _replay_permute,
    aten.transpose.int: _replay_transpose,
    aten.squeeze.dim: _replay_squeeze,
    aten.squeeze.dims: _replay_squeeze,
    aten.view.default: _replay_view,
    aten.reshape.default: _replay_view,
    aten._unsafe_view.default: _replay_view,
    aten.slice.Tensor: _replay_slice,
    aten.clone.default: _replay_same,
    aten.alias.default: _replay_same,
    aten.detach.default: _replay_same,
    aten.contiguous.default: _replay_same,
}


def chain_of(operand: Node, also: tuple[Any, ...] = ()) -> list[Node]:
    """``operand`` and the nodes it views or copies, nearest first; the last is not a view, nor one of ``also``."""
    nodes = [operand]
    while (nodes[-1].target in REPLAY or nodes[-1].target in also) and isinstance(nodes[-1].args[0], Node):
        nodes.append(nodes[-1].args[0])
    return nodes


def _replay(chain: list[Node], base_at: int) -> Dims:
    base = chain[base_at]
    return replay_chain([[Atom(d, size)] for d, size in enumerate(_shape(base))], chain[:base_at])


def replay_chain(dims: Dims, chain: list[Node]) -> Dims:
    """What a tensor is made of whose view ``chain``, nearest first, begins with a tensor made of ``dims``.

    Raises:
        NotRepresentable: a view splits or mixes dimensions, or drops part of one.
    """
    for node in reversed(chain):
        dims = REPLAY[node.target](dims, node)
    return dims


def single_source(atoms: list[Atom]) -> int | None:
    """The stored dimension that a plain dimension is, or None for one of size 1.

    Raises:
        NotRepresentable: it is anything else.
    """
    kept = [atom for atom in atoms if not _is_one(atom.size)]
    if not kept:
        return None
    if len(kept) > 1 or kept[0].source is None:
        raise NotRepresentable
    return kept[0].source


def head_source(atoms: list[Atom]) -> int | None:
    """The stored KV-head dimension of (kv_heads, repetitions...), or None when one KV head serves all.

    Heads must vary slower than repetitions: query head h reads KV head h // group, nothing else.
    """
    kept = [atom for atom in atoms if not _is_one(atom.size)]
    if kept and kept[0].source is not None:
        head, *rest = kept
    else:
        head, rest = None, kept
    if any(atom.source is not None for atom in rest):
        raise NotRepresentable
    return None if head is None else head.source


def _batch_source(atoms: list[Atom]) -> int | None:
    kept = [atom for atom in atoms if not _is_one(atom.size)]
    if all(atom.source is None for atom in kept):
        return None
    return single_source(atoms)


def stored_order(dims: Dims, base: Node) -> tuple[int, ...]:
    """The permutation of ``base`` that gives (batch, kv_heads, len, dim); absent ones are stored with size 1."""
    shape = _shape(base)
    if len(dims) != 4 or len(shape) != 4:
        raise NotRepresentable
    found = [_batch_source(dims[0]), head_source(dims[1]), single_source(dims[2]), single_source(dims[3])]
    spare = [d for d in range(4) if d not in found]
    if any(not _is_one(shape[d]) for d in spare):
        raise NotRepresentable
    return tuple(source if source is not None else spare.pop(0) for source in found)


def source_of_dims(operand: Node) -> Iterator[tuple[Node, list[list[int | None]]]]:
    """The tensors up the view chain of ``operand``, the farthest first, each with the dimensions of it that make up
    every dimension of ``operand`` (None for a repetition)."""
    chain = chain_of(operand)
    for base_at in range(len(chain) - 1, -1, -1):
        try:
            dims = _replay(chain, base_at)
        except NotRepresentable:
            continue
        yield chain[base_at], [[atom.source for atom in atoms if not _is_one(atom.size)] for atoms in dims]


def stored_kv(operand: Node) -> StoredKV:
    """The farthest tensor up the view chain of K or V that holds it unrepeated, with head_dim contiguous.

    A chain that cannot be seen through gives the operand itself: still right, at the cost of the copies in the chain.
    """
    chain = chain_of(operand)
    for base_at in range(len(chain) - 1, 0, -1):
        base = chain[base_at]
        try:
            order = stored_order(_replay(chain, base_at), base)
        except NotRepresentable:
            continue
        if same(base.meta["val"].stride(order[3]), 1):
            log.debug("%s is %s %s through %d views", operand, base, tuple(_shape(base)), base_at)
            return StoredKV(base, order)
    log.debug("%s %s is read as it is, at the end of %d views", operand, tuple(_shape(operand)), len(chain) - 1)
    return StoredKV(operand, (0, 1, 2, 3))
