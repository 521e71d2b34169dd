"""Compiles configurations for GPUs that need not be here. Run as a script, without TRITON_INTERPRET in its environment.

Until stdin ends it reads from it pickled lists of (AttentionSpec, KernelConfig, DeviceProfile), and writes to stdout
for each a pickled list of as many results: a list of CompiledKernel, or the error as text.
"""

from __future__ import annotations

import atexit
import os
import pickle
import subprocess
import sys
from collections.abc import Iterable, Sequence
from functools import cache

from prefetch_compiler.config import KernelConfig
from prefetch_compiler.device import DeviceProfile
from prefetch_compiler.lower.precompile import CompiledKernel, compile_for_target
from prefetch_compiler.spec import AttentionSpec

Job = tuple[AttentionSpec, KernelConfig, DeviceProfile]
Result = list[CompiledKernel] | str


def compile_elsewhere(jobs: Sequence[Job]) -> list[Result]:
    """The result of each job, compiled in another process: the same for all tests, for it takes seconds to start."""
    worker = _worker()
    assert worker.stdin is not None
    assert worker.stdout is not None
    pickle.dump(list(jobs), worker.stdin)
    worker.stdin.flush()
    results: list[Result] = pickle.load(worker.stdout)
    assert len(results) == len(jobs)
    return results


@cache
def _worker() -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    worker = subprocess.Popen(
        [sys.executable, __file__], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    atexit.register(worker.communicate)
    return worker


def _compile_all(jobs: Iterable[Job]) -> list[Result]:
    results: list[Result] = []
    for spec, config, profile in jobs:
        try:
            results.append(compile_for_target(spec, config, profile))
        except Exception as error:
            results.append(f"{type(error).__name__}: {error}")
    return results


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "wb")
    # What a compiler prints is no answer.
    os.dup2(2, 1)
    while True:
        try:
            jobs = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pickle.dump(_compile_all(jobs), answers)
        answers.flush()


if __name__ == "__main__":
    _serve()
