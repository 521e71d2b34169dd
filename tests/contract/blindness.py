"""Ways to make the pass ignore one thing that attention depends on. Each must turn some comparison with eager red."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from prefetch_compiler.lower import mark, ops, quantised_call, rewrite
from prefetch_compiler.recognize import (
    beside,
    block_lists,
    block_mask,
    bounds,
    chain,
    changes,
    columns,
    compose,
    dequantised,
    exact_key,
    flex,
    latent,
    log_space,
    marked,
    multi_head,
    pack,
    paged,
    score_mod,
    sdpa,
    views,
)
from prefetch_compiler.recognize.bounds import mask_bounds
from prefetch_compiler.recognize.index_functions import for_all_indices
from prefetch_compiler.recognize.sdpa import SdpaCall
from prefetch_compiler.recognize.site import Site
from prefetch_compiler.recognize.trace import insert_call
from prefetch_compiler.recognize.views import Atom, StoredKV
from prefetch_compiler.spec import Storage

Blind = Callable[[pytest.MonkeyPatch], None]


def to_call(change: Callable[[SdpaCall], SdpaCall]) -> Blind:
    """Every SDPA call is read as ``change`` leaves it."""
    parse = sdpa.parse

    def blind(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sdpa, "parse", lambda node, any_device=False: change(parse(node, any_device)))

    return blind


def to_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    to_call(lambda call: replace(call, scale=None))(monkeypatch)


def to_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    to_call(lambda call: replace(call, mask=None))(monkeypatch)


def to_causality(monkeypatch: pytest.MonkeyPatch) -> None:
    to_call(lambda call: replace(call, is_causal=False))(monkeypatch)


def _mask_through(function: Callable[..., Tensor], *arguments: Any) -> Blind:
    def change(call: SdpaCall) -> SdpaCall:
        assert call.mask is not None
        with call.mask.graph.inserting_after(call.mask):
            return replace(call, mask=call.mask.graph.call_function(function, (call.mask, *arguments)))

    return to_call(change)


def to_mask_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """An additive mask is taken for a bool one."""
    _mask_through(torch.ne, 0)(monkeypatch)


def to_mask_polarity(monkeypatch: pytest.MonkeyPatch) -> None:
    _mask_through(torch.logical_not)(monkeypatch)


def to_mask_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the first query's row of the mask counts."""
    _mask_through(lambda mask: mask[..., :1, :])(monkeypatch)


def to_mask_of_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the first sequence's mask counts."""
    _mask_through(lambda mask: mask[:1])(monkeypatch)


def _other_bounds(change: Callable[[Tensor], Tensor]) -> Blind:
    def blind(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(rewrite, "mask_bounds", lambda mask, kv_len: change(mask_bounds(mask, kv_len)))

    return blind


def _columns(*columns: Tensor) -> Tensor:
    return torch.stack(columns, 1)


def to_last_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bounds end one key early."""
    _other_bounds(lambda found: _columns(found[:, 0], found[:, 1] - 1, found[:, 2], found[:, 3]))(monkeypatch)


def to_first_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bounds begin one key late."""
    _other_bounds(lambda found: _columns(found[:, 0] + 1, found[:, 1], found[:, 2], found[:, 3]))(monkeypatch)


def to_holes(monkeypatch: pytest.MonkeyPatch) -> None:
    """All keys between the bounds are taken for visible."""
    _other_bounds(lambda found: _columns(found[:, 0], found[:, 1], found[:, 0], found[:, 1]))(monkeypatch)


def to_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first sequence's bounds serve all."""
    _other_bounds(lambda found: found[:1].expand_as(found).contiguous())(monkeypatch)


def to_uniform_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of nothing but finfo.min is taken for a row of nothing but -inf."""
    monkeypatch.setattr(bounds, "_hidden", lambda mask: mask < torch.finfo(mask.dtype).min / 2)


def to_which_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """All masks of a graph share the bounds of the first."""
    monkeypatch.setattr(rewrite, "value_number", lambda node: 0)


def to_head_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Repetitions that vary slower than heads are stripped as well."""

    def any_order(atoms: list[Atom]) -> int | None:
        return next((atom.source for atom in atoms if atom.source is not None), None)

    monkeypatch.setattr(views, "head_source", any_order)


def to_head_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """One KV head serves all queries."""
    arrange = rewrite._arrange

    def first_head(graph: Graph, stored: StoredKV) -> Node:
        return insert_call(graph, views.aten.slice.Tensor, arrange(graph, stored), 1, 0, 1)

    monkeypatch.setattr(rewrite, "_arrange", first_head)


def to_value_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """V is taken to repeat its heads as K does."""

    def pair(k: Node, v: Node) -> tuple[StoredKV, StoredKV]:
        value = views.chain_of(v)[-1]
        return views.stored_kv(k), StoredKV(value, (0, 1, 2, 3))

    monkeypatch.setattr(marked, "stored_pair", pair)


def to_unread_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug seeded on purpose: dead code is eliminated in the Dynamo graph, in-place cache writes included. The pass
    itself calls it on no graph."""
    original = mark.mark

    def mark_and_sweep(module: GraphModule, first: int = 0) -> mark.Marks:
        marks = original(module, first)
        module.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
        module.recompile()
        return marks

    monkeypatch.setattr("prefetch_compiler.backend.mark", mark_and_sweep)


def to_scale_of_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "scale", lambda found, factor: None)


def to_scale_of_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is multiplied after a bias was added multiplies the product alone."""
    monkeypatch.setattr(changes, "scaled_term", lambda term, factor: term)


def to_softcap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "cap", lambda found: None)


def to_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "adds", lambda bias: lambda found: None)


def to_fill(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "fills", lambda fill: lambda found: None)


def to_fill_polarity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a condition says what is filled or what is not."""
    fills = changes.fills
    monkeypatch.setattr(changes, "fills", lambda fill: fills(replace(fill, where=not fill.where)))


def to_fill_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """All fills are -inf."""
    fills = changes.fills
    monkeypatch.setattr(changes, "fills", lambda fill: fills(replace(fill, value=float("-inf"))))


def to_factor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain._Chain, "_multiplied", lambda self, q, factor: q)


def to_sink(monkeypatch: pytest.MonkeyPatch) -> None:
    launch = ops.launch_decode
    monkeypatch.setattr(ops, "launch_decode", lambda *args, **kwargs: launch(*args, **{**kwargs, "sink": None}))


def to_which_sink(monkeypatch: pytest.MonkeyPatch) -> None:
    """Query heads take one another's sinks."""
    launch = ops.launch_decode

    def flipped(*args: Any, **kwargs: Any) -> Tensor:
        return launch(*args, **{**kwargs, "sink": kwargs["sink"].flip(0)})

    monkeypatch.setattr(ops, "launch_decode", flipped)


def to_composed_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the last of several masks counts."""
    composed = compose.composed_mask
    monkeypatch.setattr(
        chain, "composed_mask", lambda graph, before, terms, *rest: composed(graph, before, terms[-1:], *rest)
    )


def to_scale_of_flex(monkeypatch: pytest.MonkeyPatch) -> None:
    read_call = flex.read_call
    monkeypatch.setattr(flex, "read_call", lambda node: replace(read_call(node), scale=0.25))


def to_block_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flex, "visible", lambda graph, before, call: None)


def to_block_mask_polarity(monkeypatch: pytest.MonkeyPatch) -> None:
    visible = flex.visible

    def inverted(graph: Graph, before: Node, call: Any) -> Node:
        return insert_call(graph, views.aten.bitwise_not.default, visible(graph, before, call))

    monkeypatch.setattr(flex, "visible", inverted)


def to_block_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """All blocks are taken for listed, and none for full."""

    def asked(part: GraphModule, lengths: Any, q: Tensor, k: Tensor, *rest: Any) -> Tensor:
        return block_mask._asked(part, q, k, *rest[4:])

    monkeypatch.setattr(block_mask, "_asked_where_listed", asked)


def to_full_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The function is asked in full blocks too."""
    original = block_mask._asked_where_listed

    def asked(part: GraphModule, lengths: Any, q: Tensor, k: Tensor, *rest: Any) -> Tensor:
        return original(part, lengths, q, k, *rest) & block_mask._asked(part, q, k, *rest[4:])

    monkeypatch.setattr(block_mask, "_asked_where_listed", asked)


def _other_indices(change: Callable[[Tensor], Tensor]) -> Blind:
    """Whatever is computed for all indices is ``change``d."""

    def blind(monkeypatch: pytest.MonkeyPatch) -> None:
        def changed(*given: Any) -> Tensor:
            return change(for_all_indices(*given))

        monkeypatch.setattr(block_mask, "for_all_indices", changed)
        monkeypatch.setattr(score_mod, "for_all_indices", changed)

    return blind


def to_sequence_index(monkeypatch: pytest.MonkeyPatch) -> None:
    _other_indices(lambda found: found[:1])(monkeypatch)


def to_head_index(monkeypatch: pytest.MonkeyPatch) -> None:
    _other_indices(lambda found: found[:, :1])(monkeypatch)


def to_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a function of indices captured is taken for zeros."""

    def without(part: GraphModule, device: Any, sizes: Any, buffers: Any) -> Tensor:
        found: Tensor = for_all_indices(part, device, sizes, [torch.zeros_like(buffer) for buffer in buffers])
        return found

    monkeypatch.setattr(block_mask, "for_all_indices", without)
    monkeypatch.setattr(score_mod, "for_all_indices", without)


def _scales(number: int, change: Callable[[Graph, Node | None], Node | None]) -> Blind:
    """The scales that the kernel gets of K (0) or V (1), changed."""
    of_tokens = dequantised._of_tokens

    def blind(monkeypatch: pytest.MonkeyPatch) -> None:
        calls = 0

        def changed(graph: Graph, *arguments: Any) -> Node | None:
            nonlocal calls
            calls += 1
            scale = of_tokens(graph, *arguments)
            return change(graph, scale) if calls == number + 1 else scale

        monkeypatch.setattr(dequantised, "_of_tokens", changed)

    return blind


def to_tokens_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens besides what a kernel reads are not there."""
    monkeypatch.setattr(beside, "with_few", lambda scale, out, *_: out.clone())


def to_mask_of_tokens_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    with_few = beside.with_few
    monkeypatch.setattr(beside, "with_few", lambda *given: with_few(*given[:6]))


def to_place_of_exact_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """The numbers that it was written over are seen besides it."""
    monkeypatch.setattr(exact_key, "hide", lambda kv_len, index, mask: mask.clone())


def to_key_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    _scales(0, lambda graph, scale: None)(monkeypatch)


def to_value_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    _scales(1, lambda graph, scale: None)(monkeypatch)


def to_scales_of_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first token's scale of K serves all."""
    _scales(0, lambda graph, scale: insert_call(graph, views.aten.slice.Tensor, scale, 2, 0, 1))(monkeypatch)


def to_scales_of_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first head's scale of V serves all."""
    _scales(1, lambda graph, scale: insert_call(graph, views.aten.slice.Tensor, scale, 1, 0, 1))(monkeypatch)


def to_division_by_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dequantised, "_QUOTIENTS", ())


def to_scales_of_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dequantised, "_by_channel", lambda graph, rows, channels, heads_first: rows)


def to_second_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    emit = dequantised.Scale.emit
    first = lambda scale, *arguments: emit(dequantised.Scale(scale.factors[:1]), *arguments)  # noqa: E731
    monkeypatch.setattr(dequantised.Scale, "emit", first)


def to_order_of_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = rewrite._entries
    monkeypatch.setattr(rewrite, "_entries", lambda table, pool: entries(table.flip(1), pool))


def to_lists_of_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first head's list serves all."""
    table = block_lists._table
    monkeypatch.setattr(block_lists, "_table", lambda listed, blocks: table(listed[:, :1].expand_as(listed), blocks))


def to_negative_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages that are counted from the end are taken for the first."""
    monkeypatch.setattr(rewrite, "_entries", lambda table, pool: table.clamp(min=0).to(torch.int32))


def to_which_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """V is gathered as K is, whatever its table."""
    monkeypatch.setattr(paged, "_same_table", lambda one, other: True)


def to_pages_of_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first pages' scales serve all."""
    scale_pool = paged._scale_pool

    def first(site: Site, scale: Node | None, by: Any) -> Node | None:
        pool = scale_pool(site, scale, by)
        if pool is None:
            return None
        with site.anchor.graph.inserting_before(site.anchor):
            one = insert_call(site.anchor.graph, views.aten.slice.Tensor, pool, 0, 0, 1)
            return insert_call(site.anchor.graph, views.aten.expand.default, one, list(pool.meta["val"].shape))

    monkeypatch.setattr(paged, "_scale_pool", first)


def to_format(monkeypatch: pytest.MonkeyPatch) -> None:
    """e5m2 is read as e4m3."""
    as_e4m3 = {**quantised_call.QUANTISED_FORMATS, torch.float8_e5m2: "e4m3"}
    monkeypatch.setattr(quantised_call, "QUANTISED_FORMATS", as_e4m3)


def to_key_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    _scales(2, lambda graph, zero: None)(monkeypatch)


def to_value_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    _scales(3, lambda graph, zero: None)(monkeypatch)


def to_zeros_of_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first token's zero of K serves all."""
    _scales(2, lambda graph, zero: insert_call(graph, views.aten.slice.Tensor, zero, 2, 0, 1))(monkeypatch)


def to_sign_of_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dequantised, "_DIFFERENCES", dequantised._SUMS)


def to_place_of_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    """Minima are taken for zero points."""
    monkeypatch.setattr(Storage, "encode", lambda storage: storage.packing)


def to_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first group's scale of V serves all columns of a token."""
    _scales(1, lambda graph, scale: insert_call(graph, views.aten.slice.Tensor, scale, 3, 0, 1))(monkeypatch)


def to_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first run's scales of K serve all tokens."""
    _scales(0, lambda graph, scale: insert_call(graph, views.aten.slice.Tensor, scale, 2, 0, 1))(monkeypatch)


def to_sign_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """uint8 is read as int8."""
    as_int8 = {**quantised_call.QUANTISED_FORMATS, torch.uint8: "int8"}
    monkeypatch.setattr(quantised_call, "QUANTISED_FORMATS", as_int8)


def _packing(old: str, new: str) -> Blind:
    unpacked_by = dequantised.unpacked_by

    def changed(node: Node) -> Any:
        found = unpacked_by(node)
        return None if found is None else replace(found, packing=found.packing.replace(old, new))

    return lambda monkeypatch: monkeypatch.setattr(dequantised, "unpacked_by", changed)


to_order_of_nibbles = _packing("halves", "interleaved")
to_sign_of_nibbles = _packing("int4", "uint4")


def to_lse(monkeypatch: pytest.MonkeyPatch) -> None:
    """The log-sum-exp is taken for 0."""
    launch = ops.launch_decode

    def without(*args: Any, **kwargs: Any) -> Tensor:
        out: Tensor = launch(*args, **kwargs)
        kwargs["lse"].zero_()
        return out

    monkeypatch.setattr(ops, "launch_decode", without)


def to_lse_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flex attention's log-sum-exp is taken for a natural one."""
    read_call = flex.read_call
    monkeypatch.setattr(flex, "read_call", lambda node: replace(read_call(node), log_of_two=False))


def to_other_terms(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is added to a sum of exponentials does not count."""
    value_of = log_space._Reader._value_of

    def without(self: Any, node: Node) -> Any:
        adds = node.target is views.aten.add.Tensor and node.args[0] in self._values
        return self._values[node.args[0]] if adds else value_of(self, node)

    monkeypatch.setattr(log_space._Reader, "_value_of", without)


def to_mask_of_multi_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """nn.MultiheadAttention is marked as if it had no mask."""
    mark_sdpa = multi_head._marked_sdpa
    monkeypatch.setattr(
        multi_head, "_marked_sdpa", lambda site, q, k, v, mask=None, *rest: mark_sdpa(site, q, k, v, None, *rest)
    )


def to_heads_of_multi_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each head of nn.MultiheadAttention attends to the keys of the one before."""
    mark_sdpa = multi_head._marked_sdpa
    monkeypatch.setattr(
        multi_head,
        "_marked_sdpa",
        lambda site, q, k, v, *rest: mark_sdpa(site, q, k.roll(1, 1), v.roll(1, 1), *rest),
    )


def to_packing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed queries stay in the order of sequences."""
    monkeypatch.setattr(pack, "permute", lambda graph, tensor, order: tensor)


def to_rotary_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores are those of the latents alone."""
    over = latent._over

    def without(site: Site, q: Node, latents: Node, rope: Node) -> Site:
        with site.anchor.graph.inserting_before(site.anchor):
            nothing = insert_call(site.anchor.graph, views.aten.sub.Tensor, rope, rope)
        return over(site, q, latents, nothing)

    monkeypatch.setattr(latent, "_over", without)


def to_flips(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights, and latents, whose heads or columns stand in another order are taken for those in the plain one."""
    above = columns._above

    def through(made: columns.Made) -> columns.Made | None:
        source: Any = made.node.args[0] if made.node.args else None
        flips = made.node.target in (views.aten.flip.default, torch.ops.prims.rev.default)
        return columns.Made(source, made.dims) if flips else above(made)

    monkeypatch.setattr(columns, "_above", through)


def to_whose_latents(monkeypatch: pytest.MonkeyPatch) -> None:
    """V is taken to be made of K's latents."""
    monkeypatch.setattr(latent, "_same_tensors", lambda *given: True)


def to_order_of_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last columns of K are taken for the rotary ones."""
    split = latent._split_queries

    def in_plain_order(graph: Graph, q: Node, parts: Any, at: int) -> tuple[Node, Node]:
        return split(graph, q, parts if at == 0 else parts[::-1], 0)

    monkeypatch.setattr(latent, "_split_queries", in_plain_order)


def to_which_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns are taken to be a tensor's first."""
    as_dims = columns.Columns.as_dims
    monkeypatch.setattr(columns.Columns, "as_dims", lambda given, *rest: as_dims(replace(given, first=0), *rest))
