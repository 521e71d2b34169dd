"""Device time of a step, kernel by kernel, from torch.profiler: it shows what binds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

PROFILED_STEPS = 5
TOP = 12


@dataclass(frozen=True)
class KernelTime:
    """Launches and microseconds per step of all kernels of one name."""

    name: str
    launches: float
    total_us: float


@dataclass(frozen=True)
class StepProfile:
    """Where a step's device time goes.

    Attributes:
        busy_us: microseconds per step in which at least one kernel runs.
        span_us: microseconds per step from the first kernel's start to the last one's end, so gaps included.
        kernels: every kernel name, the longest first. With overlapping launches their sum may exceed ``busy_us``.
    """

    busy_us: float
    span_us: float
    kernels: tuple[KernelTime, ...]

    @property
    def total_us(self) -> float:
        return sum(kernel.total_us for kernel in self.kernels)

    def to_dict(self) -> dict[str, Any]:
        return {
            "busy_us": self.busy_us,
            "span_us": self.span_us,
            "total_us": self.total_us,
            "kernels": [asdict(kernel) for kernel in self.kernels],
        }

    def __str__(self) -> str:
        lines = [f"{self.total_us:10.1f} us in kernels, {self.busy_us:.1f} us busy, {self.span_us:.1f} us span"]
        for kernel in self.kernels[:TOP]:
            lines.append(f"{kernel.total_us:10.1f} us {kernel.launches:6.1f}x  {kernel.name[:100]}")
        rest = self.kernels[TOP:]
        if rest:
            lines.append(f"{sum(k.total_us for k in rest):10.1f} us {sum(k.launches for k in rest):6.1f}x  the rest")
        return "\n".join(lines)


def profile_step(step: Callable[[], torch.Tensor], device: torch.device, steps: int = PROFILED_STEPS) -> StepProfile:
    """Profile ``steps`` back-to-back steps on a GPU. Warm them up before."""
    torch.cuda.synchronize(device)
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(steps):
            step()
        torch.cuda.synchronize(device)
    events = [
        (event.name, float(event.time_range.start), float(event.time_range.end))
        for event in profiler.events()
        if event.device_type.name == "CUDA" and not getattr(event, "is_user_annotation", False)
    ]
    return summarize(events, steps)


def summarize(events: Iterable[tuple[str, float, float]], steps: int) -> StepProfile:
    """Group ``(name, start_us, end_us)`` events of ``steps`` steps by name."""
    events = list(events)
    intervals = sorted((start, end) for _, start, end in events)
    by_name: dict[str, list[float]] = {}
    for name, start, end in events:
        by_name.setdefault(name, []).append(end - start)
    kernels = [KernelTime(name, len(times) / steps, sum(times) / steps) for name, times in by_name.items()]
    kernels.sort(key=lambda kernel: -kernel.total_us)
    span = max((end for _, end in intervals), default=0.0) - min((start for start, _ in intervals), default=0.0)
    return StepProfile(_covered(intervals) / steps, span / steps, tuple(kernels))


def _covered(intervals: list[tuple[float, float]]) -> float:
    """Length of the union of intervals sorted by start."""
    covered, reached = 0.0, float("-inf")
    for start, end in intervals:
        covered += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return covered
