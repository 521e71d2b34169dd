"""Device time on a GPU, by CUDA events."""

from __future__ import annotations

from collections.abc import Callable

import torch


def device_us(work: Callable[[], None]) -> float:
    """Microseconds of the current stream between what ``work`` first and last queues there."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    work()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) * 1e3
