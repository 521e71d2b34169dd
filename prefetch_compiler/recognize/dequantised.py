"""K and V that the graph dequantises: which stored numbers, times which scales, less or plus which zeros?

``((numbers.float() - zero) * scale).to(dtype)`` and ``numbers * scale + minimum``, with views and conversions anywhere
and operands on either side, are followed up to the numbers, as views are to what they repeat. Scales and zeros that a
kernel knows (per tensor, head or token of a head, or for groups of adjacent channels or tokens, which views split off)
stay with it. Scales per channel that come last are none of its business: of K they multiply the query, of V the output.

Numbers of the supported formats are exact in every dtype that they are converted to, so nothing is lost by not
converting them; what the graph rounds after multiplying, the kernel does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch.fx import Graph, Node

from ..spec import (
    QUANTISED_FORMATS,
    SUPPORTED_DTYPES,
    ZERO_DTYPES,
    QuantisedCache,
    ScaleGranularity,
    Storage,
)
from .axes import CONVERSIONS, shape_of
from .marked import heads_alike, without_expand
from .nibbles import keeps_numbers, moves_numbers, unpacked_by
from .reshape import as_dtype, permute, reshape, size_argument
from .rows_of_groups import with_groups_apart
from .site import Site, describe_site
from .sizes import Size, is_symbolic, product, same
from .trace import insert_call, insert_constant
from .views import REPLAY, Atom, Dims, NotRepresentable, StoredKV, aten, stored_order

_BATCH, _HEAD, _LENGTH, _CHANNEL = range(4)
_PRODUCTS = (aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar)
_QUOTIENTS = (aten.div.Tensor, aten.div.Scalar)
_SUMS = (aten.add.Tensor, aten.add.Scalar, aten.sub.Tensor, aten.sub.Scalar, aten.rsub.Scalar)
_DIFFERENCES = (aten.sub.Tensor, aten.sub.Scalar)
_VIEWS = (aten.view.default, aten.reshape.default, aten._unsafe_view.default)
# Numbers of a group, whose scale and zero are read besides them.
SMALLEST_GROUP = 8
# In which a number and a zero point do not overflow: an int32 one would have to be within 255 of the end of its range.
_WIDE_INTEGERS = (torch.int32, torch.int64)
_INTEGERS = (torch.int8, torch.uint8, torch.int16, *_WIDE_INTEGERS)


@dataclass(frozen=True)
class _Operand:
    """``tensor``, or a number, that stored numbers are multiplied by, or that is added to them. ``dims`` are the parts
    of (batch, kv_heads, len, dim) that its own dimensions are; None for one of size 1. ``inverse``: it divides, or is
    subtracted."""

    tensor: Node | float
    dims: tuple[Atom | None, ...]
    inverse: bool

    @property
    def parts(self) -> list[Atom]:
        return [part for part in self.dims if part is not None]

    @property
    def varies_by(self) -> set[int]:
        return {part.source for part in self.parts if part.source is not None}

    @property
    def varies_by_group(self) -> bool:
        """By less than tokens, or by more than one token alone."""
        return _CHANNEL in self.varies_by or any(part.source == _LENGTH and part.step > 1 for part in self.parts)

    @property
    def dtype(self) -> torch.dtype | None:
        """None of a number."""
        dtype: torch.dtype | None = self.tensor.meta["val"].dtype if isinstance(self.tensor, Node) else None
        return dtype


def _granularity(operands: Sequence[_Operand]) -> ScaleGranularity:
    if not operands:
        return ScaleGranularity.NONE
    varies_by = {dim for operand in operands for dim in operand.varies_by}
    if any(operand.varies_by_group for operand in operands):
        return ScaleGranularity.GROUP
    if _LENGTH in varies_by:
        return ScaleGranularity.TOKEN
    return ScaleGranularity.HEAD if varies_by else ScaleGranularity.TENSOR


@dataclass(frozen=True)
class Scale:
    """A product of factors."""

    factors: tuple[_Operand, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.factors)

    @property
    def varies_by(self) -> set[int]:
        return {dim for factor in self.factors for dim in factor.varies_by}

    @property
    def granularity(self) -> ScaleGranularity:
        return _granularity(self.factors)

    @property
    def dtype(self) -> torch.dtype:
        """Of the product: that of the only factor where nothing has to be computed."""
        dtypes = [factor.dtype for factor in self.factors if not factor.inverse]
        alone = dtypes[0] if len(dtypes) == len(self.factors) == 1 else None
        return alone if alone in SUPPORTED_DTYPES else torch.float32

    def emit(self, graph: Graph, like: Node, dtype: torch.dtype) -> Node:
        """(1|batch, 1|kv_heads, 1|len, 1|dim) in ``dtype``, on the device of ``like``; a view where it can be one."""
        product: Node | None = None
        for factor in self.factors:
            tensor = _four_dimensional(graph, factor, like)
            if len(self.factors) > 1 or factor.inverse:
                tensor = as_dtype(graph, tensor, torch.float32)
            if factor.inverse:
                tensor = insert_call(graph, aten.reciprocal.default, tensor)
            product = tensor if product is None else insert_call(graph, aten.mul.Tensor, product, tensor)
        assert product is not None
        return as_dtype(graph, product, dtype)


@dataclass(frozen=True)
class Zero:
    """A sum of operands, each times the factors that come after it: a minimum. Or less that sum: a zero point, after
    which come all factors, which are not its own then."""

    addends: tuple[tuple[_Operand, Scale], ...] = ()
    minimum: bool = False

    def __bool__(self) -> bool:
        return bool(self.addends)

    @property
    def granularity(self) -> ScaleGranularity:
        return _granularity([one for addend, scale in self.addends for one in (addend, *scale.factors)])

    @property
    def dtype(self) -> torch.dtype:
        """That of the only operand where nothing has to be computed."""
        (addend, scale), *more = self.addends
        as_it_is = not more and not scale and addend.inverse is not self.minimum
        return addend.dtype if as_it_is and addend.dtype in ZERO_DTYPES else torch.float32

    def emit(self, graph: Graph, like: Node, dtype: torch.dtype) -> Node:
        """(1|batch, 1|kv_heads, 1|len, 1) in ``dtype``, on the device of ``like``; a view where it can be one."""
        total: Node | None = None
        for addend, scale in self.addends:
            tensor = _four_dimensional(graph, addend, like)
            negative = addend.inverse is self.minimum
            if len(self.addends) > 1 or scale or negative:
                tensor = as_dtype(graph, tensor, torch.float32)
            if scale:
                tensor = insert_call(graph, aten.mul.Tensor, tensor, scale.emit(graph, like, torch.float32))
            if negative:
                tensor = insert_call(graph, aten.neg.default, tensor)
            total = tensor if total is None else insert_call(graph, aten.add.Tensor, total, tensor)
        assert total is not None
        return as_dtype(graph, total, dtype)


@dataclass(frozen=True)
class _Change:
    """A product with ``operand``, or (``adds``) a sum."""

    operand: _Operand
    adds: bool = False


@dataclass(frozen=True)
class _Dequantised:
    """``stored`` by ``scale`` and ``zero``, times ``channels``, which varies by channel and not by token. ``group`` is
    as in QuantisedCache."""

    stored: StoredKV
    packing: str
    scale: Scale
    zero: Zero
    channels: Scale
    group: tuple[int, int] | None

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.stored.base.meta["val"].dtype
        return dtype


@dataclass(frozen=True)
class _Numbers:
    """Stored numbers that lead to K or V: ``base`` has them, two a byte where there is a ``packing``; ``dims`` are what
    the tensor is made of that has one an element, dimensions of a tensor of ``shape``."""

    base: Node
    packing: str
    shape: Sequence[Size]
    dims: Dims


@dataclass(frozen=True)
class _Step:
    """``node`` is a view or a conversion of ``source``, or its product, quotient, sum or difference with ``operand``,
    which is ``first`` where it stands before ``source``."""

    node: Node
    source: Node
    operand: Node | float | None = None
    first: bool = False


def read_as_stored(site: Site) -> Site | None:
    """``site`` over the numbers that its K and V are dequantised from; None where they are not, or in a way that is not
    understood. Whether a kernel serves that is for selection to say. What it needs is put into the graph.

    Raises:
        Refused: ``describe_site`` refuses the numbers' layout.
    """
    key, value = _dequantised(site.key), _dequantised(site.value)
    if key is None or value is None or not heads_alike(key.stored, value.stored):
        return None
    if (key.dtype, key.packing) != (value.dtype, value.packing):
        return None
    cache = QuantisedCache(
        key.dtype, key.scale.granularity, value.scale.granularity, _common_dtype(key.scale, value.scale),
        key.zero.granularity, value.zero.granularity, _common_dtype(key.zero, value.zero),
        Storage(key.zero.minimum, value.zero.minimum, key.packing), key.group, value.group,
    )  # fmt: skip
    graph = site.anchor.graph
    with graph.inserting_before(site.anchor):
        # What multiplies a channel of all keys may as well multiply that of the query.
        q = _by_channel(graph, site.q, key.channels, heads_first=True)
        key_scale, value_scale = (_of_tokens(graph, one, q, cache.scale_dtype) for one in (key.scale, value.scale))
        key_zero, value_zero = (_of_tokens(graph, one, q, cache.zero_dtype) for one in (key.zero, value.zero))
    spec = describe_site(
        q, key.stored, value.stored, site.mask, site.is_causal, site.scale, site.heads_first,
        softcap=site.spec.softcap, has_sink=site.sink is not None, has_lse=site.spec.lse, cache=cache,
    )  # fmt: skip

    def restore(result: Node) -> Node:
        return site.restore(_by_channel(graph, result, value.channels, site.heads_first))

    return replace(
        site, q=q, key=key.stored, value=value.stored, key_scale=key_scale, value_scale=value_scale, key_zero=key_zero,
        value_zero=value_zero, spec=spec, restore=restore,
    )  # fmt: skip


def _common_dtype(*given: Scale | Zero) -> torch.dtype | None:
    dtypes = {one.dtype for one in given if one}
    return None if not dtypes else dtypes.pop() if len(dtypes) == 1 else torch.float32


def _dequantised(operand: StoredKV) -> _Dequantised | None:
    operand = replace(operand, base=with_groups_apart(operand.base))
    steps = _steps(operand.base, set())
    if steps is None:
        return None
    bases = [operand.base, *(step.source for step in steps)]
    for taken in range(len(steps), -1, -1):
        for numbers in _numbers_of(bases[taken]):
            try:
                return _replayed(operand, steps[:taken], numbers)
            except NotRepresentable:
                continue
    return None


def _numbers_of(node: Node) -> Iterator[_Numbers]:
    unpacked = unpacked_by(node)
    if unpacked is not None:
        *shape, row = shape_of(unpacked.stored)
        yield _Numbers(unpacked.stored, unpacked.packing, [*shape, 2 * row], unpacked.dims)
    if node.meta["val"].dtype in QUANTISED_FORMATS:
        shape = list(shape_of(node))
        yield _Numbers(node, "", shape, [[Atom(d, size)] for d, size in enumerate(shape)])


def _replayed(operand: StoredKV, steps: list[_Step], numbers: _Numbers) -> _Dequantised:
    """What ``operand`` is of ``numbers``, from which ``steps`` lead to it, the last one first.

    Raises:
        NotRepresentable: a view, a scale or a zero is not of their dimensions; or their rows are not contiguous.
    """
    base, dims = numbers.base, numbers.dims
    changes: list[_Change] = []
    for step in reversed(steps):
        if step.operand is not None:
            changes += _changes(step, _sources(dims, step))
        elif step.node.target in _VIEWS:
            dims = _regrouped(dims, step.node)
        elif step.node.target not in CONVERSIONS:
            dims = REPLAY[step.node.target](dims, step.node)
    dims = [_merged(atoms) for atoms in dims]
    if not all(_is_whole(atom, numbers.shape) for atoms in dims for atom in atoms):
        raise NotRepresentable
    order = stored_order([dims[d] for d in operand.order], base)
    if not same(base.meta["val"].stride(order[_CHANNEL]), 1):
        raise NotRepresentable
    changes = [replace(change, operand=_ordered(change.operand, numbers.shape, order)) for change in changes]
    return _affine(numbers, order, changes)


def _ordered(operand: _Operand, shape: Sequence[Size], order: Sequence[int]) -> _Operand:
    """With parts of (batch, kv_heads, len, dim) for those of a tensor of ``shape``.

    Raises:
        NotRepresentable: it varies within a group, or by group of anything else than tokens and channels.
    """
    for part in operand.parts:
        grouped = part.source is not None and order.index(part.source) in (_LENGTH, _CHANNEL)
        whole = replace(part, size=part.size * part.step, step=1) if grouped else part
        if not _is_whole(whole, shape):
            raise NotRepresentable
    if len(operand.varies_by) < len(operand.parts):
        raise NotRepresentable  # by two parts of one dimension
    dims = (part and replace(part, source=order.index(part.source)) for part in operand.dims)
    return replace(operand, dims=tuple(dims))


def _is_whole(part: Atom, shape: Sequence[Size]) -> bool:
    return part.source is None or (part.step == 1 and same(part.size, shape[part.source]))


def _regrouped(dims: Dims, node: Node) -> Dims:
    """A view, which may split dimensions."""
    flat = [atom for atoms in dims for atom in atoms if not same(atom.size, 1)]
    result: Dims = []
    for size in shape_of(node):
        group: list[Atom] = []
        while not same(have := product(atom.size for atom in group), size):
            if not flat:
                raise NotRepresentable
            flat[:1] = _split_to_fit(flat[0], have, size)
            group.append(flat.pop(0))
        result.append(group)
    if flat:
        raise NotRepresentable
    return result


def _split_to_fit(atom: Atom, have: Size, wanted: Size) -> list[Atom]:
    """Where an atom is a multiple of what is missing, two parts of it, the slower one first."""
    if is_symbolic(atom.size) or is_symbolic(have) or is_symbolic(wanted) or int(wanted) % int(have):
        return [atom]
    missing, size = int(wanted) // int(have), int(atom.size)
    if not 1 < missing < size or size % missing:
        return [atom]
    rest = size // missing
    return [replace(atom, size=missing, step=atom.step * rest), replace(atom, size=rest)]


def _merged(atoms: list[Atom]) -> list[Atom]:
    """With adjacent parts of one dimension put together again, and nothing of size 1."""
    result: list[Atom] = []
    for atom in atoms:
        last = result[-1] if result else None
        if same(atom.size, 1):
            continue
        if last is not None and last.source is not None and _follows(last, atom):
            result[-1] = replace(atom, size=last.size * atom.size)
        else:
            result.append(atom)
    return result


def _follows(slow: Atom, fast: Atom) -> bool:
    return slow.source == fast.source and same(fast.size * fast.step, slow.step)


def _changes(step: _Step, dims: tuple[Atom | None, ...]) -> list[_Change]:
    assert step.operand is not None
    if step.node.target in _PRODUCTS:
        return [_Change(_Operand(step.operand, dims, step.node.target in _QUOTIENTS))]
    if step.first and step.node.target not in (aten.add.Tensor, aten.add.Scalar):
        return [_Change(_Operand(-1.0, (), False)), _Change(_Operand(step.operand, dims, False), adds=True)]
    return [_Change(_Operand(step.operand, dims, step.node.target in _DIFFERENCES), adds=True)]


def _affine(numbers: _Numbers, order: tuple[int, ...], changes: list[_Change]) -> _Dequantised:
    """``numbers`` after ``changes``, the first one first.

    Raises:
        NotRepresentable: it takes groups of several sizes, or of next to nothing.
    """
    sums = [place for place, change in enumerate(changes) if change.adds]
    last_sum = sums[-1] if sums else -1
    late = range(last_sum + 1, len(changes))
    of_channels = [place for place in late if _is_of_channels(changes[place].operand)]
    channels = [changes[place].operand for place in of_channels]
    rest = [change for place, change in enumerate(changes) if place not in of_channels]
    factors = [change.operand for change in rest if not change.adds]
    first_factor = next((place for place, change in enumerate(rest) if not change.adds), len(rest))
    minimum = any(change.adds for change in rest[first_factor:])
    addends = []
    for place, change in enumerate(rest):
        if change.adds:
            after = [later.operand for later in rest[place:] if not later.adds] if minimum else []
            addends.append((change.operand, Scale(tuple(after))))
    group = _common_group([change.operand for change in rest], int(numbers.shape[order[_CHANNEL]]))
    return _Dequantised(
        StoredKV(numbers.base, order), numbers.packing, Scale(tuple(factors)), Zero(tuple(addends), minimum),
        Scale(tuple(channels)), group,
    )  # fmt: skip


def _is_of_channels(factor: _Operand) -> bool:
    """Whether it is one for each channel of all tokens."""
    steps = [part.step for part in factor.parts if part.source == _CHANNEL]
    return steps == [1] and _LENGTH not in factor.varies_by


def _common_group(operands: Sequence[_Operand], dim: int) -> tuple[int, int] | None:
    """Tokens (0: all) and channels that share what ``operands`` make; None where none is of groups.

    Raises:
        NotRepresentable: their groups differ, or are of fewer numbers than SMALLEST_GROUP.
    """
    if not any(operand.varies_by_group for operand in operands):
        return None
    parts = [part for operand in operands for part in operand.parts]
    tokens = {part.step for part in parts if part.source == _LENGTH}
    columns = {part.step for part in parts if part.source == _CHANNEL}
    if len(tokens) > 1 or len(columns) > 1:
        raise NotRepresentable
    group = (tokens.pop() if tokens else 0, columns.pop() if columns else dim)
    if group[0] and group[0] * group[1] < SMALLEST_GROUP:
        raise NotRepresentable
    return group


def _sources(dims: Dims, step: _Step) -> tuple[Atom | None, ...]:
    """The parts of the stored tensor's dimensions that an operand's are, where the result is made of ``dims``."""
    if not isinstance(step.operand, Node):
        return ()
    shape, whole = shape_of(step.operand), shape_of(step.source)
    if len(whole) != len(shape_of(step.node)) or not all(
        same(a, b) for a, b in zip(whole, shape_of(step.node), strict=True)
    ):
        raise NotRepresentable  # the operand is larger than what it multiplies
    return tuple(
        None if same(size, 1) else _only(_merged(atoms))
        for size, atoms in zip(shape, dims[len(dims) - len(shape) :], strict=True)
    )


def _only(atoms: list[Atom]) -> Atom:
    if len(atoms) != 1 or atoms[0].source is None:
        raise NotRepresentable
    return atoms[0]


def _steps(operand: Node, in_vain: set[Node]) -> list[_Step] | None:
    """From ``operand`` up to numbers of a quantised format, and on through their views; None where they are not what it
    is made of. Nodes ``in_vain`` lead to none: so each is gone through once, however often it is used."""
    steps: list[_Step] = []
    node = operand
    while True:
        quantised = node.meta["val"].dtype in QUANTISED_FORMATS
        if node.target in REPLAY and isinstance(node.args[0], Node):
            steps.append(_Step(node, node.args[0]))
        elif unpacked_by(node) is not None:
            return steps
        elif quantised:
            return [*steps, *_steps_to_nibbles(node)]
        elif _widens(node):
            steps.append(_Step(node, node.args[0]))  # type: ignore[arg-type]
        elif _is_change(node) and node not in in_vain:
            above = _through_change(node, in_vain)
            if above is None:
                in_vain.add(node)
            return None if above is None else [*steps, *above]
        else:
            return None
        node = steps[-1].source


def _steps_to_nibbles(node: Node) -> list[_Step]:
    """From one-byte numbers that are made of numbers of four bits up to these; none where they are not."""
    steps: list[_Step] = []
    while unpacked_by(node) is None:
        if (node.target in REPLAY or keeps_numbers(node)) and isinstance(node.args[0], Node):
            steps.append(_Step(node, node.args[0]))
        elif moves_numbers(node) and not any(step.operand is not None for step in steps):
            steps.append(_Step(node, node.args[0], node.args[1]))  # type: ignore[arg-type]
        else:
            return []
        node = steps[-1].source
    return steps


def _is_change(node: Node) -> bool:
    if node.target not in (*_PRODUCTS, *_SUMS) or len(node.args) > 2 or node.kwargs:
        return False  # div with a rounding mode, or a sum with a factor
    dtype: torch.dtype = node.meta["val"].dtype
    return dtype.is_floating_point or (node.target in _SUMS and dtype in _WIDE_INTEGERS)


def _through_change(node: Node, in_vain: set[Node]) -> list[_Step] | None:
    left, right = node.args[:2]
    sides = [(left, right, node.target is aten.rsub.Scalar)]
    if node.target not in _QUOTIENTS:
        sides.append((right, left, True))
    may_be = _may_scale if node.target in _PRODUCTS else _may_be_added
    for source, operand, first in sides:
        if isinstance(source, Node) and may_be(operand, source) and (above := _steps(source, in_vain)) is not None:
            narrow = without_expand(operand) if isinstance(operand, Node) else operand
            return [_Step(node, source, narrow, first), *above]  # type: ignore[arg-type]
    return None


def _may_scale(factor: object, scaled: Node) -> bool:
    """Whether something is a floating-point scale: products of integers may overflow."""
    return _is_operand(factor, scaled, (*SUPPORTED_DTYPES, torch.float64))


def _may_be_added(addend: object, to: Node) -> bool:
    return _is_operand(addend, to, (*SUPPORTED_DTYPES, torch.float64, *_INTEGERS))


def _is_operand(operand: object, other: Node, dtypes: Sequence[torch.dtype]) -> bool:
    """Whether it is a number, or a tensor of one of ``dtypes`` where ``other`` is."""
    if isinstance(operand, Node):
        value = operand.meta.get("val")
        here = isinstance(value, torch.Tensor) and value.device == other.meta["val"].device
        return here and value.dtype in dtypes  # type: ignore[union-attr]
    return isinstance(operand, int | float) and not isinstance(operand, bool)


def _widens(node: Node) -> bool:
    """Whether a node is a conversion that keeps every number: of stored numbers to anything wider, or between floats,
    which the kernel need not round."""
    if node.target not in CONVERSIONS:
        return False
    source: torch.dtype = node.args[0].meta["val"].dtype  # type: ignore[union-attr]
    target: torch.dtype = node.meta["val"].dtype
    if source in _INTEGERS and target in (torch.int16, *_WIDE_INTEGERS):
        return source.itemsize < target.itemsize
    return target in (*SUPPORTED_DTYPES, torch.float64)


def _of_tokens(graph: Graph, scale: Scale | Zero, like: Node, dtype: torch.dtype | None) -> Node | None:
    """As kernels take it: (1|batch, 1|kv_heads, 1|len), or of groups (1|batch, 1|kv_heads, rows, columns)."""
    if not scale or dtype is None:
        return None
    emitted = scale.emit(graph, like, dtype)
    if scale.granularity is ScaleGranularity.GROUP:
        return emitted
    return insert_call(graph, aten.squeeze.dim, emitted, _CHANNEL)


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


def _four_dimensional(graph: Graph, operand: _Operand, like: Node) -> Node:
    """An operand as (1|batch, 1|kv_heads, 1|len, 1|dim)."""
    tensor = operand.tensor
    if not isinstance(tensor, Node):
        return insert_constant(graph, float(tensor), [1, 1, 1, 1], like)
    ones = [dim for dim, source in enumerate(operand.dims) if source is None]
    if ones:
        tensor = insert_call(graph, aten.squeeze.dims, tensor, ones)
    kept = [part.source for part in operand.parts if part.source is not None]
    tensor = permute(graph, tensor, [kept.index(source) for source in sorted(kept)])
    for dim in range(4):
        if dim not in kept:
            tensor = insert_call(graph, aten.unsqueeze.default, tensor, dim)
    return tensor
