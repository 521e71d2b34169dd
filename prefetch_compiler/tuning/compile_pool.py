"""Compiling ahead of the measurer, over all CPU cores and without a GPU.

Processes are spawned, so that none inherits a CUDA context, and each task has a deadline: an assembler that never ends
costs one trial and bounded seconds. Splits, batch and capacity are plain arguments of the kernels, so many
configurations of many keys share a kernel: each is compiled once, and what it takes is remembered.
"""

from __future__ import annotations

import os
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from threading import Lock
from typing import Any, Protocol

from pebble import ProcessExpired, ProcessPool

from ..config import KernelConfig
from ..database.key import TuningKey
from ..device import DeviceProfile, interpreting
from ..lower.precompile import CompiledKernel, example_tensors, kernel_calls, source_of
from ..spec import AttentionSpec
from .compile_worker import compile_kernel, start_worker
from .errors import InterpretedCompileError
from .protocol import FailureKind, TrialFailure

COMPILE_TIMEOUT_S = 60.0

CompileOutcome = tuple[CompiledKernel, ...] | TrialFailure


class Compiler(Protocol):
    """Whoever tells what a configuration takes before it is measured."""

    def submit(self, key: TuningKey, config: KernelConfig) -> Future[CompileOutcome]:
        """The kernels of ``config`` for ``key``, or why there are none; no kernels where the compilers died before they
        came to it. The future never raises."""

    def close(self) -> None:
        """End every process."""


class CompilePool:
    """A Compiler for ``profile``.

    Raises:
        InterpretedCompileError: TRITON_INTERPRET=1 is set, under which kernels are no kernels.
    """

    def __init__(
        self, profile: DeviceProfile, processes: int | None = None, timeout_s: float = COMPILE_TIMEOUT_S
    ) -> None:
        if interpreting():
            raise InterpretedCompileError
        self._profile = profile
        self._timeout_s = timeout_s
        self.processes = processes or available_cores()
        self._pool = self._started()
        self._kernels: dict[str, Future[Any]] = {}

    def _started(self) -> ProcessPool:
        return ProcessPool(
            self.processes, initializer=start_worker, initargs=[os.getpid()], context=get_context("spawn")
        )

    @property
    def kernels(self) -> int:
        """Distinct kernels that were asked for."""
        return len(self._kernels)

    def submit(self, key: TuningKey, config: KernelConfig) -> Future[CompileOutcome]:
        return self.submit_spec(key.spec(), config)

    def submit_spec(self, spec: AttentionSpec, config: KernelConfig) -> Future[CompileOutcome]:
        """As :meth:`submit`, for a spec that need not be the largest of its key."""
        return gather(self._kernel_futures(spec, config), self._timeout_s)

    def _kernel_futures(self, spec: AttentionSpec, config: KernelConfig) -> list[Future[Any]]:
        calls = kernel_calls(spec, config, example_tensors(spec, config, "meta"), self._profile)
        return [self._kernel(spec, config, number, kernel_identity(call)) for number, call in enumerate(calls)]

    def _kernel(self, spec: AttentionSpec, config: KernelConfig, number: int, identity: str) -> Future[Any]:
        if not self._pool.active:
            self._renew()
        if identity not in self._kernels:
            self._kernels[identity] = self._pool.schedule(
                compile_kernel, args=(spec, config, self._profile, number), timeout=self._timeout_s
            )
        return self._kernels[identity]

    def _renew(self) -> None:
        """Start anew. A process that dies while none of them has anything to do takes the pool along, and all that was
        to be compiled."""
        self.close()
        self._pool = self._started()
        self._kernels = {name: kernel for name, kernel in self._kernels.items() if not _lost(kernel)}

    def close(self) -> None:
        self._pool.stop()
        self._pool.join()


def _lost(kernel: Future[Any]) -> bool:
    """Whether nobody has compiled ``kernel``, and nobody will."""
    return not kernel.done() or kernel.cancelled() or isinstance(kernel.exception(), BrokenProcessPool)


def available_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def kernel_identity(call: Any) -> str:
    """Equal for launches of the same binary."""
    return f"{source_of(call).hash()} {sorted(call.options.items())}"


def gather(kernels: list[Future[Any]], timeout_s: float) -> Future[CompileOutcome]:
    """One future for all kernels of a configuration."""
    whole: Future[CompileOutcome] = Future()
    lock, left = Lock(), [len(kernels)]

    def one_done(_: Future[Any]) -> None:
        with lock:
            left[0] -= 1
            last = left[0] == 0
        if last:
            whole.set_result(_outcome(kernels, timeout_s))

    for kernel in kernels:
        kernel.add_done_callback(one_done)
    return whole


def _outcome(kernels: list[Future[Any]], timeout_s: float) -> CompileOutcome:
    compiled = []
    for future in kernels:
        try:
            kernel = future.result()
        except FutureTimeoutError:
            return TrialFailure(FailureKind.COMPILE_TIMEOUT, f"not compiled within {timeout_s:g} s", timeout_s)
        except BrokenProcessPool:
            return ()  # nothing is known of it: compiling it is the measurer's business
        except CancelledError:
            return TrialFailure(FailureKind.COMPILE_ERROR, "the compile pool was closed", 0.0)
        except ProcessExpired as error:
            return TrialFailure(FailureKind.COMPILE_ERROR, f"the compiler died: exit code {error.exitcode}", 0.0)
        except Exception as error:
            return TrialFailure(FailureKind.COMPILE_ERROR, f"{type(error).__name__}: {error}", 0.0)
        if isinstance(kernel, str):
            return TrialFailure(FailureKind.COMPILE_ERROR, kernel, 0.0)
        compiled.append(kernel)
    return tuple(compiled)
