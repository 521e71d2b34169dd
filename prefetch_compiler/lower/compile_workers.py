"""Compile kernels in Inductor's compile workers. Triton's front end is Python: in a thread of the process that lowers
a graph, it would take Python's lock from Inductor for about as long as it runs.

Only Triton's cache on disk is filled. Whatever goes wrong here, the process itself then compiles what it does not find.
"""

from __future__ import annotations

import logging
import os
from concurrent.futures import Future
from typing import Any

import torch

from ..config import KernelConfig
from ..spec import AttentionSpec

log = logging.getLogger("prefetch_compiler")

# A kernel takes a second or two. A worker that dies is started again with the same job, without end.
TIMEOUT_S = 60.0
# Longer than this for workers to start, and this process has the kernels sooner by itself.
START_TIMEOUT_S = 0.5


def wake_workers() -> None:
    """Ask for the workers ahead of the first kernel, since they take a while to start; never raises."""
    if not torch.cuda.is_available():
        return
    try:
        from torch._inductor.async_compile import AsyncCompile

        AsyncCompile.use_process_pool()
    except Exception as error:
        log.debug("Inductor's workers do not start: %s: %s", type(error).__name__, error)


def compile_in_workers(spec: AttentionSpec, config: KernelConfig, device: torch.device, kernels: int) -> None:
    """Fill Triton's cache with the ``kernels`` kernels of ``spec`` for the present ``device``; never raises."""
    try:
        for job in _submit(spec, config, device, kernels):
            job.result(TIMEOUT_S)
    except Exception as error:
        log.debug("compiling in this process: %s: %s", type(error).__name__, error)


def _submit(spec: AttentionSpec, config: KernelConfig, device: torch.device, kernels: int) -> list[Future[None]]:
    from torch._inductor.async_compile import AsyncCompile
    from torch._inductor.runtime.cache_dir_utils import triton_cache_dir
    from triton.runtime import driver

    AsyncCompile.wait_pool_ready(START_TIMEOUT_S)
    if not AsyncCompile.use_process_pool():
        return []
    index = torch.cuda.current_device() if device.index is None else device.index
    # Inductor sets it at its first kernel. Before that, what a worker compiles would not be looked for there.
    folder = os.environ.setdefault("TRITON_CACHE_DIR", triton_cache_dir(index))
    target = driver.active.get_current_target()
    pool: Any = AsyncCompile.process_pool()
    return [pool.submit(compile_into_cache, spec, config, number, target, folder) for number in range(kernels)]


def compile_into_cache(spec: AttentionSpec, config: KernelConfig, number: int, target: Any, folder: str) -> None:
    """What a worker runs: compile one of the kernels of a launch (by its place in it) into Triton's cache ``folder``.

    Raises:
        triton.CompilationError, triton.OutOfResources or another error of the compiler's.
    """
    import triton
    from triton import knobs

    from .precompile import example_tensors, kernel_calls, source_of

    call = kernel_calls(spec, config, example_tensors(spec, config, "meta"))[number]
    with knobs.cache.scope():
        knobs.cache.dir = folder
        triton.compile(source_of(call), target=target, options=call.options)
