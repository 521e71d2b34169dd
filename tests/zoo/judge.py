"""Decode one cell with our backend and say what became of it. What differs from eager is an error, and no outcome."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.utils import counters

from prefetch_compiler.report import Report, collect_reports

from ..contract.uncompiled import graphs_run_uncompiled
from .caches import cached_tensors
from .cell import Cell
from .decode import Decoded, decode
from .outcome import Kind, Outcome, first_sentence, outcome_of
from .quicker_interpreter import quicker_interpreter
from .workload import Workload


@dataclass(frozen=True)
class Compiled:
    """A compiled run, what became of its sites, how many graphs Dynamo captured for it, and why it broke any."""

    run: Decoded
    report: Report
    graphs: int
    breaks: tuple[str, ...] = ()


def judge(cell: Cell, workload: Workload) -> Outcome:
    """Decode eagerly, in float64 and through our backend.

    Raises:
        AssertionError: tokens, logits or cache do not follow eager's, or our backend failed and left the graph to
            Inductor.
        Exception: whatever the backend raises where plain Inductor compiles the same model.
    """
    try:
        eager = decode(cell, workload)
    except Exception as error:
        return Outcome(Kind.UNSUPPORTED, reasons=(first_sentence(error),))
    try:
        ours = compiled(cell, workload)
    except Exception as error:
        return _not_compiled(cell, workload, error)
    exact = decode(cell, workload, dtype=torch.float64, fed=eager.fed)
    assert_follows(ours.run, eager, exact)
    assert torch.equal(ours.run.tokens, eager.tokens)
    return outcome_of(ours.report, cell.model, ours.graphs, ours.breaks)


def _not_compiled(cell: Cell, workload: Workload, ours: Exception) -> Outcome:
    """The outcome of a cell that no backend compiles; otherwise ``ours`` is our own failure."""
    try:
        compiled(cell, workload, "inductor")
    except Exception as inductors:
        return Outcome(Kind.NOT_COMPILED, reasons=(first_sentence(inductors),))
    raise ours


def compiled(cell: Cell, workload: Workload, backend: str = "kvprefetch") -> Compiled:
    """Decode a cell through a backend, code generation skipped."""
    return compiled_run(partial(decode, cell, workload), backend)


def compiled_run(decode_with: Callable[[Callable[[Any], Any]], Decoded], backend: str = "kvprefetch") -> Compiled:
    """``decode_with(compile_model)`` through a backend, code generation skipped."""
    counters.clear()
    with (
        _afresh(),
        graphs_run_uncompiled(),
        quicker_interpreter(),
        collect_reports() as report,
        _no_warnings(),
    ):
        run = decode_with(lambda model: torch.compile(model, backend=backend))
        breaks = tuple(sorted({reason.strip().partition("\n")[0] for reason in counters["graph_break"]}))
        return Compiled(run, report, counters["stats"]["unique_graphs"], breaks)


@contextmanager
def _afresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class _Warned(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@contextmanager
def _no_warnings() -> Iterator[None]:
    """Our backend warns where one of its stages failed and Inductor serves alone: that is no refusal."""
    warned = _Warned()
    log = logging.getLogger("prefetch_compiler")
    log.addHandler(warned)
    try:
        yield
    finally:
        log.removeHandler(warned)
    assert not warned.messages, warned.messages


def error_of(actual: Tensor, exact: Tensor) -> float:
    """Root mean square."""
    return float((actual.double() - exact.double()).square().mean().sqrt())


def assert_follows(ours: Decoded, eager: Decoded, exact: Decoded) -> None:
    """Compiled code rounds as often as eager does, elsewhere. Over thousands of values the mean error of either is the
    same but for chance and fusion: twice eager's own is allowed."""
    _assert_as_good(ours.logits, eager.logits, exact.logits, "logits")
    tensors = [cached_tensors(run.cache) for run in (ours, eager, exact)]
    assert tensors[0]
    for number, (mine, theirs, reference) in enumerate(zip(*tensors, strict=True)):
        assert mine.shape == theirs.shape
        _assert_as_good(mine, theirs, reference, f"cached tensor {number}")


def _assert_as_good(ours: Tensor, eager: Tensor, exact: Tensor, what: str) -> None:
    errors = error_of(ours, exact), error_of(eager, exact)
    assert errors[0] <= 2 * errors[1], f"{what}: error {errors[0]:.3g}, eager's {errors[1]:.3g}"
