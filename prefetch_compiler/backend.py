"""The pipeline: Dynamo graph → mark → AOTAutograd → recognise, select, lower → Inductor. In order, on one screen."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx import GraphModule

from .database import overlay
from .errors import LoweringError, SiteNotLoweredError
from .graph_dump import GraphDump, dump_folder
from .lower.graph_pass import LoweringPass
from .lower.mark import Marks, mark
from .lower.rewrite import Lowering
from .options import Options, split_options
from .report import SiteReport, first_number, publish

log = logging.getLogger("prefetch_compiler")


def kvprefetch(
    module: GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: dict[str, Any] | None = None,
) -> Callable[..., Any]:
    """The backend function behind ``torch.compile(model, backend="kvprefetch")``.

    ``mode`` and ``options`` mean what they mean to Inductor; ``kvprefetch.`` options are ours (see
    ``options.Options``).

    Raises:
        UnknownOptionError, InvalidOptionError: a wrong option of ours.
        SiteNotLoweredError, LoweringError, DatabaseError: under ``kvprefetch.strict`` only; otherwise a site that
            cannot be lowered is left to Inductor with a reason in the report, and a database that cannot be used is
            left out with a warning.
    """
    ours, inductor_options = split_options(options)
    make_inductor: Any = torch._TorchCompileInductorWrapper
    inductor = make_inductor(ours.mode or mode, inductor_options, None)
    if not ours.enabled:
        return _compile_plainly(inductor, module, example_inputs)

    dump = GraphDump(dump_folder(ours.dump_graphs, inductor_options))
    dump.dynamo(module)
    marks = _mark_or_leave(module, ours)
    if not marks.marked:
        _finish(marks, ours, dump)
        return _compile_plainly(inductor, module, example_inputs)
    lowering = Lowering(marks.reports, ours.strict, _databases(ours), ours.allow_unmeasured, ours.deterministic)
    try:
        compiled = _compile(inductor, lowering, dump, module, example_inputs)
    except Exception as error:
        if _is_control_flow(error):
            raise
        if ours.strict:
            raise LoweringError("compiling the lowered graph", error) from error
        log.warning("the lowered graph did not compile, Inductor serves alone: %s: %s", type(error).__name__, error)
        _leave_untouched(marks, f"the lowered graph did not compile: {type(error).__name__}: {error}")
        module.recompile()
        compiled = _compile_plainly(inductor, module, example_inputs)
    _raise_failures(lowering, ours)
    _finish(marks, ours, dump)
    return compiled


def _mark_or_leave(module: GraphModule, ours: Options) -> Marks:
    try:
        marks = mark(module, first_number())
    except Exception as error:
        marks = Marks(failures=[error])
    for failure in marks.failures:
        if ours.strict:
            raise LoweringError("marking", failure) from failure
        log.warning("marking failed, Inductor serves alone: %s: %s", type(failure).__name__, failure)
    for report in marks.reports.values():
        decision = "marked" if report.index in marks.marked else f"left: {report.reason}"
        log.debug("Dynamo graph: %s %s: %s", report.form, report.layer or report.index, decision)
    return marks


def _databases(ours: Options) -> overlay.Overlays:
    try:
        databases = overlay.load(ours.tuning_db, strict=ours.strict)
    except Exception as error:
        if ours.strict:
            raise
        log.warning("no tuning database is used: %s: %s", type(error).__name__, error)
        return overlay.NO_DATABASES
    for number, layer in enumerate(databases.layers):
        for database in layer:
            log.debug("tuning database %d: %s, %d records", number, database.device.name, len(database.records))
    return databases


def _compile_plainly(inductor: Any, module: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
    compiled: Callable[..., Any] = inductor(module, example_inputs)
    return compiled


def _compile(
    inductor: Any, lowering: Lowering, dump: GraphDump, module: GraphModule, example_inputs: Sequence[Any]
) -> Callable[..., Any]:
    """Inductor with our pass in it.

    AOTAutograd's own cache is off: a hit would skip the pass, and with it the report and the loading of kernels before
    the first launch. Inductor's compiled-graph cache, which holds what is slow, stays on.
    """
    from torch._functorch import config as functorch_config
    from torch._inductor import config as inductor_config

    user_pass = inductor.config.get("joint_custom_pre_pass", inductor_config.joint_custom_pre_pass)
    inductor.config["joint_custom_pre_pass"] = LoweringPass(lowering, user_pass, dump)
    try:
        with functorch_config.patch(enable_autograd_cache=False):
            compiled = _compile_plainly(inductor, module, example_inputs)
            while not lowering.settle():
                compiled = _compile_plainly(inductor, module, example_inputs)
            return compiled
    finally:
        inductor.config["joint_custom_pre_pass"] = user_pass


def _is_control_flow(error: Exception) -> bool:
    """Exceptions by which the compiler asks Dynamo to start again are not failures."""
    from torch._dynamo.exc import RestartAnalysis, SkipFrame

    return isinstance(error, RestartAnalysis | SkipFrame)


def _leave_untouched(marks: Marks, reason: str) -> None:
    marks.undo()
    for index in marks.marked:
        report = marks.reports[index]
        marks.reports[index] = SiteReport(index, report.graph, report.layer, report.form, reason=reason)


def _raise_failures(lowering: Lowering, ours: Options) -> None:
    if ours.strict and lowering.failures:
        error = lowering.failures[0]
        raise LoweringError("lowering", error) from error


def _finish(marks: Marks, ours: Options, dump: GraphDump) -> None:
    """Publish the report; under ``strict`` an untouched decode site is an error."""
    reports = list(marks.reports.values())
    publish(reports)
    dump.sites(reports)
    for report in reports:
        log.info("%s", report)
    for report in reports:
        if ours.strict and not report.lowered and report.index not in marks.not_decode:
            raise SiteNotLoweredError(report.layer or str(report.index), report.reason)


def _reset() -> None:
    """What torch.compiler.reset() asks of a backend: forget recorded CUDA graphs, as Inductor does, and databases."""
    overlay.forget()
    if "torch._inductor.cudagraph_trees" in sys.modules:
        sys.modules["torch._inductor.cudagraph_trees"].reset_cudagraph_trees()


kvprefetch.reset = _reset  # type: ignore[attr-defined]
