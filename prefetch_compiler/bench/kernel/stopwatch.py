"""Time of a launch as deployed: under a CUDA graph, cold L2, candidates interleaved.

One CUDA graph a candidate launches it over every cache of the case in turn. Between two launches stands the small
kernel that a layer has before its attention (one that writes the queries): programmatic launch overlap between two
attentions, which no model has, would flatter itself otherwise. A graph of those kernels alone is timed in the same
rounds, and its median subtracted. Before each replay more memory than L2 holds several times over is read, outside the
timed stretch.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...tuning.cuda_graph import graph_of
from ..ceiling import REGION_QUANTUM_BYTES, WORD_BYTES, LaunchShape, launch_read
from .operands import L2_MULTIPLE, Operands
from .peers.peer import Attend

_FLUSH_SHAPE = LaunchShape(4096, 8, 8)
_SINK_BLOCK_WORDS = 2048
# Twice, so that the host has handed over the replay by the time that the device comes to it.
FLUSHES = 2
# A candidate this many times slower than the fastest is timed in a few rounds only.
HOPELESS = 20.0
HOPELESS_ROUNDS = 3
# A launch takes more than nothing, whatever the clock says of a tiny one.
LEAST_US = 0.01


@dataclass(frozen=True)
class Recording:
    """A captured candidate. ``output`` (batch, query_heads, head_dim) is what its last launch writes, over the last
    cache, whenever the graph is replayed. ``attend`` owns workspaces and plans that the graph goes on using."""

    graph: torch.cuda.CUDAGraph
    output: Tensor
    attend: Attend


class Stopwatch:
    """Everything that timing one case needs, on the device."""

    def __init__(self, operands: Operands, device: torch.device) -> None:
        properties = torch.cuda.get_device_properties(device)
        self._operands, self._device = operands, device
        self._queries = [torch.empty_like(operands.q) for _ in operands.caches]
        quanta = math.ceil(L2_MULTIPLE * properties.L2_cache_size / REGION_QUANTUM_BYTES)
        words = quanta * REGION_QUANTUM_BYTES // WORD_BYTES
        self._flushed = torch.zeros(words, dtype=torch.int32, device=device)
        self._sink = torch.empty(words // _SINK_BLOCK_WORDS, dtype=torch.int32, device=device)
        self._sm_count = properties.multi_processor_count
        self._spacers = graph_of(self._write_queries, device)

    def record(self, attend: Attend) -> Recording:
        """Run ``attend`` over every cache, then capture the same."""
        last: list[Tensor] = []

        def launches() -> None:
            for query, (k, v) in zip(self._queries, self._operands.caches, strict=True):
                self._write(query)
                last[:] = [attend(query, k, v)]

        graph = graph_of(launches, self._device)
        return Recording(graph, last[0], attend)

    def replayed(self, recording: Recording) -> Tensor:
        """The output of a replay that found NaN where it had to write."""
        recording.output.fill_(math.nan)
        recording.graph.replay()
        torch.cuda.synchronize(self._device)
        return recording.output

    def rounds(self, recordings: Sequence[Recording], rounds: int) -> list[list[float]]:
        """Microseconds per launch, for each recording a sample a round. The first round is thrown away, but for what it
        says of who is hopelessly slow."""
        everyone = [*(recording.graph for recording in recordings), self._spacers]
        first = [times[0] for times in self._replays(everyone, [range(len(everyone))])]
        best = min(first[:-1], default=0.0)
        allowed = [HOPELESS_ROUNDS if time > HOPELESS * best else rounds for time in first[:-1]] + [rounds]
        taken = self._replays(everyone, rotation(allowed, rounds))
        spacers = statistics.median(taken.pop())
        return [[max(LEAST_US, (time - spacers) / len(self._queries)) for time in times] for times in taken]

    def _replays(self, graphs: Sequence[torch.cuda.CUDAGraph], order: Iterable[Sequence[int]]) -> list[list[float]]:
        """Microseconds of each replay of each graph. A round is queued as a whole, so that the host runs ahead."""
        taken: list[list[float]] = [[] for _ in graphs]
        for indices in order:
            events = [self._queue(graphs[index]) for index in indices]
            torch.cuda.synchronize(self._device)
            for index, (start, end) in zip(indices, events, strict=True):
                taken[index].append(float(start.elapsed_time(end)) * 1e3)
        return taken

    def _queue(self, graph: torch.cuda.CUDAGraph) -> tuple[torch.cuda.Event, torch.cuda.Event]:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        for _ in range(FLUSHES):
            launch_read(self._flushed, self._sink, _FLUSH_SHAPE, self._sm_count)
        start.record()
        graph.replay()
        end.record()
        return start, end

    def _write_queries(self) -> None:
        for query in self._queries:
            self._write(query)

    def _write(self, query: Tensor) -> None:
        """By a kernel: a copy would be captured as one of the driver's, which no launch can overlap."""
        torch.mul(self._operands.q, 1.0, out=query)


def rotation(allowed: Sequence[int], rounds: int) -> Iterator[list[int]]:
    """The order of measuring: every round starts one further on, and leaves out who has had its rounds."""
    for number in range(rounds):
        order = [(number + offset) % len(allowed) for offset in range(len(allowed))]
        yield [index for index in order if number < allowed[index]]
