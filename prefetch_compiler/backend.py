"""The pipeline: Dynamo graph → mark → AOTAutograd → recognise, select, lower → Inductor. In order, on one screen."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch.fx import GraphModule

from .database import overlay
from .errors import KVPrefetchError, LoweringError, SiteNotLoweredError
from .graph_dump import NO_DUMP, GraphDump, dump_folder
from .lower.call_op import forget_selections
from .lower.graph_pass import LoweringPass
from .lower.mark import Marks, mark
from .lower.ops import forget_failed_launches
from .lower.rewrite import Lowering
from .options import Options, split_options
from .report import SiteReport, first_number, publish

log = logging.getLogger("prefetch_compiler")

Compiled = TypeVar("Compiled")


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

    def compile_with_inductor() -> Callable[..., Any]:
        compiled: Callable[..., Any] = inductor(module, example_inputs)
        return compiled

    if not ours.enabled:
        return compile_with_inductor()
    dump = NO_DUMP
    with _left_out("writing graphs", ours):
        dump = GraphDump(dump_folder(ours.dump_graphs, inductor_options))
        dump.captured(module, "dynamo")
    return lower_and_compile(module, ours, dump, inductor.config, compile_with_inductor)


def lower_and_compile(
    module: GraphModule,
    ours: Options,
    dump: GraphDump,
    inductor_config: dict[str, Any],
    compile_with_inductor: Callable[[], Compiled],
    embed_kernels: bool = False,
) -> Compiled:
    """Mark ``module`` in place, and have Inductor compile it with our pass among its own.

    Args:
        module: a graph as it was captured, by Dynamo or by torch.export.
        inductor_config: what ``compile_with_inductor`` configures Inductor with when it is called; the pass is put in
            here for as long as it may run.
        compile_with_inductor: compiles ``module`` as it is at the call.
        embed_kernels: whether sites become kernel launches in the graph, and not calls of our operator.

    Raises:
        As :func:`kvprefetch`.
    """
    marks = _mark_or_leave(module, ours)
    if not marks.marked:
        _finish(marks, ours, dump)
        return compile_with_inductor()
    try:
        compiled = _lowered(marks, ours, dump, inductor_config, compile_with_inductor, embed_kernels)
    except Exception as error:
        if _is_control_flow(error):
            raise
        if ours.strict:
            raise _as_ours("compiling the lowered graph", error) from error
        log.warning("the lowered graph did not compile, Inductor serves alone: %s: %s", type(error).__name__, error)
        _leave_untouched(marks, f"the lowered graph did not compile: {type(error).__name__}: {error}")
        compiled = compile_with_inductor()
    _finish(marks, ours, dump)
    return compiled


def _as_ours(stage: str, error: Exception) -> KVPrefetchError:
    """What ``strict`` raises for ``error``: itself, where it says what is wrong in our words."""
    return error if isinstance(error, KVPrefetchError) else LoweringError(stage, error)


@contextmanager
def _left_out(what: str, ours: Options) -> Iterator[None]:
    """Something that no result depends on: a failure inside costs a warning, or is an error under ``strict``."""
    try:
        yield
    except Exception as error:
        if ours.strict:
            raise _as_ours(what, error) from error
        log.warning("%s failed: %s: %s", what, type(error).__name__, error)


def _mark_or_leave(module: GraphModule, ours: Options) -> Marks:
    try:
        marks = mark(module, first_number())
        failures = list(marks.failures)
        _log_marks(marks)
    except Exception as error:
        marks, failures = Marks(), [error]
    for failure in failures:
        if ours.strict:
            raise LoweringError("marking", failure) from failure
        log.warning("marking failed, Inductor serves alone: %s: %s", type(failure).__name__, failure)
    return marks


def _log_marks(marks: Marks) -> None:
    for report in marks.reports.values():
        decision = "marked" if report.index in marks.marked else f"left: {report.reason}"
        log.debug("Dynamo graph: %s %s: %s", report.form, report.layer or report.index, decision)


def _lowered(
    marks: Marks,
    ours: Options,
    dump: GraphDump,
    inductor_config: dict[str, Any],
    compile_with_inductor: Callable[[], Compiled],
    embed_kernels: bool,
) -> Compiled:
    """Raises: what a stage does; under ``strict`` also the first failure that cost a site."""
    databases = overlay.load_or_none(ours.tuning_db, strict=ours.strict)
    lowering = Lowering(marks.reports, ours.strict, databases, ours.allow_unmeasured, ours.deterministic, embed_kernels)
    compiled = _compile(inductor_config, lowering, dump, compile_with_inductor)
    if ours.strict and lowering.failures:
        error = lowering.failures[0]
        raise LoweringError("lowering", error) from error
    return compiled


def _compile(
    inductor_config: dict[str, Any],
    lowering: Lowering,
    dump: GraphDump,
    compile_with_inductor: Callable[[], Compiled],
) -> Compiled:
    """Inductor with our pass in it.

    AOTAutograd's own cache is off: a hit would skip the pass, and with it the report and the loading of kernels before
    the first launch. Inductor's compiled-graph cache, which holds what is slow, stays on.
    """
    from torch._functorch import config as functorch_config
    from torch._inductor import config as inductor_defaults

    user_pass = inductor_config.get("joint_custom_pre_pass", inductor_defaults.joint_custom_pre_pass)
    inductor_config["joint_custom_pre_pass"] = LoweringPass(lowering, user_pass, dump)
    try:
        with functorch_config.patch(enable_autograd_cache=False):
            compiled = compile_with_inductor()
            while not lowering.settle():
                compiled = compile_with_inductor()
            return compiled
    finally:
        inductor_config["joint_custom_pre_pass"] = user_pass


def _is_control_flow(error: Exception) -> bool:
    """Exceptions by which the compiler asks Dynamo to start again are not failures."""
    from torch._dynamo.exc import RestartAnalysis, SkipFrame

    return isinstance(error, RestartAnalysis | SkipFrame)


def _leave_untouched(marks: Marks, reason: str) -> None:
    try:
        marks.undo()
    except Exception as error:
        # A marker is an operator that runs, and does what it stands for.
        log.warning("sites stay marked: %s: %s", type(error).__name__, error)
    for index in marks.marked:
        report = marks.reports[index]
        marks.reports[index] = SiteReport(index, report.graph, report.layer, report.form, reason=reason)


def _finish(marks: Marks, ours: Options, dump: GraphDump) -> None:
    """Publish the report; under ``strict`` an untouched decode site is an error."""
    reports = list(marks.reports.values())
    with _left_out("reporting", ours):
        publish(reports)
        dump.sites(reports)
        for report in reports:
            log.info("%s", report)
    for report in reports:
        if ours.strict and not report.lowered and report.index not in marks.not_decode:
            raise SiteNotLoweredError(report.layer or str(report.index), report.reason)


def _reset() -> None:
    """What torch.compiler.reset() asks of a backend: forget recorded CUDA graphs, as Inductor does, databases, and
    which kernels could not be launched."""
    overlay.forget()
    forget_selections()
    forget_failed_launches()
    if "torch._inductor.cudagraph_trees" in sys.modules:
        sys.modules["torch._inductor.cudagraph_trees"].reset_cudagraph_trees()


kvprefetch.reset = _reset  # type: ignore[attr-defined]
