"""Recogniser of attention written by hand: product, scores, softmax, product, found around a marked softmax."""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import Graph, Node

from ..errors import Refused
from .axes import Axes, Dims, shape_of
from .compose import composed_mask
from .marked import stored_pair
from .reshape import as_dtype, merge_dims, permute, reshape, size_argument, spread
from .scores import Scores, as_product, read_scores
from .sdpa import require_dtypes, require_head_dims
from .sinks import sink_per_head
from .site import Site, describe_site
from .sizes import is_symbolic, product, same
from .softmax_marker import MARKED_SOFTMAX
from .trace import insert_call
from .views import aten
from .widening import narrowed


@dataclass(frozen=True)
class _Output:
    """The product of probabilities and values.

    Attributes:
        node: (lead, rows, value_dim), or with ``flipped`` (lead, value_dim, rows).
        values: (lead, keys, value_dim), or with ``flipped`` (lead, value_dim, keys).
        lead, rows: the axes that those dimensions are made of.
    """

    node: Node
    values: Node
    lead: list[int]
    rows: list[int]
    flipped: bool


def recognise_softmax_chain(node: Node) -> Site | None:
    """The site around a marked softmax.

    Raises:
        Refused: a step before or after the softmax is not understood, an intermediate is used elsewhere too, or
            ``describe_site`` refuses.
    """
    if node.target is not MARKED_SOFTMAX:
        return None
    source, _, index = node.args
    scores = read_scores(source, node)  # type: ignore[arg-type]
    output = _read_output(node, scores)
    with node.graph.inserting_before(output.node):
        return _Chain(node, scores, output).site(int(index))  # type: ignore[arg-type]


def _read_output(softmax: Node, scores: Scores) -> _Output:
    """Follow the probabilities to the product with the values."""
    node, dims = softmax, scores.axes.own()
    sink = scores.sink is not None
    while (found := _product_with(node)) is None:
        user = _only_user(node)
        if sink and _drops_last(user):
            sink, node = False, user
            continue
        if not user.args or user.args[0] is not node:
            raise Refused(f"the attention probabilities go through {user.target}, which is not understood")
        dims, node = scores.axes.after(dims, user), user
    if sink:
        raise Refused("the sink's probability is not dropped")
    return _output(*found, node, dims, len(scores.axes.sizes) - 1)


def _output(output: Node, left: Node, right: Node, weights: Node, dims: Dims, keys: int) -> _Output:
    if len(dims) != 3 or left is right:
        raise Refused("the attention probabilities are not a batch of matrices where they meet the values")
    lead, rows, columns = dims
    if weights is left and columns == [keys]:
        return _Output(output, right, lead, rows, flipped=False)
    if weights is right and rows == [keys]:
        return _Output(output, left, lead, columns, flipped=True)
    raise Refused("the product of probabilities and values does not sum over the keys")


def _product_with(node: Node) -> tuple[Node, Node, Node] | None:
    """The product that ``node`` is a factor of, and its factors."""
    user = _only_user(node)
    if user.target is aten.unsqueeze.default:  # the product as Inductor writes it when it tunes
        multiplication = _only_user(user)
        user = _only_user(multiplication) if multiplication.target is aten.mul.Tensor else user
    found = as_product(user)
    return None if found is None else (user, *found)


def _only_user(node: Node) -> Node:
    users = list(node.users)
    if len(users) == 1 and users[0].op == "call_function":
        return users[0]
    if any(user.op == "output" for user in users):
        raise Refused("the attention probabilities are returned: call the model with output_attentions=False")
    raise Refused("the attention probabilities are used more than once: call the model with output_attentions=False")


def _drops_last(node: Node) -> bool:
    """Whether a node is ``x[..., :-1]``."""
    if node.target is not aten.slice.Tensor:
        return False
    before, after = shape_of(node.args[0]), shape_of(node)
    arguments = dict(zip(("dim", "start", "end", "step"), node.args[1:], strict=False))
    from_first = arguments.get("start") in (0, None) and arguments.get("step", 1) == 1
    over_last = arguments.get("dim", 0) in (-1, len(before) - 1)
    return bool(from_first and over_last and same(before[-1], after[-1] + 1))


class _Chain:
    """One site's operands, brought to the layouts of AttentionSpec by views."""

    def __init__(self, softmax: Node, scores: Scores, output: _Output) -> None:
        self._softmax, self._scores, self._output = softmax, scores, output
        self._graph: Graph = softmax.graph
        self._axes: Axes = scores.axes
        rank = len(self._axes.sizes)
        if not 3 <= rank <= 5:
            raise Refused(f"the scores have {rank} dimensions; expected (batch, heads, q, keys)")
        self._heads = list(range(1, rank - 2))
        self._queries, self._keys = rank - 2, rank - 1
        self._rows = [0, *self._heads, self._queries]

    def site(self, index: int) -> Site:
        scores = self._scores
        q, keys = self._queries_and_keys()
        values = self._stored(_flip(self._graph, self._output.values, self._output.flipped), self._output.lead)
        q, keys, values = narrowed(self._graph, q, keys, values)
        q_value, k_value, v_value = q.meta["val"], keys.meta["val"], values.meta["val"]
        require_dtypes(q_value, k_value, v_value, None, q_value)
        require_head_dims(q_value, k_value, v_value)
        key, value = stored_pair(keys, values)
        mask = composed_mask(
            self._graph, self._output.node, self._axes, scores.terms, self._heads, q_value.dtype
        )  # fmt: skip
        sink = None if scores.sink is None else sink_per_head(scores.sink, self._heads)
        spec = describe_site(
            q, key, value, mask, False, scores.scale, True, softcap=scores.softcap, has_sink=sink is not None
        )
        return Site(
            self._output.node, index, "softmax", q, key, value, mask, False, spec.scale, True, spec, sink, self._restore
        )

    def _queries_and_keys(self) -> tuple[Node, Node]:
        """(batch, heads, q, dim), and (batch, heads or KV heads, keys, dim)."""
        found = self._scores.product
        lead, rows, columns = found.dims
        if columns == [self._keys]:
            q, keys = found.left, _flip(self._graph, found.right, True)
        elif rows == [self._keys]:
            q, keys, rows = _flip(self._graph, found.right, True), found.left, columns
        else:
            raise Refused("the keys are not one dimension of the product with the queries")
        spread_q = spread(self._graph, self._axes, q, [lead, rows], self._rows)
        return self._merged(spread_q), self._stored(keys, lead)

    def _stored(self, operand: Node, lead: list[int]) -> Node:
        """(lead, keys, dim) as (batch, heads or KV heads, keys, dim)."""
        if self._queries in lead:
            raise Refused("keys or values differ between query positions")
        order = [0, *self._heads, self._keys]
        return self._merged(spread(self._graph, self._axes, operand, [lead, [self._keys]], order))

    def _merged(self, tensor: Node) -> Node:
        if not self._heads:
            return insert_call(self._graph, aten.unsqueeze.default, tensor, 1)
        return merge_dims(self._graph, tensor, 1, len(self._heads))

    def _restore(self, result: Node) -> Node:
        """(batch, heads, q, value_dim) as the product of probabilities and values has it."""
        graph, axes, output = self._graph, self._axes, self._output
        batch, q_len, dim = (size_argument(graph, result, at) for at in (0, 2, 3))
        result = reshape(graph, result, [batch, *(int(axes.sizes[axis]) for axis in self._heads), q_len, dim])
        wanted = [*output.lead, *output.rows]
        trivial = [axis for axis in self._rows if axis not in wanted]
        order = [self._rows.index(axis) for axis in (*trivial, *wanted)]
        result = permute(graph, result, [*order, len(order)])
        read = {0: batch, self._queries: q_len}
        result = reshape(
            graph, result, [_folded_size(axes, output.lead, read), _folded_size(axes, output.rows, read), dim]
        )
        return as_dtype(graph, _flip(graph, result, output.flipped), output.node.meta["val"].dtype)


def _folded_size(axes: Axes, group: list[int], read: dict[int, object]) -> object:
    """Of a dimension made of ``group``, as a size argument."""
    if len(group) == 1 and group[0] in read:
        return read[group[0]]
    size = product(axes.sizes[axis] for axis in group)
    return -1 if is_symbolic(size) else int(size)


def _flip(graph: Graph, tensor: Node, flipped: bool) -> Node:
    return permute(graph, tensor, [0, 2, 1]) if flipped else tensor
