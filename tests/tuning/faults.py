"""Tasks for a worker process that do to it what kernels, compilers and drivers do."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import torch

from prefetch_compiler.config import KernelConfig
from prefetch_compiler.database.key import TuningKey
from prefetch_compiler.database.record import FillTiming
from prefetch_compiler.tuning import bench_worker
from prefetch_compiler.tuning.bench_worker import Reply, guarded
from prefetch_compiler.tuning.contained import die_with, lead_process_group
from prefetch_compiler.tuning.errors import WrongResultError
from prefetch_compiler.tuning.protocol import Outcome, TrialRequest, TrialResult

CONFIG = KernelConfig(block_kv=16, num_splits=1, num_warps=1, num_stages=1)
CRASHING_SPLITS, ENDLESS_SPLITS, WRONG_SPLITS = 7, 8, 9


def start(parent: int) -> None:
    die_with(parent)
    lead_process_group()


def fail_to_start(parent: int) -> None:
    raise OSError("no device")


def result(config: KernelConfig = CONFIG) -> TrialResult:
    """Named by its configuration's tile."""
    return TrialResult((FillTiming(1, 1, float(config.block_kv), 1.0),), ((1.0,),), 0.5)


def fine() -> Reply:
    return Reply((result(),))


def pid_in(path: Path) -> Reply:
    path.write_text(str(os.getpid()))
    return fine()


def segmentation_fault() -> Reply:
    ctypes.string_at(0)
    return fine()


def aborts() -> Reply:
    """As a failed assertion of LLVM's."""
    os.abort()


def _illegal_access() -> Outcome:
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def illegal_access() -> Reply:
    """An error of the device's, which sticks to its context: nothing more can run in this process."""
    with mock.patch.object(bench_worker, "_device_works", lambda: False):
        return guarded([_illegal_access, result])


def _device_memory_runs_out() -> Outcome:
    raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 32.00 TiB")


def device_out_of_memory() -> Reply:
    return guarded([_device_memory_runs_out])


def killed_while_assembling(path: Path) -> Reply:
    """As Linux does when the machine's memory runs out, and a compiler's child process is left."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    path.write_text(str(child.pid))
    return killed()


def killed() -> Reply:
    """As Linux does when the machine's memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)
    return fine()


def endless(path: Path | None = None) -> Reply:
    if path is not None:
        path.write_text(str(os.getpid()))
    while True:
        pass


def deaf() -> Reply:
    """Endless, and does not heed SIGTERM, as a process that waits for a driver."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        time.sleep(1)


def slow_assembler(path: Path) -> Reply:
    """A compiler's child process that never ends."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"]) as child:
        path.write_text(str(child.pid))
        child.wait()
    return fine()


def raises() -> Reply:
    raise RuntimeError("something else")


def _exhaust_memory() -> Outcome:
    with Path("/proc/self/statm").open() as statm:
        pages = int(statm.read().split()[0])
    limit = pages * resource.getpagesize() + (64 << 20)
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    try:
        bytearray(1 << 30)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    return result()


def out_of_memory() -> Reply:
    return guarded([_exhaust_memory])


def _give_a_wrong_result() -> Outcome:
    raise WrongResultError(CONFIG, "a long cache", "the error is 3 times its bound")


def wrong() -> Reply:
    return guarded([_give_a_wrong_result])


def trial(request: TrialRequest) -> Reply:
    return finals(request.key, (request.config,), request.seed)


def finals(key: TuningKey, configs: tuple[KernelConfig, ...], seed: int) -> Reply:
    """What each configuration does is told by its number of splits."""
    splits = [config.num_splits for config in configs]
    if CRASHING_SPLITS in splits:
        segmentation_fault()
    if ENDLESS_SPLITS in splits:
        endless()

    def outcome(config: KernelConfig) -> Outcome:
        return _give_a_wrong_result() if config.num_splits == WRONG_SPLITS else result(config)

    return guarded([lambda config=config: outcome(config) for config in configs])  # type: ignore[misc]
