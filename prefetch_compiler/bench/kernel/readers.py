"""Kernels that only read: what the read ceiling of a case is made of.

They read the case's own caches, half of the bytes from K and half from V, in launches that are captured, spaced and
timed as those of everyone else are. Three ways lead to a register: through L1, past it, and through shared memory by
asynchronous copies. All three are tried, because the bytes that an SM can have on their way are limited by something
else in each: L1 is what the kernels before have left of it, as it shares its memory with shared memory.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ...device import DeviceProfile
from ..ceiling import WORD_BYTES, LaunchShape

# Blocks start at whole cache lines.
LINE_WORDS = 32


@dataclass(frozen=True)
class ReaderShape:
    """``launch.block_words`` are words of K and as many of V. ``stages``: blocks on their way to shared memory; 1 for
    none, loads to registers. ``past_l1`` concerns those alone."""

    launch: LaunchShape
    stages: int = 1
    past_l1: bool = False

    def __str__(self) -> str:
        launch = self.launch
        way = f"{self.stages} stages" if self.stages > 1 else ("past L1" if self.past_l1 else "through L1")
        per_sm = launch.programs_per_sm or "all"
        return f"2 x {launch.block_words} words, {launch.num_warps} warps, {per_sm} programs per SM, {way}"


FIRST_SHAPES = (
    ReaderShape(LaunchShape(1024, 4, 8)),
    ReaderShape(LaunchShape(1024, 4, 16)),
    ReaderShape(LaunchShape(2048, 4, 8)),
    ReaderShape(LaunchShape(2048, 4, 0)),
    ReaderShape(LaunchShape(4096, 8, 4)),
    ReaderShape(LaunchShape(4096, 8, 0)),
    ReaderShape(LaunchShape(1024, 4, 16), past_l1=True),
    ReaderShape(LaunchShape(2048, 4, 8), past_l1=True),
    ReaderShape(LaunchShape(2048, 4, 0), past_l1=True),
    ReaderShape(LaunchShape(4096, 8, 0), past_l1=True),
    ReaderShape(LaunchShape(1024, 4, 4), stages=5),
    ReaderShape(LaunchShape(2048, 4, 2), stages=5),
    ReaderShape(LaunchShape(2048, 4, 4), stages=3),
)
# What is tried besides where somebody was faster than the best of the first.
MORE_SHAPES = (
    ReaderShape(LaunchShape(512, 2, 16)),
    ReaderShape(LaunchShape(512, 4, 16)),
    ReaderShape(LaunchShape(2048, 4, 4)),
    ReaderShape(LaunchShape(2048, 8, 8)),
    ReaderShape(LaunchShape(4096, 8, 2)),
    ReaderShape(LaunchShape(8192, 8, 2)),
    ReaderShape(LaunchShape(8192, 8, 0)),
    ReaderShape(LaunchShape(8192, 16, 2)),
    ReaderShape(LaunchShape(16384, 16, 0)),
    ReaderShape(LaunchShape(1024, 4, 8), past_l1=True),
    ReaderShape(LaunchShape(2048, 4, 4), past_l1=True),
    ReaderShape(LaunchShape(4096, 8, 4), past_l1=True),
    ReaderShape(LaunchShape(8192, 8, 0), past_l1=True),
    ReaderShape(LaunchShape(512, 2, 8), stages=5),
    ReaderShape(LaunchShape(1024, 2, 4), stages=4),
    ReaderShape(LaunchShape(1024, 4, 8), stages=3),
    ReaderShape(LaunchShape(2048, 8, 2), stages=4),
    ReaderShape(LaunchShape(4096, 8, 1), stages=5),
    ReaderShape(LaunchShape(4096, 8, 2), stages=3),
)


@triton.jit(do_not_specialize=["blocks", "words"])  # type: ignore[untyped-decorator]
def read_pair_kernel(  # type: ignore[no-untyped-def]
    first_ptr,
    second_ptr,
    sink_ptr,
    blocks,
    words,
    BLOCK_WORDS: tl.constexpr,
    STAGES: tl.constexpr,
    CACHE: tl.constexpr,
    LAUNCH_OVERLAP: tl.constexpr,
):
    """Read ``words`` int32 words of each source, in ``blocks`` blocks that are strided over the programs; the last
    block ends where the words do, and overlaps the one before. One word that depends on all is stored per
    program, so that no load is dead."""
    if LAUNCH_OVERLAP:
        gdc_wait()
        gdc_launch_dependents()
    program = tl.program_id(0)
    lane = tl.arange(0, BLOCK_WORDS)
    total = tl.zeros((BLOCK_WORDS,), tl.int32)
    for block in tl.range(program, blocks, tl.num_programs(0), num_stages=STAGES):
        start = tl.minimum(tl.cast(block, tl.int64) * BLOCK_WORDS, words - BLOCK_WORDS)
        offset = tl.multiple_of(start, 32) + lane
        total |= tl.load(first_ptr + offset, cache_modifier=CACHE)
        total |= tl.load(second_ptr + offset, cache_modifier=CACHE)
    tl.store(sink_ptr + program, tl.max(total))


@dataclass
class Reader:
    """``attend`` of one shape over the first ``valid_bytes`` of a cache, half of them K's; its output is of no use."""

    shape: ReaderShape
    valid_bytes: int
    profile: DeviceProfile
    _sinks: list[Tensor] = field(default_factory=list)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        launch, words = self.shape.launch, pair_words(self.valid_bytes)
        blocks = triton.cdiv(words, launch.block_words)
        programs = launch.programs(blocks, self.profile.sm_count)
        if not self._sinks:
            self._sinks.append(torch.empty(programs, dtype=torch.int32, device=k.device))
        sink = self._sinks[0]
        read_pair_kernel[(programs,)](
            as_words(k), as_words(v), sink, blocks, words, BLOCK_WORDS=launch.block_words, STAGES=self.shape.stages,
            CACHE=".cg" if self.shape.past_l1 else "", LAUNCH_OVERLAP=self.profile.has_launch_overlap,
            num_warps=launch.num_warps, **({"launch_pdl": True} if self.profile.has_launch_overlap else {}),
        )  # fmt: skip
        return sink


def pair_words(valid_bytes: int) -> int:
    """int32 words of K, and as many of V, that together are ``valid_bytes``; whole cache lines."""
    return valid_bytes // (2 * WORD_BYTES) // LINE_WORDS * LINE_WORDS


def as_words(x: Tensor) -> Tensor:
    """The memory of a cache, which has a storage of its own, as int32 words, however it is laid out."""
    storage = x.untyped_storage()
    return torch.empty(0, dtype=torch.int32, device=x.device).set_(storage, 0, (storage.nbytes() // WORD_BYTES,), (1,))


def readers(shapes: tuple[ReaderShape, ...], valid_bytes: int, profile: DeviceProfile) -> list[Reader]:
    """One for each shape whose block is no larger than what there is to read."""
    words = pair_words(valid_bytes)
    return [Reader(shape, valid_bytes, profile) for shape in shapes if shape.launch.block_words <= words]
