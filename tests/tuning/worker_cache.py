"""Compiles in Inductor's workers and asks Triton's launcher whether it finds the result. Run as a script, without
TRITON_INTERPRET in its environment; prints JSON. The GPU need not be here (see launcher_sources.py)."""

from __future__ import annotations

import json

import torch
from launcher_sources import SPECS, AbsentGpu
from torch._inductor.async_compile import AsyncCompile
from triton import knobs
from triton.runtime.driver import driver

from prefetch_compiler.config import KernelConfig
from prefetch_compiler.lower.compile_workers import compile_in_workers
from prefetch_compiler.lower.precompile import example_tensors, kernel_calls

CONFIG = KernelConfig(32, 4, 4, 2)


def found_on_disk() -> list[bool]:
    """Whether the launcher takes each kernel from the cache that the workers filled."""
    hits: list[bool] = []
    given = SPECS["bool mask"]
    calls = kernel_calls(given, CONFIG, example_tensors(given, CONFIG, "meta"))
    compile_in_workers(given, CONFIG, torch.device("cuda", 0), len(calls))
    knobs.compilation.listener = lambda **event: hits.append(event["cache_hit"])
    for call in calls:
        call.kernel.warmup(**call.arguments, **call.constants, **call.options, grid=call.grid)
    knobs.compilation.listener = None
    return hits


if __name__ == "__main__":
    driver.set_active(AbsentGpu())
    AsyncCompile.wait_pool_ready()
    print(json.dumps(found_on_disk()))
