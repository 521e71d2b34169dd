"""Compiles configurations for GPUs that need not be here. Run as a script, without TRITON_INTERPRET in its environment.

Reads from stdin a pickled list of (AttentionSpec, KernelConfig, DeviceProfile), and writes to stdout a pickled list of
as many results: a list of CompiledKernel, or the error as text.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Iterable, Sequence

from prefetch_compiler.config import KernelConfig
from prefetch_compiler.device import DeviceProfile
from prefetch_compiler.lower.precompile import CompiledKernel, compile_for_target
from prefetch_compiler.spec import AttentionSpec

Job = tuple[AttentionSpec, KernelConfig, DeviceProfile]
Result = list[CompiledKernel] | str


def compile_elsewhere(jobs: Sequence[Job], processes: int = 2) -> list[Result]:
    """The result of each job, compiled in that many other processes."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    workers = [
        subprocess.Popen([sys.executable, __file__], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(processes)
    ]
    for number, worker in enumerate(workers):
        assert worker.stdin is not None
        with worker.stdin as pipe:
            pickle.dump(list(jobs[number::processes]), pipe)
    results: list[Result] = [""] * len(jobs)
    for number, worker in enumerate(workers):
        assert worker.stdout is not None
        with worker.stdout as pipe:
            results[number::processes] = pickle.load(pipe)
        assert worker.wait() == 0
    return results


def _compile_all(jobs: Iterable[Job]) -> list[Result]:
    results: list[Result] = []
    for spec, config, profile in jobs:
        try:
            results.append(compile_for_target(spec, config, profile))
        except Exception as error:
            results.append(f"{type(error).__name__}: {error}")
    return results


if __name__ == "__main__":
    answers = _compile_all(pickle.load(sys.stdin.buffer))
    pickle.dump(answers, sys.stdout.buffer)
