"""What a kernel can do to a GPU, as tasks for a worker process."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch
import triton
import triton.language as tl

from prefetch_compiler.tuning.bench_worker import Reply, guarded
from prefetch_compiler.tuning.protocol import Outcome

from ..tuning.faults import result


@triton.jit
def write_far_away(pointer, offset):
    tl.store(pointer + offset, 1)


@triton.jit
def wait_for_what_never_comes(pointer):
    value = tl.load(pointer, volatile=True)
    while value == 0:
        value = tl.load(pointer, volatile=True)
    tl.store(pointer + 1, value)


def memory() -> torch.Tensor:
    return torch.zeros(16, dtype=torch.int32, device="cuda")


def _uses_the_gpu() -> Outcome:
    assert memory().add_(1).sum().item() == 16
    return result()


def fine() -> Reply:
    return guarded([_uses_the_gpu])


def holds_memory(size: int, path: Path) -> Reply:
    """``size`` bytes, and does not let go of them."""
    held = torch.zeros(size, dtype=torch.uint8, device="cuda")
    torch.cuda.synchronize()
    path.write_text(str(os.getpid()))
    while held is not None:
        time.sleep(1)
    return fine()


def _write_far_away() -> Outcome:
    write_far_away[(1,)](memory(), 1 << 40)
    return result()


def illegal_access() -> Reply:
    return guarded([_write_far_away])


def endless_kernel() -> Reply:
    wait_for_what_never_comes[(1,)](memory())
    torch.cuda.synchronize()
    return fine()


def _take_too_much() -> Outcome:
    torch.empty(1 << 45, dtype=torch.uint8, device="cuda")
    return result()


def out_of_memory() -> Reply:
    return guarded([_take_too_much])
