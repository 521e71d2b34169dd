"""The view algebra, against real tensors: whatever it finds up a chain of views must rebuild the operand."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from prefetch_compiler.recognize.views import StoredKV, aten, stored_kv

View = Callable[[Tensor], Tensor]


class Traced:
    """An ATen graph of ``view``, and the value that each of its nodes has on ``stored``."""

    def __init__(self, view: View, stored: Tensor) -> None:
        graph_module: GraphModule = make_fx(view)(stored)
        self.values: dict[Node, Tensor] = {}
        for node in graph_module.graph.nodes:
            if node.op == "placeholder":
                self.values[node] = stored
            elif node.op == "call_function":
                arguments = torch.fx.node.map_arg(node.args, self.values.__getitem__)
                self.values[node] = node.target(*arguments, **node.kwargs)
            else:
                (self.operand,) = node.all_input_nodes
        for node, value in self.values.items():
            node.meta["val"] = value

    @property
    def found(self) -> StoredKV:
        return stored_kv(self.operand)

    def rebuilt(self) -> Tensor:
        """The operand, from what was found: the base permuted, its KV heads repeated as GQA repeats them."""
        operand, found = self.values[self.operand], self.found
        unrepeated = self.values[found.base].permute(found.order)
        group = operand.shape[1] // unrepeated.shape[1]
        return unrepeated.repeat_interleave(group, dim=1).expand(operand.shape)


def _stored(*shape: int) -> Tensor:
    """Every element another value."""
    return torch.arange(math.prod(shape), dtype=torch.float32).reshape(shape)


def _check(view: View, stored: Tensor, base: str, order: tuple[int, ...]) -> None:
    traced = Traced(view, stored)
    assert torch.equal(traced.rebuilt(), traced.values[traced.operand])
    assert traced.found.base.name.startswith(base), traced.found.base.name
    assert traced.found.order == order


def test_repeat_kv_is_seen_through() -> None:
    _check(lambda x: x[:, :, None].expand(2, 3, 4, 5, 8).reshape(2, 12, 5, 8), _stored(2, 3, 5, 8), "x", (0, 1, 2, 3))


def test_repeat_interleave_is_seen_through() -> None:
    _check(lambda x: x.repeat_interleave(3, dim=1), _stored(2, 3, 5, 8), "x", (0, 1, 2, 3))


def test_a_transposed_cache_is_seen_through() -> None:
    _check(lambda x: x.transpose(1, 2), _stored(2, 5, 3, 8), "x", (0, 2, 1, 3))


def test_copies_are_seen_through() -> None:
    _check(lambda x: x.transpose(1, 2).contiguous().clone(), _stored(2, 5, 3, 8), "x", (0, 2, 1, 3))


def test_repetition_in_two_steps_is_seen_through() -> None:
    def twice(x: Tensor) -> Tensor:
        return x.repeat_interleave(2, dim=1).repeat_interleave(3, dim=1)

    _check(twice, _stored(2, 3, 5, 8), "x", (0, 1, 2, 3))


def test_one_head_of_a_batch_of_one() -> None:
    _check(lambda x: x.expand(1, 6, 5, 8), _stored(1, 1, 5, 8), "x", (0, 1, 2, 3))


def test_a_batch_that_shares_a_cache() -> None:
    _check(lambda x: x.expand(4, 3, 5, 8), _stored(1, 3, 5, 8), "x", (0, 1, 2, 3))


def test_a_batch_that_repeats_sequences_is_not_stripped() -> None:
    """Beam search: sequence b of the operand is stored sequence b // 2, which no batch stride can say."""
    _check(lambda x: x.repeat_interleave(2, dim=0), _stored(2, 3, 5, 8), "view", (0, 1, 2, 3))


def test_tiled_heads_are_not_stripped() -> None:
    def tiled(x: Tensor) -> Tensor:
        return x[:, None].expand(2, 4, 3, 5, 8).reshape(2, 12, 5, 8)

    traced = Traced(tiled, _stored(2, 3, 5, 8))
    assert traced.values[traced.found.base].shape[1] == 12
    assert torch.equal(traced.rebuilt(), traced.values[traced.operand])


def test_tiled_repetitions_under_grouped_ones_are_not_stripped() -> None:
    """Of head order (tile, head, group) only ``group`` may be taken for GQA's."""

    def tiled_then_grouped(x: Tensor) -> Tensor:
        return x[:, None, :, None].expand(2, 2, 3, 4, 5, 8).reshape(2, 24, 5, 8)

    traced = Traced(tiled_then_grouped, _stored(2, 3, 5, 8))
    assert torch.equal(traced.rebuilt(), traced.values[traced.operand])


def test_a_slice_is_not_seen_through() -> None:
    _check(lambda x: x[:, :, :4].repeat_interleave(2, dim=1), _stored(2, 3, 5, 8), "slice", (0, 1, 2, 3))


def test_a_base_whose_rows_are_not_contiguous_is_not_taken() -> None:
    """K stored (batch, heads, dim, length) and copied into rows: the copy is read, not the cache."""
    traced = Traced(lambda x: x.transpose(2, 3).contiguous(), _stored(2, 3, 8, 5))
    assert traced.values[traced.found.base].stride(traced.found.order[3]) == 1
    assert traced.found.base.target is aten.clone.default


def test_length_mixed_with_heads_is_not_seen_through() -> None:
    traced = Traced(lambda x: x.reshape(2, 5, 3, 8), _stored(2, 3, 5, 8))
    assert torch.equal(traced.rebuilt(), traced.values[traced.operand])
    assert traced.found.base is traced.operand


@st.composite
def _permutations(draw: st.DrawFn, rank: int) -> list[int]:
    return draw(st.permutations(range(rank)))


def _step(draw: st.DrawFn, x: Tensor) -> tuple[str, Sequence[Any]]:
    """One view that ``x`` allows: its name and arguments."""
    name = draw(
        st.sampled_from(["unsqueeze", "permute", "transpose", "expand", "merge", "split", "squeeze", "clone", "slice"])
    )
    dim = draw(st.integers(0, x.ndim - 1))
    if name == "unsqueeze":
        return name, [draw(st.integers(-x.ndim - 1, x.ndim))]
    if name == "permute":
        return name, [draw(_permutations(x.ndim))]
    if name == "transpose":
        return name, [dim, draw(st.integers(-x.ndim, x.ndim - 1))]
    if name == "expand":
        ones = [d for d in range(x.ndim) if x.shape[d] == 1]
        return name, [[draw(st.sampled_from([1, 2, 3])) if d in ones else -1 for d in range(x.ndim)]]
    if name == "merge":
        dim = draw(st.integers(0, x.ndim - 2)) if x.ndim > 1 else 0
        return "reshape", [[*x.shape[:dim], math.prod(x.shape[dim : dim + 2]), *x.shape[dim + 2 :]]]
    if name == "split":
        size = x.shape[dim]
        part = draw(st.sampled_from([part for part in range(1, size + 1) if size % part == 0]))
        return "reshape", [[*x.shape[:dim], part, size // part, *x.shape[dim + 1 :]]]
    if name == "squeeze":
        return name, [dim]
    if name == "slice":
        return "narrow", [dim, 0, draw(st.integers(1, x.shape[dim]))]
    return name, []


@st.composite
def _chains(draw: st.DrawFn) -> tuple[Tensor, View]:
    """A stored tensor, and a random chain of views and copies that ends in four dimensions."""
    stored = _stored(*draw(st.lists(st.integers(1, 3), min_size=4, max_size=4)))
    steps: list[tuple[str, Sequence[Any]]] = []
    x = stored
    for _ in range(draw(st.integers(1, 7))):
        name, arguments = _step(draw, x)
        steps.append((name, arguments))
        x = getattr(x, name)(*arguments)
        assume(1 <= x.ndim <= 6 and x.numel() <= 2000)
    assume(x.ndim == 4)

    def view(x: Tensor) -> Tensor:
        for name, arguments in steps:
            x = getattr(x, name)(*arguments)
        return x

    return stored, view


@settings(max_examples=250, deadline=None)
@given(_chains())
def test_whatever_is_found_rebuilds_the_operand(chain: tuple[Tensor, View]) -> None:
    stored, view = chain
    traced = Traced(view, stored)
    assert torch.equal(traced.rebuilt(), traced.values[traced.operand])


@st.composite
def _repetitions(draw: st.DrawFn) -> tuple[Tensor, View]:
    """Repeat-KV from a random storage order, its steps spelt at random, with copies in between."""
    batch, heads, length, dim, group = (draw(st.integers(1, 4)) for _ in range(5))
    order = [*draw(st.permutations([0, 1, 2])), 3]
    shape = [(batch, heads, length, dim)[d] for d in order]
    back = [order.index(d) for d in range(4)]
    copies = draw(st.lists(st.booleans(), min_size=3, max_size=3))

    def copied(x: Tensor, at: int) -> Tensor:
        return x.clone(memory_format=torch.contiguous_format) if copies[at] else x

    def view(x: Tensor) -> Tensor:
        x = copied(copied(x, 0).permute(back), 1)
        x = copied(x.unsqueeze(2).expand(batch, heads, group, length, dim), 2)
        return x.reshape(batch, heads * group, length, dim)

    return _stored(*shape), view


@settings(max_examples=100, deadline=None)
@given(_repetitions())
def test_any_repeat_kv_is_seen_through_to_what_is_stored(chain: tuple[Tensor, View]) -> None:
    stored, view = chain
    traced = Traced(view, stored)
    assert torch.equal(traced.rebuilt(), traced.values[traced.operand])
    assert traced.found.base.op == "placeholder"
