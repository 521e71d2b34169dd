"""Device time of launches as deployed: under a CUDA graph, cold L2, interleaved rounds in rotating order.

One graph a contestant launches it over every cache in turn. Between two launches stands the small kernel that writes
the queries, as a real layer has one: programmatic launch overlap between two attentions back to back would flatter
itself otherwise. A graph of those small kernels alone is timed in the same rounds, and its median taken off. Before
each replay more memory than L2 holds several times over is read, outside the timed stretch.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from ...tuning.cuda_graph import graph_of
from ..ceiling import REGION_QUANTUM_BYTES, WORD_BYTES, LaunchShape, launch_read
from .contestants import Launch
from .inputs import L2_MULTIPLE, CaseInputs

_FLUSH_SHAPE = LaunchShape(4096, 8, 8)
# Rounds that are thrown away: they bring clocks up, and code and graphs back into caches.
WARM_ROUNDS = 1
# A launch takes more than nothing, whatever the clock says of a tiny one.
_LEAST_US = 0.01


class Clock(Protocol):
    """Whoever times the launches of one case."""

    def prepare(self, launch: Launch) -> Any:
        """What ``rounds`` times for it, warmed up. Raises whatever the launch does."""

    def rounds(self, prepared: Sequence[Any], rounds: int) -> list[list[float]]:
        """Microseconds per launch: one sample for each of ``prepared`` and each round, interleaved."""


class GraphClock:
    """The clock of a GPU, for the caches of ``inputs``."""

    def __init__(self, inputs: CaseInputs) -> None:
        self._inputs = inputs
        self._device = inputs.device
        properties = torch.cuda.get_device_properties(self._device)
        quanta = math.ceil(L2_MULTIPLE * properties.L2_cache_size / REGION_QUANTUM_BYTES)
        words = quanta * REGION_QUANTUM_BYTES // WORD_BYTES
        self._flushed = torch.zeros(words, dtype=torch.int32, device=self._device)
        self._sink = torch.empty(words // 2048, dtype=torch.int32, device=self._device)
        self._sm_count = properties.multi_processor_count
        self._spacers = graph_of(self._all(None), self._device)

    def prepare(self, launch: Launch) -> torch.cuda.CUDAGraph:
        return graph_of(self._all(launch), self._device)

    def rounds(self, prepared: Sequence[torch.cuda.CUDAGraph], rounds: int) -> list[list[float]]:
        everyone = [*prepared, self._spacers]
        events: list[list[tuple[torch.cuda.Event, torch.cuda.Event]]] = [[] for _ in everyone]
        for number in range(rounds + WARM_ROUNDS):
            for offset in range(len(everyone)):
                index = (number + offset) % len(everyone)
                events[index].append(self._timed(everyone[index]))
        torch.cuda.synchronize(self._device)
        times = [[start.elapsed_time(end) * 1e3 for start, end in pairs[WARM_ROUNDS:]] for pairs in events]
        return per_launch(times, self._inputs.caches)

    def _all(self, launch: Launch | None) -> Callable[[], None]:
        def work() -> None:
            for cache in range(self._inputs.caches):
                self._inputs.write_queries(cache)
                if launch is not None:
                    launch(cache)

        return work

    def _timed(self, graph: torch.cuda.CUDAGraph) -> tuple[torch.cuda.Event, torch.cuda.Event]:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        launch_read(self._flushed, self._sink, _FLUSH_SHAPE, self._sm_count)
        start.record()
        graph.replay()
        end.record()
        return start, end


def per_launch(times_us: Sequence[Sequence[float]], caches: int) -> list[list[float]]:
    """Microseconds per launch from those of whole graphs, the last of which holds no launch but what stands between:
    its median is taken off the others."""
    *graphs, spacers = times_us
    between = statistics.median(spacers)
    return [[max(_LEAST_US, (sample - between) / caches) for sample in samples] for samples in graphs]
