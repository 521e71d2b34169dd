"""KernelConfig: one point of the template's search space, and the invariants that hold on every device."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from enum import Enum
from functools import cache
from typing import Any

from .errors import InvalidConfigError

MAX_PREFETCH_DEPTH = 8
MIN_BLOCK_KV, MAX_BLOCK_KV = 16, 256
MAX_STAGES = 8
MAX_SPLITS = 512


class PrefetchKind(str, Enum):
    """How a KV tile is asked into L2: one ``prefetch.global.L2`` per 128-byte line, or
    ``cp.async.bulk.prefetch.L2`` (PTX ISA 8.0, sm_90 and later); and what L2 is to make of it. ``keep`` evicts it last,
    ``pass`` first; a line has no such form of the latter."""

    LINE = "line"
    BULK = "bulk"
    LINE_KEEP = "linekeep"
    BULK_KEEP = "bulkkeep"
    BULK_PASS = "bulkpass"

    @property
    def is_bulk(self) -> bool:
        return self.value.startswith("bulk")

    @property
    def eviction(self) -> str:
        """L2's eviction priority: ``normal``, ``last`` or ``first``."""
        if self.value.endswith("keep"):
            return "last"
        return "first" if self.value.endswith("pass") else "normal"


class LoadPath(str, Enum):
    """How K and V reach shared memory: per-thread (asynchronous) copies; the tensor memory accelerator; or that, asked
    by a warp which does nothing else (warp specialisation)."""

    POINTER = "pointer"
    TMA = "tma"
    PRODUCER = "producer"


class OperandOrder(str, Enum):
    """Which operand leads in the two products, and so fills the tensor cores' M: ``qk`` computes S = Q K^T; ``qk64``
    does as well, with the few query rows padded to the 64 that a warpgroup multiplies at a time (wgmma, sm_90), which
    reads K and V from shared memory and leaves each row to one warp; ``kq`` computes S^T = K Q^T, of the long KV side
    first."""

    QK = "qk"
    QK64 = "qk64"
    KQ = "kq"


class Merge(str, Enum):
    """Who combines the splits: a second kernel, or the last program to finish. With one split neither is needed."""

    SEPARATE = "separate"
    INPLACE = "inplace"


class Partition(str, Enum):
    """How the valid keys of sequences are divided among splits (templates/split_plan.py): equal adjacent ranges; tiles
    in turn; ranges of a fixed number of keys; as many splits as each sequence of the batch asks for; or equal parts of
    the row in which the tiles of all sequences stand, whichever sequences they are of (Stream-K)."""

    EVEN = "even"
    STRIDED = "strided"
    CHUNKED = "chunked"
    BALANCED = "balanced"
    STREAMED = "streamed"


def _power_of_two(value: int) -> bool:
    return value > 0 and value & (value - 1) == 0


@dataclass(frozen=True)
class KernelConfig:
    """How a template is specialised. Depth 0 means no prefetch instruction at all; it is a first-class value.

    Attributes:
        block_kv: keys per tile, a power of two from 16 to 256.
        num_splits: programs that share one sequence's valid keys, 1 to 512; where they are streamed, those that share
            the valid keys of the whole batch, for each KV head and tile of query rows.
        num_warps: 1, 2, 4 or 8.
        num_stages: software pipelining depth of the KV loop, 1 to 8.
        prefetch_depth: KV tiles asked into L2 ahead of the one computed, 0 to 8.
        launch_overlap: programmatic dependent launch (sm_90 and later).
        prologue_prefetch: ask L2 for the tile that a program probably begins with, before it waits for the kernel that
            runs before it and knows its bounds.

    Raises:
        InvalidConfigError: a field is outside its range.
    """

    block_kv: int
    num_splits: int
    num_warps: int
    num_stages: int
    prefetch_depth: int = 0
    prefetch_kind: PrefetchKind = PrefetchKind.LINE
    load_path: LoadPath = LoadPath.POINTER
    operand_order: OperandOrder = OperandOrder.QK
    launch_overlap: bool = False
    merge: Merge = Merge.SEPARATE
    partition: Partition = Partition.EVEN
    prologue_prefetch: bool = False

    def __post_init__(self) -> None:
        whole_tiles = _power_of_two(self.block_kv) and MIN_BLOCK_KV <= self.block_kv <= MAX_BLOCK_KV
        self._require("block_kv", whole_tiles, f"a power of two in {MIN_BLOCK_KV}..{MAX_BLOCK_KV}")
        self._require("num_splits", 1 <= self.num_splits <= MAX_SPLITS, f"in 1..{MAX_SPLITS}")
        self._require("num_warps", self.num_warps in (1, 2, 4, 8), "1, 2, 4 or 8")
        self._require("num_stages", 1 <= self.num_stages <= MAX_STAGES, f"in 1..{MAX_STAGES}")
        self._require("prefetch_depth", 0 <= self.prefetch_depth <= MAX_PREFETCH_DEPTH, f"in 0..{MAX_PREFETCH_DEPTH}")

    def _require(self, name: str, holds: bool, rule: str) -> None:
        if not holds:
            raise InvalidConfigError(name, getattr(self, name), rule)

    @property
    def prefetches(self) -> bool:
        """Whether the kernel has any L2 prefetch instruction."""
        return self.prefetch_depth > 0 or self.prologue_prefetch

    @property
    def streams(self) -> bool:
        """Whether programs go on from one sequence to the next; one alone has nothing to divide."""
        return self.partition is Partition.STREAMED and self.num_splits > 1

    def without_prefetch(self) -> KernelConfig:
        """The same kernel without any L2 prefetch instruction."""
        return replace(self, prefetch_depth=0, prefetch_kind=PrefetchKind.LINE, prologue_prefetch=False)

    def with_producer(self) -> KernelConfig:
        """The kernel with a producer warp that divides keys as this one does. Everything else it settles itself: two
        tiles of 64 keys, and warp groups of four warps."""
        return KernelConfig(
            block_kv=64,
            num_splits=self.num_splits,
            num_warps=4,
            num_stages=2,
            load_path=LoadPath.PRODUCER,
            launch_overlap=self.launch_overlap,
            partition=self.partition,
        )

    def encode(self) -> str:
        """A short, reversible name, such as ``b128-s16-w4-st3-p0line-pointer-qk-pdl-separate-strided``. A prologue
        prefetch adds ``-early``."""
        overlap = "pdl" if self.launch_overlap else "nopdl"
        early = "-early" if self.prologue_prefetch else ""
        return (
            f"b{self.block_kv}-s{self.num_splits}-w{self.num_warps}-st{self.num_stages}"
            f"-p{self.prefetch_depth}{self.prefetch_kind.value}-{self.load_path.value}"
            f"-{self.operand_order.value}-{overlap}-{self.merge.value}"
            f"-{self.partition.value}{early}"
        )

    @staticmethod
    @cache
    def decode(name: str) -> KernelConfig:
        """The inverse of :meth:`encode`.

        Raises:
            InvalidConfigError: ``name`` is not such a name.
        """
        match = _ENCODED.fullmatch(name)
        if match is None:
            raise InvalidConfigError("encode()", name, "like b128-s16-w4-st3-p0line-pointer-qk-pdl-separate-strided")
        return KernelConfig(
            block_kv=int(match["block"]),
            num_splits=int(match["splits"]),
            num_warps=int(match["warps"]),
            num_stages=int(match["stages"]),
            prefetch_depth=int(match["depth"]),
            prefetch_kind=PrefetchKind(match["kind"]),
            load_path=LoadPath(match["path"]),
            operand_order=OperandOrder(match["order"]),
            launch_overlap=match["overlap"] == "pdl",
            merge=Merge(match["merge"]),
            partition=Partition(match["partition"]),
            prologue_prefetch=match["early"] is not None,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {k: v.value if isinstance(v, Enum) else v for k, v in asdict(self).items()}


_ENCODED = re.compile(
    r"b(?P<block>\d+)-s(?P<splits>\d+)-w(?P<warps>\d+)-st(?P<stages>\d+)-p(?P<depth>\d+)(?P<kind>(?:line|bulk)(?:keep)?|bulkpass)"
    r"-(?P<path>pointer|tma|producer)-(?P<order>qk|qk64|kq)-(?P<overlap>pdl|nopdl)-(?P<merge>separate|inplace)"
    r"-(?P<partition>even|strided|chunked|balanced|streamed)(?P<early>-early)?"
)
