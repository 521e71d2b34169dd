"""The Measurer of a GPU: a worker process that can be killed, and a deadline for whatever it is asked.

A crash, an illegal memory access, a kernel that never ends or a device out of memory costs the trial that did it, at
most the deadline and a few seconds, and a fresh worker (some seconds more, mostly torch's import).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import TimeoutError as FutureTimeoutError
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing import get_context
from typing import Any

import torch
from pebble import ProcessExpired, ProcessPool

from ..config import KernelConfig
from ..database.key import TuningKey
from ..device import interpreting
from . import bench_worker
from .bench_worker import Reply
from .errors import NoTuningGpuError
from .protocol import FailureKind, Outcome, TrialFailure, TrialRequest, TrialResult

TRIAL_DEADLINE_S = 30.0
# Per finalist.
FINALIST_DEADLINE_S = 20.0
# For a process to import torch and take the GPU, before a task's own deadline begins.
START_DEADLINE_S = 90.0
# From the deadline until a process that does not heed SIGTERM is gone.
KILL_S = 10.0

Task = Callable[..., Reply]


class Worker:
    """One process at a time that runs tasks under a deadline, and is replaced when it dies, hangs, or breaks.

    Args:
        start: run first in every process, with this process's id appended to ``arguments``.
    """

    def __init__(self, start: Callable[..., None], arguments: tuple[Any, ...] = ()) -> None:
        self._start, self._arguments = start, arguments
        self._pool: ProcessPool | None = None

    def run(self, task: Task, arguments: tuple[Any, ...], deadline_s: float, count: int) -> tuple[Outcome, ...]:
        """The outcomes of ``task``, ``count`` of them; never raises for what the task does."""
        started = time.monotonic()
        try:
            reply = self._reply(task, arguments, deadline_s)
        except FutureTimeoutError:
            reply = _failed(FailureKind.HANG, f"killed after {deadline_s:g} s", count)
        except ProcessExpired as error:
            reply = _failed(FailureKind.CRASH, f"the worker died: exit code {error.exitcode}", count)
        except BrokenProcessPool as error:
            reply = _failed(FailureKind.CRASH, f"no worker would start: {error}", count)
        except Exception as error:
            reply = _failed(FailureKind.ERROR, f"{type(error).__name__}: {error}", count, broken=False)
        if reply.broken:
            self.close()
        seconds = time.monotonic() - started
        return tuple(_with_seconds(outcome, seconds) for outcome in reply.outcomes)

    def close(self) -> None:
        """Kill the process; the next task gets a fresh one."""
        if self._pool is not None:
            self._pool.stop()
            self._pool.join()
            self._pool = None

    def _reply(self, task: Task, arguments: tuple[Any, ...], deadline_s: float) -> Reply:
        """Once more with a fresh process where the present one was found dead: that is no fault of this task's."""
        fresh = self._pool is None
        try:
            return self._ask(task, arguments, deadline_s)
        except BrokenProcessPool:
            if fresh:
                raise
            self.close()
            return self._ask(task, arguments, deadline_s)

    def _ask(self, task: Task, arguments: tuple[Any, ...], deadline_s: float) -> Reply:
        """The pool counts a task's time from when the worker takes it; one that never starts, takes none."""
        if self._pool is None:
            initargs = [*self._arguments, os.getpid()]
            self._pool = ProcessPool(1, initializer=self._start, initargs=initargs, context=get_context("spawn"))
        elif not self._pool.active:
            raise BrokenProcessPool("the pool has ended")
        future = self._pool.schedule(task, args=list(arguments), timeout=deadline_s)
        reply: Reply = future.result(START_DEADLINE_S + deadline_s + KILL_S)
        return reply


class WorkerMeasurer:
    """A Measurer whose trials and finals run in ``worker``, at most ``deadline_s`` for one configuration."""

    def __init__(
        self,
        worker: Worker,
        deadline_s: float,
        trial: Task = bench_worker.trial,
        finals: Task = bench_worker.finals,
    ) -> None:
        self._worker, self._deadline_s = worker, deadline_s
        self._trial, self._finals = trial, finals

    def trial(self, request: TrialRequest) -> Outcome:
        return self._worker.run(self._trial, (request,), self._deadline_s, 1)[0]

    def finals(self, key: TuningKey, configs: tuple[KernelConfig, ...], seed: int) -> tuple[Outcome, ...]:
        """When they cannot be measured together, because one of them breaks the worker, each is tried on its own, and
        those that work are measured together once more."""
        outcomes = self._together(key, configs, seed)
        if len(configs) < 2 or not any(_broke_the_worker(outcome) for outcome in outcomes):
            return outcomes
        alone = {config: self._together(key, (config,), seed)[0] for config in configs}
        healthy = tuple(config for config in configs if isinstance(alone[config], TrialResult))
        again = dict(zip(healthy, self._together(key, healthy, seed), strict=True)) if healthy else {}
        return tuple(again.get(config, alone[config]) for config in configs)

    def close(self) -> None:
        self._worker.close()

    def _together(self, key: TuningKey, configs: tuple[KernelConfig, ...], seed: int) -> tuple[Outcome, ...]:
        deadline_s = max(self._deadline_s, FINALIST_DEADLINE_S * len(configs))
        return self._worker.run(self._finals, (key, configs, seed), deadline_s, len(configs))


class GpuMeasurer(WorkerMeasurer):
    """Raises:
    NoTuningGpuError: torch sees no such GPU, or Triton interprets its kernels: the interpreter's times say nothing.
    """

    def __init__(self, device_index: int = 0, deadline_s: float = TRIAL_DEADLINE_S) -> None:
        if interpreting() or device_index >= torch.cuda.device_count():
            raise NoTuningGpuError
        super().__init__(Worker(bench_worker.start, (device_index,)), deadline_s)


class CorrectnessChecker(WorkerMeasurer):
    """A Measurer that times nothing: its results are errors alone. On a GPU, or (None) in Triton's interpreter."""

    def __init__(self, device_index: int | None, deadline_s: float = TRIAL_DEADLINE_S) -> None:
        super().__init__(Worker(bench_worker.start, (device_index,)), deadline_s, trial=bench_worker.correctness)


def _failed(kind: FailureKind, detail: str, count: int, broken: bool = True) -> Reply:
    return Reply((TrialFailure(kind, detail, 0.0),) * count, broken)


def _broke_the_worker(outcome: Outcome) -> bool:
    return isinstance(outcome, TrialFailure) and outcome.kind in (FailureKind.CRASH, FailureKind.HANG)


def _with_seconds(outcome: Outcome, seconds: float) -> Outcome:
    return replace(outcome, seconds=seconds) if isinstance(outcome, TrialFailure) else outcome
