"""Timing configurations of one key on the GPU, as deployed.

One CUDA graph per configuration launches it over several caches in turn. Between two launches stands the small kernel
that a real layer has before its attention (one that writes the queries): programmatic launch overlap between two
attentions, which no model has, would flatter itself otherwise. A graph of those kernels alone is timed as well and
subtracted. Before each replay more memory than L2 holds several times over is read, so caches are found cold; that read
lies outside the timed stretch.

Mask, bounds and lengths are the same tensors in every launch, as layers share them, so that filling them anew makes the
same graph run at another fill level. So is the table of a paged cache, whose pages are shuffled.

In which order the sequences of a ragged batch hold more or fewer keys decides which programs wait for which, and no
order is a user's: round by round a ragged fill takes the next of RAGGED_ORDERS.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..bench.ceiling import REGION_QUANTUM_BYTES, WORD_BYTES, LaunchShape, launch_read
from ..config import KernelConfig
from ..database.key import TuningKey
from ..database.record import FillTiming
from ..lower.launch import launch_decode
from ..recognize.bounds import mask_bounds
from ..spec import AS_THE_DTYPE_SAYS, MaskKind
from .ceilings import Ceilings
from .cuda_graph import graph_of
from .errors import KeyTooLargeError
from .inputs import prefix_mask, ragged_lengths, ragged_mask, random_cache, random_queries, random_sink, shuffled_table
from .protocol import RAGGED_FILL, TrialResult, fills_of, objective_us

# What is read between two replays, in multiples of L2.
FLUSH_L2_MULTIPLE = 4
_FLUSH_SHAPE = LaunchShape(4096, 8, 8)
# Caches that a graph goes through: as many as these bytes hold, within limits.
CACHES_BYTES = 2 << 30
MAX_CACHES = 16
# Of the free memory, what caches may take.
MEMORY_FRACTION = 0.6
FIRST_REPLAYS = 3
REPLAYS = 9
FINAL_ROUNDS = 21
# Of the lengths of a ragged batch. The finals see each equally often.
RAGGED_ORDERS = 7
# A trial that is slower than the best of its key by this much is not measured further.
HOPELESS = 1.4


@dataclass(frozen=True)
class Held:
    """What each sequence holds, ready to be copied into the tensors that the graphs read."""

    mask: Tensor | None = None
    bounds: Tensor | None = None
    lengths: Tensor | None = None


@dataclass(frozen=True)
class Fill:
    """One fill level: ``held`` keys a sequence on average, in each of ``orders``."""

    held: int
    kv_bytes: int
    orders: tuple[Held, ...]


@dataclass
class Session:
    """The operands of one key on the device, and the best objective seen so far."""

    key: TuningKey
    device: torch.device
    ceilings: Ceilings
    seed: int = 0
    best_us: float = math.inf

    def __post_init__(self) -> None:
        """Raises:
        KeyTooLargeError: not even one cache fits.
        """
        spec = self.spec = self.key.spec()
        properties = torch.cuda.get_device_properties(self.device)
        free_bytes, _ = torch.cuda.mem_get_info(self.device)
        wanted = max(1, min(MAX_CACHES, CACHES_BYTES // max(1, spec.capacity_bytes)))
        fitting = int(free_bytes * MEMORY_FRACTION) // max(1, spec.capacity_bytes)
        if fitting < 1:
            raise KeyTooLargeError(self.key, spec.capacity_bytes, free_bytes)
        generator = torch.Generator(self.device).manual_seed(self.seed)
        self.caches = [random_cache(spec, generator) for _ in range(min(wanted, fitting))]
        self.q_source = random_queries(spec, generator)
        self.attention_sink = random_sink(spec, generator)
        self.queries = [torch.empty_like(self.q_source) for _ in self.caches]
        self.fills = [self._fill(share) for share in fills_of(self.key)]
        full = self.fills[-1].orders[0]
        self.mask, self.bounds, self.lengths = _like(full.mask), _like(full.bounds), _like(full.lengths)
        self.table = shuffled_table(spec, self.device, self.seed) if spec.page_size else None
        self.expanded = (
            None if self.mask is None else self.mask.expand(spec.batch, spec.query_heads, spec.q_len, spec.kv_len)
        )
        quanta = math.ceil(FLUSH_L2_MULTIPLE * properties.L2_cache_size / REGION_QUANTUM_BYTES)
        words = quanta * REGION_QUANTUM_BYTES // WORD_BYTES
        self.flushed = torch.zeros(words, dtype=torch.int32, device=self.device)
        self.sink = torch.empty(words // 2048, dtype=torch.int32, device=self.device)
        self.sm_count = properties.multi_processor_count
        self.spacers = self._graph(self._write_queries)

    def _fill(self, share: float) -> Fill:
        spec = self.spec
        held = max(1, round(share * spec.kv_len))
        ragged = share == RAGGED_FILL and spec.batch > 1
        read = min(spec.q_len, held) if spec.is_causal and spec.mask is MaskKind.NONE else held
        kv_bytes = spec.kv_bytes_per_key * read
        if not ragged:
            return Fill(held, kv_bytes, (self._uniform(held),))
        return Fill(held, kv_bytes, tuple(self._ragged(order) for order in range(RAGGED_ORDERS)))

    def _uniform(self, held: int) -> Held:
        if self.spec.mask is MaskKind.LENGTHS:
            return Held(lengths=torch.full((self.spec.batch,), held, dtype=torch.int32, device=self.device))
        return self._masked(prefix_mask(self.spec, held, self.device))

    def _ragged(self, order: int) -> Held:
        if self.spec.mask is MaskKind.LENGTHS:
            return Held(lengths=ragged_lengths(self.spec, self.device, order).to(torch.int32))
        return self._masked(ragged_mask(self.spec, self.device, order))

    def _masked(self, mask: Tensor | None) -> Held:
        return Held(mask, None if mask is None else mask_bounds(mask, self.spec.kv_len))

    # One configuration

    def trial(self, config: KernelConfig, error: float) -> TrialResult:
        """Time ``config`` at every fill level; only roughly when it has no hope of being the best."""
        graph = self._graph(lambda: self._launches(config))
        samples = self._rounds([graph], range(FIRST_REPLAYS))[0]
        if _objective(samples) < HOPELESS * self.best_us:
            more = self._rounds([graph], range(FIRST_REPLAYS, REPLAYS))[0]
            samples = [first + second for first, second in zip(samples, more, strict=True)]
        result = self._result(samples, error)
        self.best_us = min(self.best_us, result.objective_us)
        return result

    def finals(self, configs: Sequence[KernelConfig], errors: Sequence[float]) -> list[TrialResult]:
        """Time all in interleaved rounds, whose order rotates."""
        graphs = [self._graph(lambda config=config: self._launches(config)) for config in configs]  # type: ignore[misc]
        measured = self._rounds(graphs, range(FINAL_ROUNDS))
        return [self._result(samples, error) for samples, error in zip(measured, errors, strict=True)]

    def _result(self, samples: list[list[float]], error: float) -> TrialResult:
        fills = tuple(
            FillTiming(fill.held, fill.kv_bytes, statistics.median(taken), self.ceilings.us(fill.kv_bytes))
            for fill, taken in zip(self.fills, samples, strict=True)
        )
        return TrialResult(fills, tuple(tuple(taken) for taken in samples), error)

    # What a graph holds

    def _write_queries(self) -> None:
        for query in self.queries:
            self._write(query)

    def _write(self, query: Tensor) -> None:
        """By a kernel: a copy would be captured as one of the driver's, which no launch can overlap."""
        torch.mul(self.q_source, 1.0, out=query)

    def _launches(self, config: KernelConfig) -> None:
        spec = self.spec
        for query, cache in zip(self.queries, self.caches, strict=True):
            self._write(query)
            launch_decode(
                query, cache.k, cache.v, self.expanded, self.bounds, is_causal=spec.is_causal, scale=spec.scale,
                heads_first=spec.out_heads_first, config=config, k_scale=cache.k_scale, v_scale=cache.v_scale,
                lengths=self.lengths, table=self.table, softcap=spec.softcap, sink=self.attention_sink,
                k_zero=cache.k_zero, v_zero=cache.v_zero, rope=cache.rope,
                storage=AS_THE_DTYPE_SAYS if spec.cache is None else spec.cache.storage,
            )  # fmt: skip

    def _graph(self, work: Callable[[], None]) -> torch.cuda.CUDAGraph:
        self._set(self.fills[-1].orders[0])
        return graph_of(work, self.device)

    # Time

    def _set(self, held: Held) -> None:
        for used, filled in ((self.mask, held.mask), (self.bounds, held.bounds), (self.lengths, held.lengths)):
            if used is not None and filled is not None:
                used.copy_(filled)

    def _rounds(self, graphs: list[torch.cuda.CUDAGraph], rounds: range) -> list[list[list[float]]]:
        """Microseconds per launch: for each graph, for each fill level, a sample a round. The spacers are timed in the
        same rounds; their median is taken off."""
        taken: list[list[list[float]]] = [[] for _ in graphs]
        for fill in self.fills:
            events: list[list[tuple[torch.cuda.Event, torch.cuda.Event]]] = [[] for _ in [*graphs, None]]
            everyone = [*graphs, self.spacers]
            for number in rounds:
                self._set(fill.orders[number % len(fill.orders)])
                for offset in range(len(everyone)):
                    index = (number + offset) % len(everyone)
                    events[index].append(self._timed(everyone[index]))
            torch.cuda.synchronize(self.device)
            times = [[start.elapsed_time(end) * 1e3 for start, end in pairs] for pairs in events]
            spacers = statistics.median(times.pop())
            for index, samples in enumerate(times):
                # A launch takes more than nothing, whatever the clock says of a tiny one.
                taken[index].append([max(0.01, (sample - spacers) / len(self.caches)) for sample in samples])
        return taken

    def _timed(self, graph: torch.cuda.CUDAGraph) -> tuple[torch.cuda.Event, torch.cuda.Event]:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        launch_read(self.flushed, self.sink, _FLUSH_SHAPE, self.sm_count)
        start.record()
        graph.replay()
        end.record()
        return start, end


def _like(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.clone()


def _objective(samples: list[list[float]]) -> float:
    return objective_us([statistics.median(taken) for taken in samples])
