"""Lowering in the functional ATen graph: each site becomes one call of the decode operator, or SDPA again.

A site that fails at any stage is unmarked, which traces SDPA where the marker stood; the other sites are not affected.
"""

from __future__ import annotations

import logging
import operator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.fx import Graph, Node

from ..config import KernelConfig
from ..database.overlay import NO_DATABASES, Overlays
from ..device import profile, visible_profiles
from ..errors import InadmissibleConfigError, Refused
from ..recognize.bounds import mask_bounds
from ..recognize.markable import MARKERS, is_marker
from ..recognize.readings import readings
from ..recognize.registry import recognise
from ..recognize.site import Site
from ..recognize.sizes import is_symbolic
from ..recognize.trace import inline, insert_call
from ..recognize.value_numbers import value_number
from ..recognize.views import StoredKV, aten
from ..report import SiteReport, Verdict
from ..select.digest import digest_of
from ..select.lookup import Objection
from ..select.selection import Selection, select
from ..spec import AttentionSpec
from .embedded import LEFT_OUT, embeddable, emit_launches, is_embeddable
from .ops import DECODE_ATTENTION, DECODE_ATTENTION_LSE
from .precompile import precompile
from .quick_check import why_wrong
from .scale_layouts import ScaleLayouts, scale_layouts

log = logging.getLogger("prefetch_compiler")

SpecOnDevice = tuple[AttentionSpec, torch.device]
# A model has one or two distinct specs; more threads would only compete with Inductor for Python's lock.
COMPILER_THREADS = 2


def _failure_reason(error: BaseException) -> str:
    return f"the pass failed here: {type(error).__name__}: {error}"


@dataclass
class Lowering:
    """Lowers the sites of one graph. ``reports`` are indexed by site number; ``failures`` are errors of the pass itself
    (not refusals), kept for ``strict``.

    Kernels compile in threads of their own while Inductor compiles the rest; ``settle`` waits for them.
    ``databases`` and ``allow_unmeasured`` are what configurations are selected from, unless ``deterministic``. With
    ``embed`` a site becomes launches in the graph, and not a call of the operator.
    """

    reports: dict[int, SiteReport]
    strict: bool
    databases: Overlays = NO_DATABASES
    allow_unmeasured: bool = False
    deterministic: bool = False
    embed: bool = False
    failures: list[Exception] = field(default_factory=list)
    _bounds: dict[Any, Node] = field(default_factory=dict)
    _tables: dict[Any, Node] = field(default_factory=dict)
    _selected: dict[SpecOnDevice, Selection] = field(default_factory=dict)
    _compiling: dict[tuple[SpecOnDevice, ScaleLayouts], Future[None]] = field(default_factory=dict)
    _unusable: dict[SpecOnDevice, str] = field(default_factory=dict)
    _rejected: dict[tuple[SpecOnDevice, KernelConfig], str] = field(default_factory=dict)
    _compilers: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(COMPILER_THREADS, "kvprefetch"))

    def run(self, graph: Graph) -> None:
        """Lower every site of ``graph``, in place."""
        self._bounds.clear()
        self._tables.clear()
        met: set[Node] = set()
        while self._lower_until_moved(graph, met):
            pass

    def _lower_until_moved(self, graph: Graph, met: set[Node]) -> bool:
        """Lower sites in the order of the graph, but for those ``met``, until that order has changed."""
        for node in list(graph.nodes):
            if node in met or node._erased:
                continue
            met.add(node)
            if self._lower_or_unmark(node):
                return True
        return False

    def settle(self) -> bool:
        """Wait until every kernel is compiled and loaded.

        Returns:
            False when one could not be: the graph then calls a kernel that does not exist, and has to be compiled
            again. The next ``run`` selects something else where the kernel's configuration came from a record, and
            leaves the other sites of that kernel as they were.
        """
        done = [(spec, future.exception()) for (spec, _), future in self._compiling.items()]
        self._compiling.clear()
        failed = {spec: error for spec, error in done if error is not None}
        for spec, error in failed.items():
            selection = self._selected.pop(spec)
            if selection.tuned_at is not None:
                log.warning("%s: %s does not compile: %s", selection.reason, selection.config.encode(), error)
                self._rejected[spec, selection.config] = f"it does not compile here: {type(error).__name__}: {error}"
                continue
            self._unusable[spec] = _failure_reason(error)
            if isinstance(error, Exception):
                self.failures.append(error)
        return not failed

    def selection_digests(self) -> tuple[str, ...]:
        """What configurations depend on, for every GPU model in sight, besides the sources."""
        return tuple(
            digest_of(
                seen,
                self.databases,
                allow_unmeasured=self.allow_unmeasured,
                deterministic=self.deterministic,
                strict=self.strict,
            )
            for seen in visible_profiles()
        )

    def _lower_or_unmark(self, node: Node) -> bool:
        """Whether nodes were put in another order."""
        try:
            recognised = recognise(node)
            if recognised is None:
                return False
            site, selection = self._select_for(recognised)
            result = self._emit(site, selection.config)
            self._account(site, selection)
            return _replace_anchor(site, result)
        except Refused as refusal:
            self._give_up(node, refusal.reason)
        except InadmissibleConfigError as error:
            self._give_up(node, str(error))
        except Exception as error:
            self.failures.append(error)
            self._give_up(node, _failure_reason(error))
        return False

    def _account(self, site: Site, selection: Selection) -> None:
        report = self.reports[site.index]
        report.spec, report.config = site.spec, selection.config
        report.template = selection.template.name
        report.verdict, report.reason = selection.verdict, selection.reason
        report.record = None if selection.tuned_at is None else selection.tuned_at.name

    def _give_up(self, node: Node, reason: str) -> None:
        """Report the site as untouched and unmark it. Should even that fail, the marker stays: it can be run."""
        if not is_marker(node):
            log.warning("%s is left as it is: %s", node.name, reason)
            return
        report = self.reports[_site_index(node)]
        report.verdict, report.reason = Verdict.UNTOUCHED, reason
        report.template = report.config = report.record = None
        try:
            unmark(node)
        except Exception as error:
            self.failures.append(error)
            log.warning("%s stays marked: %s: %s", node.name, type(error).__name__, error)

    def _select_for(self, site: Site) -> tuple[Site, Selection]:
        """With K and V read where they are stored if a kernel does that, else as the graph makes them of it."""
        # Packed, a sequence's bits would depend on its batch.
        for read in readings(site, pack=not self.deterministic):
            if self.embed and not is_embeddable(read.spec):
                continue
            try:
                return read, self._select(read)
            except (Refused, InadmissibleConfigError) as refusal:
                log.debug("%s: not read as %s: %s", site.anchor.name, read.spec.describe(), refusal)
        return site, self._select(site)

    def _select(self, site: Site) -> Selection:
        """Config for the site's spec, its kernels on their way; done once for equal specs."""
        device = site.q.meta["val"].device
        key = (site.spec, device)
        if key in self._unusable:
            raise Refused(self._unusable[key])
        if key not in self._selected:
            selection = select(
                site.spec,
                profile(device),
                self.databases,
                allow_unmeasured=self.allow_unmeasured,
                deterministic=self.deterministic,
                objection=self._objection(key),
            )
            self._selected[key] = self._as_launched(selection)
        selection, layouts = self._selected[key], scale_layouts(site)
        if (key, layouts) not in self._compiling:
            self._compiling[key, layouts] = self._compilers.submit(
                precompile, site.spec, selection.config, device, layouts
            )
        return selection

    def _as_launched(self, selection: Selection) -> Selection:
        """What is selected, as far as launches can have it."""
        config = embeddable(selection.config) if self.embed else selection.config
        if config == selection.config:
            return selection
        return replace(selection, config=config, reason=f"{selection.reason}; {LEFT_OUT}")

    def _objection(self, key: SpecOnDevice) -> Objection:
        """What speaks against a recorded config: it did not compile, or, under ``strict``, it is stale and wrong."""
        spec, device = key

        def objection(config: KernelConfig, stale: str) -> str | None:
            rejected = self._rejected.get((key, embeddable(config) if self.embed else config))
            if rejected is not None or not (stale and self.strict):
                return rejected
            wrong = why_wrong(spec, config, device)
            return None if wrong is None else f"{stale}, and {wrong}"

        return objection

    def _emit(self, site: Site, config: KernelConfig) -> Node:
        graph = site.anchor.graph
        bounds = None if site.mask is None else self._bounds_of(site, site.mask)
        with graph.inserting_before(site.anchor):
            key, value = _arrange(graph, site.key), _arrange(graph, site.value)
            rope = None if site.rope is None else _arrange(graph, site.rope)
            if site.pages is None:
                key, value = _for_batch(graph, key, site.q), _for_batch(graph, value, site.q)
                rope = None if rope is None else _for_batch(graph, rope, site.q)
            mask = None if site.mask is None else _four_dimensional(graph, site.mask)
            q = _contiguous_rows(graph, site.q)
            if self.embed:
                if not is_embeddable(site.spec):
                    raise Refused("a log-sum-exp that the model uses keeps the site an operator: do not embed kernels")
                return emit_launches(
                    graph, site.anchor, q, key, value, mask, bounds, site.sink, is_causal=site.is_causal,
                    scale=site.scale, softcap=site.spec.softcap, heads_first=site.heads_first, config=config,
                )  # fmt: skip
            target = DECODE_ATTENTION_LSE if site.spec.lse else DECODE_ATTENTION
            return insert_call(
                graph, target, q, key, value, mask, bounds,
                site.is_causal, site.scale, site.heads_first, config.encode(), site.index, self.strict, site.sink,
                site.spec.softcap, site.key_scale, site.value_scale, self._table_of(site),
                site.key_zero, site.value_zero, "" if site.spec.cache is None else site.spec.cache.storage.encode(),
                rope,
            )  # fmt: skip

    def _bounds_of(self, site: Site, mask: Node) -> Node:
        """The bounds of the site's mask, computed where the first site with that mask and length is met."""
        kv_len = site.spec.kv_len
        # By the length itself, not its hint: two caches may be equally long when compiled and not later.
        key = (value_number(mask), str(site.kv_len))
        if key not in self._bounds:
            graph, before = site.anchor.graph, site.met_at
            with graph.inserting_before(before):
                mask_4d = _four_dimensional(graph, mask)
            if "kv_len" in site.spec.symbolic:
                held, dim, times = site.key.base, site.key.order[2], 1
                if site.pages is not None:
                    held, dim, times = site.pages.table, 1, site.pages.page_size
                self._bounds[key] = inline(
                    graph, before, lambda m, k: mask_bounds(m, k.shape[dim] * times), [mask_4d, held]
                )
            else:
                self._bounds[key] = inline(graph, before, lambda m: mask_bounds(m, kv_len), [mask_4d])
        return self._bounds[key]

    def _table_of(self, site: Site) -> Node | None:
        """The site's page table as the kernel takes it, made where the first site with that table is met."""
        if site.pages is None:
            return None
        table, pool_pages = site.pages.table, site.key.base.meta["val"].shape[site.key.order[0]]
        key = (value_number(table), str(pool_pages))
        if key not in self._tables:
            at, before = site.key.order[0], site.met_at
            self._tables[key] = inline(
                site.anchor.graph, before, lambda t, pool: _entries(t, pool.movedim(at, 0)), [table, site.key.base]
            )
        return self._tables[key]


def _entries(table: torch.Tensor, pool: torch.Tensor) -> torch.Tensor:
    """As kernels take them. In PyTorch negative indices count from the end, and others are errors, found or not."""
    pages = pool.shape[0]
    return torch.where(table < 0, table + pages, table).clamp(0, pages - 1).to(torch.int32)


def _site_index(node: Node) -> int:
    return int(node.args[-1])  # type: ignore[arg-type]


def _replace_anchor(site: Site, result: Node) -> bool:
    """Whether nodes were put in another order for it."""
    result.meta = {
        **{k: v for k, v in site.anchor.meta.items() if k in ("nn_module_stack", "stack_trace")},
        **result.meta,
    }
    graph = site.anchor.graph
    with graph.inserting_before(site.anchor):
        out, lse = (_taken(result, 0), _taken(result, 1)) if site.spec.lse else (result, result)
        restored = site.restore(out) if site.merge is None else site.merge(out, lse)
        replaced = [(use.anchor, use.restore(lse)) for use in site.log_sum_exps]
    moved = False
    for anchor, value in replaced:
        moved |= anchor < site.anchor and _move_users_behind(anchor, site.anchor)
        anchor.replace_all_uses_with(value)
    site.anchor.replace_all_uses_with(restored)
    for anchor in (site.anchor, *(use.anchor for use in site.log_sum_exps)):
        if not anchor._erased:
            _erase_with_sources(anchor)
    return moved


def _taken(results: Node, at: int) -> Node:
    """One of several results of a node."""
    node = results.graph.call_function(operator.getitem, (results, at))
    node.meta["val"] = results.meta["val"][at]
    return node


def _move_users_behind(anchor: Node, last: Node) -> bool:
    """Put whatever depends on ``anchor`` and stands before ``last`` behind that, in the order in which it stands."""
    behind, moved = last, {anchor}
    node = anchor.next
    while node is not last:
        following = node.next
        if any(source in moved for source in node.all_input_nodes):
            moved.add(node)
            behind.append(node)
            behind = node
        node = following
    return len(moved) > 1


def _erase_with_sources(node: Node) -> None:
    """Erase a node that nobody uses, and whatever was there for it alone. The graph is functional: nothing in it has an
    effect but the copies at its end, which use nothing of this."""
    sources = node.all_input_nodes
    node.graph.erase_node(node)
    for source in sources:
        if source.op in ("call_function", "get_attr") and not source.users and not source._erased:
            _erase_with_sources(source)


def unmark(node: Node) -> None:
    """Trace what a marker stands for where it stands."""
    *arguments, _ = node.args
    operands = [operand for operand in arguments if isinstance(operand, Node)]

    def meaning(*tensors: torch.Tensor) -> torch.Tensor:
        values = iter(tensors)
        return MARKERS[node.target](*(next(values) if isinstance(given, Node) else given for given in arguments))

    result = inline(node.graph, node, meaning, operands)
    node.replace_all_uses_with(result)
    node.graph.erase_node(node)


def _arrange(graph: Graph, stored: StoredKV) -> Node:
    """The stored tensor as (batch, kv_heads, len, dim): a view, never a copy."""
    if stored.order == (0, 1, 2, 3):
        return stored.base
    return insert_call(graph, aten.permute.default, stored.base, list(stored.order))


def _for_batch(graph: Graph, node: Node, q: Node) -> Node:
    """What one sequence holds, seen by all of the batch where it serves all."""
    batch, have = q.meta["val"].shape[0], node.meta["val"].shape[0]
    if isinstance(have, int) and have == 1 and not (isinstance(batch, int) and batch == 1):
        sizes = [_size_node(graph, q, 0, batch), *(-1,) * 3]
        node = insert_call(graph, aten.expand.default, node, sizes)
    return node


def _size_node(graph: Graph, tensor: Node, dim: int, size: int | torch.SymInt) -> Any:
    """A size as graphs hold it: a constant, or a node that reads it."""
    if not is_symbolic(size):
        return int(size)
    node = graph.call_function(aten.sym_size.int, (tensor, dim))
    node.meta["val"] = size
    return node


def _four_dimensional(graph: Graph, mask: Node) -> Node:
    for _ in range(4 - mask.meta["val"].ndim):
        mask = insert_call(graph, aten.unsqueeze.default, mask, 0)
    return mask


def _contiguous_rows(graph: Graph, q: Node) -> Node:
    """Queries are few: where head_dim is not contiguous they are copied."""
    stride = q.meta["val"].stride(3)
    if isinstance(stride, int) and stride == 1:
        return q
    node = graph.call_function(aten.clone.default, (q,), {"memory_format": torch.contiguous_format})
    node.meta["val"] = q.meta["val"].clone(memory_format=torch.contiguous_format)
    return node
