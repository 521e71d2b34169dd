"""What a process of the compile pool runs. It never touches a GPU: Triton compiles for a named target, and its cache on
disk hands the binary to the process that launches it."""

from __future__ import annotations

import os
import signal
from types import FrameType

from ..config import KernelConfig
from ..device import DeviceProfile
from ..lower.precompile import CompiledKernel, compile_call, example_tensors, kernel_calls, target_of
from ..spec import AttentionSpec

# Behind whatever measures on the same machine.
NICENESS = 10
_DETAIL_CHARACTERS = 300


def start_worker() -> None:
    """Lead a process group of our own, so that an assembler dies with the worker that started it."""
    os.setpgrp()
    os.nice(NICENESS)
    signal.signal(signal.SIGTERM, _end_group)


def _end_group(signum: int, frame: FrameType | None) -> None:
    os.killpg(0, signal.SIGKILL)


def compile_kernel(
    spec: AttentionSpec, config: KernelConfig, profile: DeviceProfile, number: int
) -> CompiledKernel | str:
    """Compile one of the kernels of a launch (by its place in it). What the compiler refuses comes back as text: its
    exceptions do not all survive the way between processes."""
    call = kernel_calls(spec, config, example_tensors(spec, config, "meta"), profile)[number]
    try:
        return compile_call(call, target_of(profile))
    except Exception as error:
        return " ".join(f"{type(error).__name__}: {error}".split())[:_DETAIL_CHARACTERS]
