"""Uses the compile pool as the search does. Run as a script, without TRITON_INTERPRET in its environment; prints JSON.

With an argument, a folder: the assembler is replaced by one that never ends where ``armed`` lies in that folder, and
notes its process id there in ``pid``; what became of the faults is written to ``reply`` there, as JSON, and the
process then waits to be killed.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import stat
import sys
import time
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

from prefetch_compiler.config import KernelConfig, Merge
from prefetch_compiler.database.key import parse_key
from prefetch_compiler.device import REFERENCE_DEVICES
from prefetch_compiler.tuning.compile_pool import CompileOutcome, CompilePool
from prefetch_compiler.tuning.protocol import TrialFailure

# Of the kernel whose assembler hangs, and of all others: a busy machine takes long to come to an assembler.
DEADLINE_S = 10.0
LONG_S = 100.0
KEY = parse_key("float16 8q/2kv d64 q1 b4 s1024 bhsd-tma bool")
CONFIG = KernelConfig(block_kv=64, num_splits=4, num_warps=4, num_stages=2)
H200 = REFERENCE_DEVICES[90]

HANGING = """#!/bin/sh
case "$*" in
    *--version*) exec {real} "$@" ;;
    *.ptx*) if [ -e {folder}/armed ]; then rm {folder}/armed; echo $$ > {folder}/pid; exec sleep 600; fi ;;
esac
exec {real} "$@"
"""


def shown(outcome: CompileOutcome) -> Any:
    return outcome.kind.value if isinstance(outcome, TrialFailure) else [kernel.name for kernel in outcome]


def shared_kernels() -> dict[str, Any]:
    pool = CompilePool(H200, processes=2)
    variants = [
        (KEY, CONFIG),
        (KEY, replace(CONFIG, num_splits=3)),
        (KEY, replace(CONFIG, num_splits=7)),
        (KEY.at(batch=64, capacity=8192), CONFIG),
        (KEY, replace(CONFIG, merge=Merge.INPLACE)),
        (KEY, replace(CONFIG, num_splits=1)),
    ]
    try:
        outcomes = [pool.submit(key, config) for key, config in variants]
        return {"kernels": pool.kernels, "outcomes": [shown(future.result(100)) for future in outcomes]}
    finally:
        pool.close()


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]


def gone(pid: int, within_s: float = 2.0) -> bool:
    until = time.monotonic() + within_s
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.02)
    return not alive(pid)


class Faults:
    """A pool of one process, and an assembler that hangs when told to."""

    def __init__(self, folder: Path) -> None:
        from triton.backends.nvidia.compiler import get_ptxas

        hanging = folder / "ptxas"
        hanging.write_text(HANGING.format(real=get_ptxas(H200.arch).path, folder=folder))
        hanging.chmod(hanging.stat().st_mode | stat.S_IEXEC)
        # Triton has two assemblers, and from 3.9 on takes the newer one for sm_90 too.
        os.environ["TRITON_PTXAS_PATH"] = os.environ["TRITON_PTXAS_BLACKWELL_PATH"] = str(hanging)
        self.folder = folder
        self.pool = CompilePool(H200, processes=1, timeout_s=LONG_S)
        # Each a kernel of its own.
        self.configs = (
            replace(CONFIG, num_splits=1, block_kv=block_kv, num_stages=stages)
            for stages in (1, 2, 3, 4, 5)
            for block_kv in (32, 64, 128)
        )

    def submit(self, deadline_s: float = LONG_S) -> Future[CompileOutcome]:
        self.pool._timeout_s = deadline_s
        return self.pool.submit(KEY, next(self.configs))

    def hang(self, deadline_s: float = LONG_S) -> tuple[Future[CompileOutcome], int]:
        """What is being compiled, and its assembler. The deadline may come before that is started: then once more."""
        noted = self.folder / "pid"
        noted.unlink(missing_ok=True)
        (self.folder / "armed").touch()
        for _ in range(3):
            future = self.submit(deadline_s)
            while not future.done():
                if noted.exists() and noted.read_text().strip():
                    return future, int(noted.read_text())
                time.sleep(0.02)
        raise AssertionError("no assembler was started")

    def worker(self) -> int:
        """The process of the pool; the next one, where one was killed."""
        until = time.monotonic() + 30
        while not (found := [process.pid for process in multiprocessing.active_children()]):
            assert time.monotonic() < until
            time.sleep(0.02)
        (pid,) = found
        assert pid is not None
        return pid

    def an_idle_worker_dies(self) -> Any:
        """A moment before the next kernel is asked for, and then long enough before it for the pool to notice."""
        outcomes = []
        for pause_s in (0.0, 1.0):
            self.submit().result(LONG_S)  # a pool that has ended has no process
            pid = self.worker()
            os.kill(pid, signal.SIGKILL)
            time.sleep(pause_s)
            outcomes.append(shown(self.submit().result(LONG_S)))
        return outcomes

    def a_compiling_worker_dies(self) -> Any:
        future, assembler = self.hang()
        os.kill(self.worker(), signal.SIGKILL)
        return {"outcome": shown(future.result(LONG_S)), "assembler_gone": gone(assembler)}

    def an_assembler_never_ends(self) -> Any:
        future, assembler = self.hang(DEADLINE_S)
        start = time.monotonic()
        outcome = shown(future.result(LONG_S))
        return {"outcome": outcome, "seconds": time.monotonic() - start, "assembler_gone": gone(assembler)}


def faults(folder: Path) -> None:
    given = Faults(folder)
    reply: dict[str, Any] = {"first": shown(given.submit().result(LONG_S))}
    reply["hang"] = given.an_assembler_never_ends()
    reply["killed"] = given.a_compiling_worker_dies()
    reply["idle"] = given.an_idle_worker_dies()
    reply["last"] = shown(given.submit().result(LONG_S))
    _, reply["assembler"] = given.hang()
    reply["worker"] = given.worker()
    (folder / "half").write_text(json.dumps(reply))
    (folder / "half").rename(folder / "reply")
    time.sleep(600)


if __name__ == "__main__":
    assert shutil.which("sleep")
    if len(sys.argv) > 1:
        faults(Path(sys.argv[1]))
    print(json.dumps(shared_kernels()))
