"""K and V that the graph dequantises: which stored numbers, times which scales?

``(numbers.float() * scale).to(dtype)``, with views and conversions anywhere and the scale on either side, is followed
up to the numbers, as views are to what they repeat. Scales that a kernel knows (per tensor, head or token of a head)
stay with it. One per channel is none of its business: of K it multiplies the query, of V the output.

Numbers of the supported formats are exact in every dtype that they are converted to, so nothing is lost by not
converting them; what the graph rounds after multiplying, the kernel does not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch.fx import Graph, Node

from ..spec import QUANTISED_FORMATS, SUPPORTED_DTYPES, QuantisedCache, ScaleGranularity
from .axes import CONVERSIONS, shape_of
from .marked import heads_alike, without_expand
from .reshape import as_dtype, permute, reshape, size_argument
from .site import Site, describe_site
from .sizes import same
from .trace import insert_call, insert_constant
from .views import REPLAY, Atom, Dims, NotRepresentable, StoredKV, aten, single_source, stored_order

_BATCH, _HEAD, _LENGTH, _CHANNEL = range(4)
_PRODUCTS = (aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar)
_QUOTIENTS = (aten.div.Tensor, aten.div.Scalar)


@dataclass(frozen=True)
class _Factor:
    """``tensor``, or a number, by which stored numbers are multiplied or divided. ``dims`` are those of (batch,
    kv_heads, len, dim) that its own dimensions are; None for one of size 1."""

    tensor: Node | float
    dims: tuple[int | None, ...]
    divides: bool

    @property
    def varies_by(self) -> set[int]:
        return {dim for dim in self.dims if dim is not None}


@dataclass(frozen=True)
class Scale:
    """A product of factors."""

    factors: tuple[_Factor, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.factors)

    @property
    def varies_by(self) -> set[int]:
        return {dim for factor in self.factors for dim in factor.varies_by}

    @property
    def granularity(self) -> ScaleGranularity:
        if not self.factors:
            return ScaleGranularity.NONE
        if _LENGTH in self.varies_by:
            return ScaleGranularity.TOKEN
        return ScaleGranularity.HEAD if self.varies_by else ScaleGranularity.TENSOR

    @property
    def dtype(self) -> torch.dtype:
        """Of the product: that of the only factor where nothing has to be computed."""
        dtypes = [f.tensor.meta["val"].dtype for f in self.factors if isinstance(f.tensor, Node) and not f.divides]
        return dtypes[0] if len(dtypes) == len(self.factors) == 1 and dtypes[0] in SUPPORTED_DTYPES else torch.float32

    def emit(self, graph: Graph, like: Node, dtype: torch.dtype) -> Node:
        """(1|batch, 1|kv_heads, 1|len, 1|dim) in ``dtype``, on the device of ``like``; a view where it can be one."""
        product: Node | None = None
        for factor in self.factors:
            tensor = _four_dimensional(graph, factor, like)
            if len(self.factors) > 1 or factor.divides:
                tensor = as_dtype(graph, tensor, torch.float32)
            if factor.divides:
                tensor = insert_call(graph, aten.reciprocal.default, tensor)
            product = tensor if product is None else insert_call(graph, aten.mul.Tensor, product, tensor)
        assert product is not None
        return as_dtype(graph, product, dtype)


@dataclass(frozen=True)
class _Dequantised:
    """``stored`` times ``scale`` times ``channels``, which varies by channel and not by token."""

    stored: StoredKV
    scale: Scale
    channels: Scale

    @property
    def format(self) -> torch.dtype:
        dtype: torch.dtype = self.stored.base.meta["val"].dtype
        return dtype


@dataclass(frozen=True)
class _Step:
    """``node`` is a view or a conversion of ``source``, or its product with or quotient by ``factor``."""

    node: Node
    source: Node
    factor: Node | float | None = None


def read_as_stored(site: Site) -> Site | None:
    """``site`` over the numbers that its K and V are dequantised from; None where they are not, or in a way that is not
    understood. Whether a kernel serves that is for selection to say. What it needs is put into the graph.

    Raises:
        Refused: ``describe_site`` refuses the numbers' layout.
    """
    key, value = _dequantised(site.key), _dequantised(site.value)
    if key is None or value is None or key.format != value.format or not heads_alike(key.stored, value.stored):
        return None
    dtypes = {scale.dtype for scale in (key.scale, value.scale) if scale}
    scale_dtype = None if not dtypes else dtypes.pop() if len(dtypes) == 1 else torch.float32
    cache = QuantisedCache(key.format, key.scale.granularity, value.scale.granularity, scale_dtype)
    graph = site.anchor.graph
    with graph.inserting_before(site.anchor):
        # What multiplies a channel of all keys may as well multiply that of the query.
        q = _by_channel(graph, site.q, key.channels, heads_first=True)
        key_scale, value_scale = (_of_tokens(graph, scale, q, scale_dtype) for scale in (key.scale, value.scale))
    spec = describe_site(
        q, key.stored, value.stored, site.mask, site.is_causal, site.scale, site.heads_first,
        softcap=site.spec.softcap, has_sink=site.sink is not None, has_lse=site.spec.lse, cache=cache,
    )  # fmt: skip

    def restore(result: Node) -> Node:
        return site.restore(_by_channel(graph, result, value.channels, site.heads_first))

    return replace(
        site, q=q, key=key.stored, value=value.stored, key_scale=key_scale, value_scale=value_scale, spec=spec,
        restore=restore,
    )  # fmt: skip


def _dequantised(operand: StoredKV) -> _Dequantised | None:
    steps = _steps(operand.base)
    if steps is None:
        return None
    bases = [operand.base, *(step.source for step in steps)]
    for taken in range(len(steps), -1, -1):
        if bases[taken].meta["val"].dtype not in QUANTISED_FORMATS:
            return None
        try:
            return _replayed(operand, steps[:taken], bases[taken])
        except NotRepresentable:
            continue
    return None


def _replayed(operand: StoredKV, steps: list[_Step], base: Node) -> _Dequantised:
    """What ``operand`` is of ``base``, from which ``steps`` lead to it, the last one first.

    Raises:
        NotRepresentable: a view, or a scale, is not of dimensions of ``base``; or its rows are not contiguous.
    """
    dims: Dims = [[Atom(d, size)] for d, size in enumerate(shape_of(base))]
    scales: list[tuple[Node | float, list[int | None], bool]] = []
    for step in reversed(steps):
        if step.factor is not None:
            scales.append((step.factor, _sources(dims, step), step.node.target in _QUOTIENTS))
        elif step.node.target not in CONVERSIONS:
            dims = REPLAY[step.node.target](dims, step.node)
    order = stored_order([dims[d] for d in operand.order], base)
    if not same(base.meta["val"].stride(order[_CHANNEL]), 1):
        raise NotRepresentable
    factors = [
        _Factor(tensor, tuple(None if d is None else order.index(d) for d in sources), divides)
        for tensor, sources, divides in scales
    ]
    by_channel = [factor for factor in factors if _CHANNEL in factor.varies_by]
    if any(_LENGTH in factor.varies_by for factor in by_channel):
        raise NotRepresentable  # groups of channels, or a scale for each number
    by_token = [factor for factor in factors if _CHANNEL not in factor.varies_by]
    return _Dequantised(StoredKV(base, order), Scale(tuple(by_token)), Scale(tuple(by_channel)))


def _sources(dims: Dims, step: _Step) -> list[int | None]:
    """The dimensions of the stored tensor that those of a factor are, where the product is made of ``dims``."""
    if not isinstance(step.factor, Node):
        return []
    shape, whole = shape_of(step.factor), shape_of(step.source)
    if len(whole) != len(shape_of(step.node)) or not all(
        same(a, b) for a, b in zip(whole, shape_of(step.node), strict=True)
    ):
        raise NotRepresentable  # the factor is larger than what it multiplies
    return [
        None if same(size, 1) else single_source(atoms)
        for size, atoms in zip(shape, dims[len(dims) - len(shape) :], strict=True)
    ]


def _steps(operand: Node) -> list[_Step] | None:
    """From ``operand`` up to numbers of a quantised format, and on through their views; None where they are not what it
    is made of."""
    steps: list[_Step] = []
    node = operand
    while True:
        quantised = node.meta["val"].dtype in QUANTISED_FORMATS
        if node.target in REPLAY and isinstance(node.args[0], Node):
            steps.append(_Step(node, node.args[0]))
        elif quantised:
            return steps
        elif _widens(node):
            steps.append(_Step(node, node.args[0]))  # type: ignore[arg-type]
        elif node.target in _PRODUCTS and node.meta["val"].dtype.is_floating_point:
            return _with_product(steps, node)
        else:
            return None
        node = steps[-1].source


def _with_product(steps: list[_Step], node: Node) -> list[_Step] | None:
    left, right = node.args[:2]
    sides = [(left, right)] if node.target in _QUOTIENTS else [(left, right), (right, left)]
    if len(node.args) > 2 or node.kwargs:
        return None  # div with a rounding mode
    for source, factor in sides:
        if isinstance(source, Node) and _may_scale(factor) and (above := _steps(source)) is not None:
            narrow = without_expand(factor) if isinstance(factor, Node) else factor
            return [*steps, _Step(node, source, narrow), *above]  # type: ignore[arg-type]
    return None


def _may_scale(factor: object) -> bool:
    """Whether something is a floating-point scale: products of integers may overflow."""
    if isinstance(factor, Node):
        value = factor.meta.get("val")
        return isinstance(value, torch.Tensor) and value.dtype in (*SUPPORTED_DTYPES, torch.float64)
    return isinstance(factor, int | float) and not isinstance(factor, bool)


def _widens(node: Node) -> bool:
    """Whether a node is a conversion that keeps every number: of stored numbers to anything wider, or between floats,
    which the kernel need not round."""
    if node.target not in CONVERSIONS:
        return False
    source, target = node.args[0].meta["val"].dtype, node.meta["val"].dtype  # type: ignore[union-attr]
    if source is torch.int8 and target in (torch.int16, torch.int32, torch.int64):
        return True
    return target in (*SUPPORTED_DTYPES, torch.float64)


def _of_tokens(graph: Graph, scale: Scale, like: Node, dtype: torch.dtype | None) -> Node | None:
    """As kernels take it, (1|batch, 1|kv_heads, 1|len)."""
    if not scale or dtype is None:
        return None
    return insert_call(graph, aten.squeeze.dim, scale.emit(graph, like, dtype), _CHANNEL)


def _by_channel(graph: Graph, rows: Node, channels: Scale, heads_first: bool) -> Node:
    """(batch, query_heads, q, dim) times scales of channels, in the same memory order."""
    if not channels:
        return rows
    dtype, heads = rows.meta["val"].dtype, int(shape_of(rows)[_HEAD])
    scale = channels.emit(graph, rows, torch.float32)
    if _HEAD in channels.varies_by:
        scale = _per_query_head(graph, scale, heads // int(shape_of(scale)[_HEAD]))
    order = [0, 1, 2, 3] if heads_first else [0, 2, 1, 3]
    product = insert_call(graph, aten.mul.Tensor, permute(graph, rows, order), permute(graph, scale, order))
    return permute(graph, as_dtype(graph, product, dtype), order)


def _per_query_head(graph: Graph, scale: Node, group: int) -> Node:
    """(1|batch, kv_heads, 1, dim) repeated to (1|batch, query_heads, 1, dim)."""
    batch = size_argument(graph, scale, _BATCH)
    heads, dim = int(shape_of(scale)[_HEAD]), int(shape_of(scale)[_CHANNEL])
    wide = insert_call(graph, aten.expand.default, scale, [-1, -1, group, -1])
    return reshape(graph, wide, [batch, heads * group, 1, dim])


def _four_dimensional(graph: Graph, factor: _Factor, like: Node) -> Node:
    """A factor as (1|batch, 1|kv_heads, 1|len, 1|dim)."""
    tensor = factor.tensor
    if not isinstance(tensor, Node):
        return insert_constant(graph, float(tensor), [1, 1, 1, 1], like)
    ones = [dim for dim, source in enumerate(factor.dims) if source is None]
    if ones:
        tensor = insert_call(graph, aten.squeeze.dims, tensor, ones)
    kept = [source for source in factor.dims if source is not None]
    tensor = permute(graph, tensor, [kept.index(source) for source in sorted(kept)])
    for dim in range(4):
        if dim not in kept:
            tensor = insert_call(graph, aten.unsqueeze.default, tensor, dim)
    return tensor
