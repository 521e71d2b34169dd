"""Marking: replace decode attention in a captured graph by the marker, at the same place in program order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch._higher_order_ops.wrap import wrap_with_set_grad_enabled
from torch.fx import GraphModule, Node

from ..errors import Refused
from ..recognize.markable import Markable, markable_of
from ..recognize.sdpa import NotDecode
from ..report import SiteReport

# What a marked site's report says until the lowering pass has met the site.
NOT_REACHED = "the lowering pass did not meet the site: Inductor ran no joint-graph passes, or found its result unused"


@dataclass
class Marks:
    """What marking did to one graph: a report per attention site, by its number, and how to take the marks back.
    ``failures`` are errors of the pass itself (not refusals), kept for ``strict``."""

    reports: dict[int, SiteReport] = field(default_factory=dict)
    marked: set[int] = field(default_factory=set)
    not_decode: set[int] = field(default_factory=set)
    failures: list[Exception] = field(default_factory=list)
    _undo: list[Callable[[], None]] = field(default_factory=list)
    _modules: list[GraphModule] = field(default_factory=list)

    def undo(self) -> None:
        """Restore the graph to what was captured."""
        while self._undo:
            self._undo.pop()()
        self.recompile()

    def recompile(self) -> None:
        """Make code of what the graphs are now."""
        for module in self._modules:
            module.recompile()


def mark(module: GraphModule, first: int = 0, any_device: bool = False) -> Marks:
    """Mark every decode-attention site of a captured graph, in place, numbering sites from ``first``. Nothing is
    removed but the replaced nodes: eliminating dead code here would delete in-place cache writes whose results nobody
    reads. With ``any_device`` also sites whose tensors are where no kernel runs, for graphs that will not be run."""
    marks = Marks(_modules=list(_inlined_modules(module)))
    found = [
        (node, form) for one in marks._modules for node in one.graph.nodes if (form := markable_of(node)) is not None
    ]
    for index, (node, form) in enumerate(found, first):
        report = SiteReport(index, 0, layer_of(node), form.form)
        marks.reports[index] = report
        try:
            marks._undo.append(_replace(node, form, form.arguments(node, any_device), report.index))
        except Refused as refusal:
            report.reason = refusal.reason
            if isinstance(refusal, NotDecode):
                marks.not_decode.add(report.index)
                report.decode = False
        except Exception as error:
            report.reason = f"marking failed here: {type(error).__name__}: {error}"
            marks.failures.append(error)
        else:
            report.reason = NOT_REACHED
            marks.marked.add(report.index)
    if marks.marked:
        marks.recompile()
    return marks


def _inlined_modules(module: GraphModule) -> Iterator[GraphModule]:
    """The graph, and those in it that torch.export makes of ``with torch.no_grad()``: AOTAutograd inlines them."""
    yield module
    for node in module.graph.find_nodes(op="call_function", target=wrap_with_set_grad_enabled):
        inner = getattr(module, str(node.args[1].target))
        yield from _inlined_modules(inner)


def _replace(node: Node, form: Markable, arguments: tuple[Any, ...], index: int) -> Callable[[], None]:
    """Put the form's marker in ``node``'s place, or behind it; the returned function takes it away again."""
    graph = node.graph
    behind = node in arguments
    with graph.inserting_after(node) if behind else graph.inserting_before(node):
        marker = graph.call_function(form.stand_in, (*arguments, index))
    # Not the whole meta: Inductor asserts that "eager_input_vals" fit the node's own target.
    marker.meta = {name: node.meta[name] for name in _KEPT_META if name in node.meta}
    if behind:
        node.replace_all_uses_with(marker, delete_user_cb=lambda user: user is not marker)
        return lambda: _remove(marker, node)
    op, target, args, kwargs, meta = node.op, node.target, node.args, dict(node.kwargs), node.meta
    node.replace_all_uses_with(marker)
    graph.erase_node(node)

    def restore() -> None:
        with graph.inserting_before(marker):
            original = graph.create_node(op, target, args, kwargs)
        original.meta = meta
        _remove(marker, original)

    return restore


def _remove(marker: Node, original: Node) -> None:
    marker.replace_all_uses_with(original)
    marker.graph.erase_node(marker)


_KEPT_META = ("example_value", "val", "nn_module_stack", "stack_trace", "source_fn_stack", "custom")


def layer_of(node: Node) -> str:
    """Path of the innermost module that a captured node came from, as users write it (``model.layers.0.self_attn``)."""
    stack = node.meta.get("nn_module_stack") or {}
    if not stack:
        return ""
    path = str(list(stack.values())[-1][0])
    for prefix in ("L['self'].", "L['fn'].", "self."):
        path = path.removeprefix(prefix)
    return path.replace("._modules['", ".").replace("']", "").replace("['", ".")
