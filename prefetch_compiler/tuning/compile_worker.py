"""What a process of the compile pool runs. It never touches a GPU: Triton compiles for a named target, and its cache on
disk hands the binary to the process that launches it."""

from __future__ import annotations

import os

from ..config import KernelConfig
from ..device import DeviceProfile
from ..lower.precompile import CompiledKernel, compile_call, example_tensors, kernel_calls, target_of
from ..spec import AttentionSpec
from .contained import die_with, lead_process_group

# Behind whatever measures on the same machine.
NICENESS = 10
_DETAIL_CHARACTERS = 300


def start_worker(parent: int) -> None:
    """Nothing of this process outlives the job, an assembler that never ends least of all."""
    die_with(parent)
    lead_process_group()
    os.nice(NICENESS)


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
