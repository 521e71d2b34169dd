"""Cold compile time of our backend beside plain Inductor's: every sample in a new process with empty caches.

Run as a module it is that process: it reads a job from its argument and prints one JSON line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch._dynamo.utils import compilation_time_metrics

from .case import Case
from .errors import CompileJobError
from .model import find_bench_model
from .state import StepState
from .step import DecodeStep, synchronize
from .variant import BASELINE, OURS, Variant, parse_variants

JOB_TIMEOUT_S = 900
# Compile phases shorter than this are left out of the result.
SHORTEST_PHASE_S = 0.05


@dataclass(frozen=True)
class CompileJob:
    """One cold compile. ``dtype`` is a torch dtype's name."""

    variant: str
    model: str
    layers: int
    case: str
    mode: str
    dtype: str
    device: str


@dataclass
class CompileTime:
    """Seconds of the first step, sample by sample, and what PyTorch counted for each phase of the last one."""

    variant: Variant
    first_call_s: list[float] = field(default_factory=list)
    phases_s: dict[str, float] = field(default_factory=dict)
    failure: str | None = None

    @property
    def median_s(self) -> float | None:
        return float(np.median(self.first_call_s)) if self.first_call_s else None

    def to_dict(self) -> dict[str, Any]:
        return {
            "variant": self.variant.name,
            "median_s": self.median_s,
            "first_call_s": self.first_call_s,
            "phases_s": self.phases_s,
            "failure": self.failure,
        }


@dataclass
class CompileComparison:
    """Inductor and ours, compiled in turn on the same case."""

    case: Case
    inductor: CompileTime = field(default_factory=lambda: CompileTime(BASELINE))
    ours: CompileTime = field(default_factory=lambda: CompileTime(OURS))

    @property
    def overhead(self) -> float | None:
        """How much longer ours takes, as a fraction of Inductor's median; negative when it is shorter."""
        if self.inductor.median_s is None or self.ours.median_s is None:
            return None
        return self.ours.median_s / self.inductor.median_s - 1

    def to_dict(self) -> dict[str, Any]:
        return {
            "case": str(self.case),
            "overhead": self.overhead,
            "inductor": self.inductor.to_dict(),
            "ours": self.ours.to_dict(),
        }


def compare_compile_time(
    model: str, layers: int, case: Case, mode: str, dtype: torch.dtype, device: torch.device, repeats: int
) -> CompileComparison:
    """``repeats`` cold compiles of each of the two, alternating which goes first."""
    comparison = CompileComparison(case)
    for repeat in range(repeats):
        order = (comparison.inductor, comparison.ours)
        for timed in order if repeat % 2 == 0 else order[::-1]:
            job = CompileJob(
                timed.variant.name, model, layers, str(case), mode, str(dtype).removeprefix("torch."), str(device)
            )
            _add_sample(timed, job)
    return comparison


def _add_sample(timed: CompileTime, job: CompileJob) -> None:
    if timed.failure is not None:
        return
    try:
        reply = run_in_new_process(job)
    except (subprocess.SubprocessError, CompileJobError) as error:
        timed.failure = f"{type(error).__name__}: {error}"[-300:]
        return
    timed.first_call_s.append(reply["first_call_s"])
    timed.phases_s = reply["phases_s"]


def run_in_new_process(job: CompileJob) -> dict[str, Any]:
    """Run one job with fresh compile caches, which are deleted afterwards.

    Raises:
        CompileJobError: the process failed; the message ends with its last lines.
        subprocess.TimeoutExpired: it did not end.
    """
    checkout = str(Path(__file__).parents[2])
    with tempfile.TemporaryDirectory(prefix="kvprefetch-compile-") as folder:
        environment = {
            **os.environ,
            "TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor",
            "TRITON_CACHE_DIR": f"{folder}/triton",
            "PYTHONPATH": os.pathsep.join(filter(None, (checkout, os.environ.get("PYTHONPATH")))),
        }
        command = [sys.executable, "-m", __name__, json.dumps(vars(job))]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=JOB_TIMEOUT_S, check=False
        )
    if done.returncode != 0:
        raise CompileJobError(done.returncode, done.stderr)
    reply: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return reply


def run_job(job: CompileJob) -> dict[str, Any]:
    """Time the first call of one variant's decode step, in this process. Inductor itself is started before: its
    imports and its compile workers are no part of either time."""
    device, dtype, case = torch.device(job.device), getattr(torch, job.dtype), Case.parse(job.case)
    (variant,) = parse_variants(job.variant)
    model = find_bench_model(job.model, job.layers).load(device, dtype)
    state = StepState.create(model, case.batch, case.capacity)
    state.fill(case.held)
    _start_inductor(device)
    compilation_time_metrics.clear()
    step = DecodeStep(variant, state, job.mode)
    step.select()
    synchronize(device)
    started = time.perf_counter()
    step()
    synchronize(device)
    first_call_s = time.perf_counter() - started
    phases = {name: sum(times) for name, times in compilation_time_metrics.items()}
    return {
        "first_call_s": first_call_s,
        "phases_s": {name: seconds for name, seconds in phases.items() if seconds >= SHORTEST_PHASE_S},
    }


def _start_inductor(device: torch.device) -> None:
    compiled = torch.compile(lambda x: torch.nn.functional.silu(x).sum(-1), backend="inductor")
    with torch.no_grad():
        compiled(torch.ones(64, 64, device=device))
    synchronize(device)


if __name__ == "__main__":
    print(json.dumps(run_job(CompileJob(**json.loads(sys.argv[1])))))
