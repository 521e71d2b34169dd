"""The read ceiling: how fast a kernel that only reads gets through a given number of bytes on this device.

The best of several launch shapes, each under a CUDA graph with cold L2: the graph reads distinct regions, one launch
each, that together exceed L2 several times.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
import triton
import triton.language as tl

from .device_clock import device_us
from .samples import Samples

WORD_BYTES = 4
# A region is a whole number of the largest block, so that the kernel needs no mask.
REGION_QUANTUM_BYTES = 32768 * WORD_BYTES
L2_MULTIPLE = 4
REPLAYS = 7
# Of the free memory, how much a region may take before the ceiling is measured over fewer bytes than asked.
MEMORY_FRACTION = 0.8


@dataclass(frozen=True)
class LaunchShape:
    """Words per block, warps, and programs per SM (0: a program for every block)."""

    block_words: int
    num_warps: int
    programs_per_sm: int

    def programs(self, blocks: int, sm_count: int) -> int:
        return blocks if self.programs_per_sm == 0 else min(blocks, self.programs_per_sm * sm_count)


LAUNCH_SHAPES = (
    LaunchShape(2048, 4, 8),
    LaunchShape(2048, 4, 16),
    LaunchShape(4096, 4, 4),
    LaunchShape(4096, 4, 8),
    LaunchShape(4096, 8, 8),
    LaunchShape(8192, 8, 2),
    LaunchShape(8192, 8, 4),
    LaunchShape(16384, 8, 2),
    LaunchShape(16384, 16, 2),
    LaunchShape(4096, 4, 0),
    LaunchShape(8192, 8, 0),
    LaunchShape(16384, 8, 0),
    LaunchShape(32768, 16, 0),
)


@dataclass(frozen=True)
class ReadCeiling:
    """The best launch shape's rate. ``region_bytes`` is what one launch reads: what was asked, or what fits."""

    region_bytes: int
    regions: int
    shape: LaunchShape
    bytes_per_us: float
    samples: Samples

    @property
    def tb_per_s(self) -> float:
        return self.bytes_per_us * 1e-6

    def to_dict(self) -> dict[str, object]:
        return {
            "region_bytes": self.region_bytes,
            "regions": self.regions,
            "shape": asdict(self.shape),
            "tb_per_s": self.tb_per_s,
            "launch": self.samples.to_dict(),
        }


@triton.jit(do_not_specialize=["blocks"])  # type: ignore[untyped-decorator]
def read_kernel(source_ptr, sink_ptr, blocks, BLOCK_WORDS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Read ``blocks`` blocks of int32 words, strided over the programs; store one sum per program so that no load is
    dead."""
    program = tl.program_id(0)
    words = tl.arange(0, BLOCK_WORDS)
    total = tl.zeros((BLOCK_WORDS,), tl.int32)
    for block in range(program, blocks, tl.num_programs(0)):
        total += tl.load(source_ptr + tl.cast(block, tl.int64) * BLOCK_WORDS + words)
    tl.store(sink_ptr + program, tl.sum(total))


def launch_read(region: torch.Tensor, sink: torch.Tensor, shape: LaunchShape, sm_count: int) -> None:
    """Read ``region`` (int32 words, a multiple of the block) once. ``sink`` has a word for every program."""
    blocks = region.numel() // shape.block_words
    programs = shape.programs(blocks, sm_count)
    read_kernel[(programs,)](region, sink, blocks, BLOCK_WORDS=shape.block_words, num_warps=shape.num_warps)


def region_layout(byte_count: int, l2_bytes: int, free_bytes: int) -> tuple[int, int]:
    """``(region_bytes, regions)``: regions of ``byte_count``, rounded up, as many as exceed L2 :data:`L2_MULTIPLE`
    times; one smaller region where the memory does not suffice."""
    region = math.ceil(byte_count / REGION_QUANTUM_BYTES) * REGION_QUANTUM_BYTES
    regions = max(1, math.ceil(L2_MULTIPLE * l2_bytes / region))
    if region * regions > free_bytes * MEMORY_FRACTION:
        fitting = int(free_bytes * MEMORY_FRACTION) // REGION_QUANTUM_BYTES
        return max(1, fitting) * REGION_QUANTUM_BYTES, 1
    return region, regions


def measure_ceiling(byte_count: int, device: torch.device) -> ReadCeiling:
    """The read ceiling of a GPU over ``byte_count`` bytes. Allocates that much while it runs."""
    properties = torch.cuda.get_device_properties(device)
    free_bytes, _ = torch.cuda.mem_get_info(device)
    region_bytes, regions = region_layout(byte_count, properties.L2_cache_size, free_bytes)
    words = torch.empty((regions, region_bytes // WORD_BYTES), dtype=torch.int32, device=device).random_()
    sink = torch.empty(words.shape[1] // 2048, dtype=torch.int32, device=device)

    def rate(shape: LaunchShape) -> Samples:
        def read_all() -> None:
            for region in words:
                launch_read(region, sink, shape, properties.multi_processor_count)

        return _replay_us(read_all, regions)

    measured = [(rate(shape), shape) for shape in LAUNCH_SHAPES]
    samples, shape = min(measured, key=lambda pair: pair[0].median_us)
    return ReadCeiling(region_bytes, regions, shape, region_bytes / samples.median_us, samples)


def _replay_us(work: Callable[[], None], launches: int) -> Samples:
    """Microseconds per launch of ``work``, captured as a CUDA graph, over several replays."""
    work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    graph.replay()
    samples = Samples()
    for _ in range(REPLAYS):
        samples.extend([device_us(graph.replay) / launches])
    return samples
