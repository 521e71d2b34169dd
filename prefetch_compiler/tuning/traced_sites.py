"""Which sites serving would lower: the pipeline up to recognition, with nothing compiled and nothing run.

A torch.compile backend like the real one, with a tail that hands the graph back instead of compiling it. Marking,
Inductor's passes before AOTAutograd, functionalisation and decompositions are the real ones, so that what is recognised
here is what a compile for a GPU would look up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch.fx import Graph, GraphModule

from ..errors import Refused
from ..lower.mark import Marks, mark
from ..recognize.registry import recognise
from ..report import SiteReport
from ..spec import AttentionSpec


@dataclass(frozen=True)
class TracedSite:
    """One attention site of one traced graph.

    Attributes:
        layer: path of its module.
        spec: what it computes; None where the backend would leave it to Inductor.
        reason: why it is left.
    """

    layer: str
    spec: AttentionSpec | None
    reason: str = ""


class SiteTracer:
    """The backend. ``graphs`` holds the sites of every graph that was traced, in order; prefill and other attention
    that is not decode attention is left out."""

    def __init__(self) -> None:
        self.graphs: list[list[TracedSite]] = []

    def __call__(self, module: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        marks = mark(module, any_device=True)
        found = {
            index: TracedSite(report.layer, None, report.reason)
            for index, report in marks.reports.items()
            if index not in marks.not_decode
        }
        self.graphs.append([])
        if not marks.marked:
            self.graphs[-1] = list(found.values())
            return module.forward
        traced = _trace(module, example_inputs, lambda graph: _recognise_into(found, graph, marks))
        self.graphs[-1] = list(found.values())
        return traced


def _recognise_into(found: dict[int, TracedSite], graph: Graph, marks: Marks) -> None:
    for node in graph.nodes:
        try:
            site = recognise(node)
        except Refused as refusal:
            index = int(node.args[-1])
            found[index] = replace(found[index], reason=refusal.reason)
            continue
        if site is not None:
            report: SiteReport = marks.reports[site.index]
            found[site.index] = TracedSite(report.layer, site.spec)


def _trace(module: GraphModule, example_inputs: Sequence[Any], look: Callable[[Graph], None]) -> Callable[..., Any]:
    """Inductor's pipeline with ``look`` where our lowering stands, and no code generation."""
    from torch._functorch import config as functorch_config
    from torch._inductor import compile_fx as inductor

    # Its annotations promise what only generated code has.
    compile_fx: Any = inductor.compile_fx
    with functorch_config.patch(enable_autograd_cache=False):
        compiled: Callable[..., Any] = compile_fx(
            module,
            list(example_inputs),
            inner_compile=_leave_uncompiled,
            config_patches={"joint_custom_pre_pass": look},
        )
    return compiled


def _leave_uncompiled(module: GraphModule, example_inputs: Sequence[Any], **_: Any) -> Callable[..., Any]:
    """What Inductor calls to generate code: the graph as it is, to be run on tensors without data."""

    def run(arguments: list[Any]) -> Any:
        outputs = module(*arguments)
        arguments.clear()
        return outputs

    run._boxed_call = True  # type: ignore[attr-defined]  # AOTAutograd then passes a list
    return run
