"""Which sites serving would lower: the pipeline up to recognition, with nothing compiled and nothing run.

A torch.compile backend like the real one, with a tail that hands the graph back instead of compiling it. Marking,
Inductor's passes before AOTAutograd, functionalisation and decompositions are the real ones, so that what is recognised
here is what a compile for a GPU would look up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch.fx import Graph, GraphModule

from ..errors import Refused
from ..lower.mark import layer_of, mark
from ..recognize.readings import readings
from ..recognize.registry import recognise
from ..recognize.site import Site
from ..report import SiteReport
from ..select.selection import why_not_covered


class SiteTracer:
    """The backend. ``graphs`` holds the sites of every graph that was traced, in order: with a spec where the backend
    would lower the site, with the reason where it would leave it to Inductor. No configuration is selected."""

    def __init__(self) -> None:
        self.graphs: list[list[SiteReport]] = []

    def __call__(self, module: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        reports = mark(module, any_device=True).reports
        found: list[SiteReport] = []
        self.graphs.append(found)
        traced = _trace(module, example_inputs, lambda graph: _recognise_into(reports, graph))
        found += reports.values()
        return traced


def _recognise_into(reports: dict[int, SiteReport], graph: Graph) -> None:
    for node in graph.nodes:
        try:
            site = recognise(node)
        except Refused as refusal:
            # The last argument of a marker is its site's number; of another form there is no report yet.
            report = reports.get(node.args[-1]) if node.args and isinstance(node.args[-1], int) else None
            if report is not None:
                report.reason = refusal.reason
            continue
        if site is not None:
            site = _most_direct(site)
            report = reports.setdefault(site.index, SiteReport(site.index, 0, layer_of(node), site.form))
            why_not = why_not_covered(site.spec)
            report.spec, report.reason = (site.spec, "") if why_not is None else (None, why_not)


def _most_direct(site: Site) -> Site:
    """As the pass would read it on a device that runs all kernels."""
    return next((read for read in readings(site, pack=True) if why_not_covered(read.spec) is None), site)


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
