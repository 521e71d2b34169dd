"""Step times: rounds that interleave the variants, warm-up outside, fill level restored outside.

Two times per round and variant. *Burst*: steps back to back, as deployed, so that the host runs ahead of the device;
device time from the first step's start to the last one's end, over the number of steps. *Synchronous*: one step at a
time with the host waiting for it, which adds the host's guards, Python and launch. A step reads far more than L2 holds,
so it finds L2 cold.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from .device_clock import device_us
from .rounds import WARM_STEPS, Rounds
from .samples import Samples
from .state import StepState
from .step import DecodeStep, synchronize


@dataclass
class StepTimes:
    """Times of one variant. ``dispatch`` is how long the host takes to hand over a step without waiting for it."""

    burst: Samples = field(default_factory=Samples)
    synchronous: Samples = field(default_factory=Samples)
    dispatch: Samples = field(default_factory=Samples)

    def to_dict(self) -> dict[str, object]:
        return {name: getattr(self, name).to_dict() for name in ("burst", "synchronous", "dispatch")}


def time_steps(steps: Sequence[DecodeStep], held: int, plan: Rounds) -> list[StepTimes]:
    """Time each step in turn, round after round. The order rotates; the first round is thrown away."""
    times = [StepTimes() for _ in steps]
    for number in range(plan.rounds + 1):
        for offset in range(len(steps)):
            index = (number + offset) % len(steps)
            sample = StepTimes() if number == 0 else times[index]
            _time_round(steps[index], held, plan, sample)
    return times


def _time_round(step: DecodeStep, held: int, plan: Rounds, times: StepTimes) -> None:
    state = step.state
    step.select()
    _warm(step, state, plan.first_length(held))
    times.burst.extend([burst_us(step, plan.burst_steps, state.token.device)])
    _warm(step, state, plan.first_length(held))
    for _ in range(plan.synchronous_steps):
        dispatch_us, synchronous_us = _synchronous_us(step, state.token.device)
        times.dispatch.extend([dispatch_us])
        times.synchronous.extend([synchronous_us])


def _warm(step: DecodeStep, state: StepState, length: int) -> None:
    """Bring the step's code and graph back, then the fill level. Does not wait, so the host stays ahead."""
    state.set_length(length)
    for _ in range(WARM_STEPS):
        step()
    state.set_length(length)


def burst_us(step: Callable[[], torch.Tensor], steps: int, device: torch.device) -> float:
    """Mean microseconds per step over ``steps`` back-to-back steps: device time on a GPU, host time elsewhere."""

    def run() -> None:
        for _ in range(steps):
            step()

    if device.type == "cuda":
        return device_us(run) / steps
    started = time.perf_counter()
    run()
    return (time.perf_counter() - started) / steps * 1e6


def _synchronous_us(step: Callable[[], torch.Tensor], device: torch.device) -> tuple[float, float]:
    """Microseconds until the call returns, and until its result is there."""
    synchronize(device)
    started = time.perf_counter()
    step()
    returned = time.perf_counter()
    synchronize(device)
    return (returned - started) * 1e6, (time.perf_counter() - started) * 1e6
