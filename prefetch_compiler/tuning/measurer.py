"""The Measurer of a GPU: a worker process that can be killed, and a deadline for whatever it is asked.

A crash, an illegal memory access, a kernel that never ends or a device out of memory costs the trial that did it, at
most the deadline, and a fresh worker (a few seconds, mostly torch's import).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import replace
from multiprocessing import get_context
from typing import Any

import torch
from pebble import ProcessExpired, ProcessPool

from ..config import KernelConfig
from ..database.key import TuningKey
from . import bench_worker
from .bench_worker import Reply
from .errors import NoTuningGpuError
from .protocol import FailureKind, Outcome, TrialFailure, TrialRequest

TRIAL_DEADLINE_S = 30.0
# Per finalist, beside what a fresh worker takes.
FINALIST_DEADLINE_S = 20.0
START_DEADLINE_S = 60.0

Task = Callable[..., Reply]


class Worker:
    """One process at a time that runs tasks under a deadline, and is replaced when it dies, hangs, or breaks.

    Args:
        start: run first in every process, with this process's id appended to ``arguments``.
    """

    def __init__(self, start: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        self._start, self._arguments = start, arguments
        self._pool: ProcessPool | None = None

    def run(self, task: Task, arguments: tuple[Any, ...], deadline_s: float, count: int) -> tuple[Outcome, ...]:
        """The outcomes of ``task``, ``count`` of them; never raises for what the task does."""
        started = time.monotonic()
        fresh = self._pool is None
        limit = deadline_s + (START_DEADLINE_S if fresh else 0.0)
        future = self._started_pool().schedule(task, args=list(arguments), timeout=limit)
        try:
            reply: Reply = future.result()
        except FutureTimeoutError:
            failure = TrialFailure(FailureKind.HANG, f"killed after {limit:g} s", 0.0)
        except ProcessExpired as error:
            failure = TrialFailure(FailureKind.CRASH, f"the worker died: exit code {error.exitcode}", 0.0)
        except Exception as error:
            failure = TrialFailure(FailureKind.ERROR, f"{type(error).__name__}: {error}", 0.0)
        else:
            if reply.broken:
                self.close()
            seconds = time.monotonic() - started
            return tuple(_with_seconds(outcome, seconds) for outcome in reply.outcomes)
        self.close()
        return (replace(failure, seconds=time.monotonic() - started),) * count

    def close(self) -> None:
        """Kill the process; the next task gets a fresh one."""
        if self._pool is not None:
            self._pool.stop()
            self._pool.join()
            self._pool = None

    def _started_pool(self) -> ProcessPool:
        if self._pool is None:
            initargs = [*self._arguments, os.getpid()]
            self._pool = ProcessPool(1, initializer=self._start, initargs=initargs, context=get_context("spawn"))
        return self._pool


class GpuMeasurer:
    """Raises:
    NoTuningGpuError: torch sees no such GPU.
    """

    def __init__(self, device_index: int = 0, deadline_s: float = TRIAL_DEADLINE_S) -> None:
        if device_index >= torch.cuda.device_count():
            raise NoTuningGpuError
        self._worker = Worker(bench_worker.start, (device_index,))
        self._deadline_s = deadline_s

    def trial(self, request: TrialRequest) -> Outcome:
        return self._worker.run(bench_worker.trial, (request,), self._deadline_s, 1)[0]

    def finals(self, key: TuningKey, configs: tuple[KernelConfig, ...], seed: int) -> tuple[Outcome, ...]:
        """When they cannot be measured together (one of them breaks the device), each is measured on its own."""
        deadline_s = FINALIST_DEADLINE_S * max(1, len(configs))
        outcomes = self._worker.run(bench_worker.finals, (key, configs, seed), deadline_s, len(configs))
        broken = (FailureKind.CRASH, FailureKind.HANG)
        if len(configs) == 1 or not any(isinstance(o, TrialFailure) and o.kind in broken for o in outcomes):
            return outcomes
        healthy = tuple(config for config in configs if self._survives(key, config, seed))
        if len(healthy) == len(configs):
            return outcomes
        again = dict(zip(healthy, self.finals(key, healthy, seed), strict=True)) if healthy else {}
        return tuple(again.get(config, outcome) for config, outcome in zip(configs, outcomes, strict=True))

    def _survives(self, key: TuningKey, config: KernelConfig, seed: int) -> bool:
        outcome = self._worker.run(bench_worker.finals, (key, (config,), seed), self._deadline_s, 1)[0]
        return not isinstance(outcome, TrialFailure)

    def close(self) -> None:
        self._worker.close()


def _with_seconds(outcome: Outcome, seconds: float) -> Outcome:
    return replace(outcome, seconds=seconds) if isinstance(outcome, TrialFailure) else outcome
