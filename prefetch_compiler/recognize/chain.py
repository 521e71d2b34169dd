"""Recogniser of attention written by hand: product, scores, softmax, product, found around a marked softmax."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from torch.fx import Graph, Node

from ..errors import Refused
from .axes import Dims, Group, after, resolved, shape_of
from .changes import Factor
from .compose import aligned, composed_mask, require_swallowing
from .log_space import log_space_of
from .marked import stored_pair
from .reshape import as_dtype, contiguous, permute, spread
from .scores import Scores, as_product, read_scores
from .sdpa import require_dtypes, require_head_dims
from .sinks import sink_per_head
from .site import LogSumExp, Site, describe_site
from .sizes import same
from .softmax_marker import MARKED_SOFTMAX
from .trace import insert_call
from .views import aten
from .weights_marker import MARKED_WEIGHTS
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
    lead: Group
    rows: Group
    flipped: bool


def recognise_softmax_chain(node: Node) -> Site | None:
    """The site around a marked softmax.

    Raises:
        Refused: a step before or after the softmax is not understood, an intermediate is used elsewhere too, or
            ``describe_site`` refuses.
    """
    if node.target not in (MARKED_SOFTMAX, MARKED_WEIGHTS):
        return None
    space = log_space_of(node)
    scores = read_scores(space.scores, {*space.known, node})
    output = _read_output(node, scores)
    _require_independent(output, space.log_sum_exps)
    with node.graph.inserting_before(output.node):
        return _Chain(node, scores, output, space.log_sum_exps).site()


def _read_output(softmax: Node, scores: Scores) -> _Output:
    """Follow the probabilities to the product with the values."""
    node, dims = softmax, scores.dims
    sink = scores.sink is not None
    while (found := _product_with(node)) is None:
        user = _only_user(node)
        if sink and _drops_last(user):
            sink, node = False, user
            continue
        if not user.args or user.args[0] is not node:
            raise Refused(f"the attention probabilities go through {user.target}, which is not understood")
        dims, node = after(dims, user), user
    if sink:
        raise Refused("the sink's probability is not dropped")
    return _output(*found, node, resolved(dims), resolved(scores.dims)[-1])


def _require_independent(output: _Output, log_sum_exps: Sequence[Node]) -> None:
    """Values that are not made of the log-sum-exp, which the kernel that reads them returns."""
    for lse in log_sum_exps:
        made_of_it, node = {lse}, lse
        while node is not output.node and lse < output.node:
            node = node.next
            if any(source in made_of_it for source in node.all_input_nodes):
                made_of_it.add(node)
        if output.values in made_of_it:
            raise Refused("the values depend on the log-sum-exp of the scores")


def _output(output: Node, left: Node, right: Node, weights: Node, dims: Dims, keys: Group) -> _Output:
    if len(dims) != 3 or left is right:
        raise Refused("the attention probabilities are not a batch of matrices where they meet the values")
    lead, rows, columns = dims
    if weights is left and columns == keys:
        return _Output(output, right, lead, rows, flipped=False)
    if weights is right and rows == keys:
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
        raise Refused(f"the attention probabilities are returned: {_WITHOUT_WEIGHTS}")
    raise Refused(f"the attention probabilities are used more than once: {_WITHOUT_WEIGHTS}")


_WITHOUT_WEIGHTS = "call the model with output_attentions=False (nn.MultiheadAttention: need_weights=False)"


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

    def __init__(self, marker: Node, scores: Scores, output: _Output, log_sum_exps: Sequence[Node]) -> None:
        self._graph, self._marker = marker.graph, marker
        self._scores, self._output, self._log_sum_exps = scores, output, log_sum_exps
        if not 3 <= len(scores.dims) <= 5:
            raise Refused(f"the scores have {len(scores.dims)} dimensions; expected (batch, heads, q, keys)")
        batch, *heads, self._queries, self._keys = resolved(scores.dims)
        if not self._keys:
            raise Refused("there is one key")
        self._order = [batch, [axis for group in heads for axis in group], self._queries]

    def site(self) -> Site:
        scores = self._scores
        q, keys = self._queries_and_keys()
        values = self._stored(_flip(self._graph, self._output.values, self._output.flipped), self._output.lead)
        q, keys, values = narrowed(self._graph, q, keys, values)
        for factor in scores.factors:
            q = self._multiplied(q, factor)
        q_value, k_value, v_value = q.meta["val"], keys.meta["val"], values.meta["val"]
        require_dtypes(q_value, k_value, v_value, None, q_value)
        require_head_dims(q_value, k_value, v_value)
        key, value = stored_pair(keys, values)
        order = [*self._order, self._keys]
        with self._graph.inserting_before(self._marker):
            mask = composed_mask(self._graph, self._marker, scores.terms, order, q_value.dtype)
        used = tuple(LogSumExp(anchor, functools.partial(self._restore_lse, anchor)) for anchor in self._log_sum_exps)
        if used:
            require_swallowing(scores.terms, mask)
        sink = None if scores.sink is None else sink_per_head(scores.sink)
        spec = describe_site(
            q, key, value, mask, False, scores.scale, True,
            softcap=scores.softcap, has_sink=sink is not None, has_lse=bool(used),
        )  # fmt: skip
        return Site(
            self._output.node, int(self._marker.args[-1]), "softmax",  # type: ignore[arg-type]
            q, key, value, mask, False, spec.scale, True, spec, sink,
            restore=self._restore, log_sum_exps=used, marker=self._marker,
        )  # fmt: skip

    def _queries_and_keys(self) -> tuple[Node, Node]:
        """(batch, heads, q, dim), and (batch, heads or KV heads, keys, dim)."""
        found = self._scores.product
        lead, rows, columns = resolved(found.dims)
        if columns == self._keys:
            q, keys = found.left, _flip(self._graph, found.right, True)
        elif rows == self._keys:
            q, keys, rows = _flip(self._graph, found.right, True), found.left, columns
        else:
            raise Refused("the keys are not one dimension of the product with the queries")
        return spread(self._graph, q, [lead, rows], self._order), self._stored(keys, lead)

    def _multiplied(self, q: Node, factor: Factor) -> Node:
        """What multiplies all scores of a query may as well multiply the query."""
        tensor = factor.tensor
        if tensor.meta["val"].ndim:
            tensor = aligned(self._graph, tensor, factor.dims, [*self._order, self._keys])
        target = aten.div.Tensor if factor.divides else aten.mul.Tensor
        return as_dtype(self._graph, insert_call(self._graph, target, q, tensor), q.meta["val"].dtype)

    def _stored(self, operand: Node, lead: Group) -> Node:
        """(lead, keys, dim) as (batch, heads or KV heads, keys, dim)."""
        batch, heads, _ = self._order
        return spread(self._graph, operand, [lead, self._keys], [batch, heads, self._keys])

    def _restore(self, result: Node) -> Node:
        """(batch, heads, q, value_dim) as the product of probabilities and values has it."""
        output = self._output
        spread_out = spread(self._graph, result, self._order, [output.lead, output.rows])
        # Views of the product rely on its strides.
        whole = contiguous(self._graph, _flip(self._graph, spread_out, output.flipped))
        return as_dtype(self._graph, whole, output.node.meta["val"].dtype)

    def _restore_lse(self, anchor: Node, lse: Node) -> Node:
        """(batch, query_heads, q_len) as the scores' dimensions have it, with or without that of the keys."""
        node = spread(self._graph, lse, self._order, resolved(self._scores.dims)[:-1])
        if node.meta["val"].ndim < anchor.meta["val"].ndim:
            node = insert_call(self._graph, aten.unsqueeze.default, node, -1)
        return as_dtype(self._graph, node, anchor.meta["val"].dtype)


def _flip(graph: Graph, tensor: Node, flipped: bool) -> Node:
    return permute(graph, tensor, [0, 2, 1]) if flipped else tensor
