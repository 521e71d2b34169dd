"""Configurations that a study tries first: the heuristic's, what is recorded for similar keys, and then each kind of
change to these in turn, so that a search of a few trials has seen something of every kind."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain, zip_longest

from ..config import (
    MAX_BLOCK_KV,
    MAX_SPLITS,
    MAX_STAGES,
    MIN_BLOCK_KV,
    KernelConfig,
    LoadPath,
    Merge,
    OperandOrder,
    Partition,
)
from ..database.key import TuningKey, bucket
from ..database.record import TuningRecord
from ..device import DeviceProfile
from ..select.footprint import (
    MIN_DOT_ROWS,
    WARPGROUP_WARPS,
    kv_tile_bytes,
    programs_before_splitting,
    streams_at_once,
)
from ..select.heuristic import choose, choose_for_any_batch, choose_without_producer, choose_without_streaming
from .feasible import is_streamable, why_infeasible

# What a study needs no key of its own for: a record of another dtype or head count is as far as this many doublings.
_OTHER_FIELD = 4.0
MAX_NEIGHBOURS = 3
# Partitions that give a sequence as many programs as it holds keys for: they want more of them than there are SMs.
_UNEQUAL_SHARES = (Partition.CHUNKED, Partition.BALANCED)
# What one program an SM reads at a time when it has more than 16 query rows, which eight warps hold in registers.
_LARGE_TILE_KEYS, _LARGE_TILE_WARPS = 128, 8
# Streamed programs that an SM holds at once, the bytes of K and V that each of three stages then has, and warps.
_STREAMED = ((1, 64 << 10, 8), (2, 32 << 10, 4))
# Unsplit programs that an SM may hold at once, and the warps that then suit each.
_MOST_AT_ONCE, _AT_ONCE_WARPS = 4, (1, 2, 4)


@dataclass(frozen=True)
class Seed:
    """``source`` says where a configuration comes from; it is kept with the trial."""

    config: KernelConfig
    source: str


def distance(key: TuningKey, other: TuningKey) -> float:
    """Doublings of batch, capacity and query length between two keys, and 4 for each other field that differs."""
    sizes = ("batch_bucket", "capacity_bucket", "q_len_bucket")
    apart: float = sum(abs(math.log2(getattr(key, name) / getattr(other, name))) for name in sizes)
    names = [field.name for field in fields(TuningKey) if field.name not in sizes]
    others = sum(getattr(key, name) != getattr(other, name) for name in names)
    return apart + _OTHER_FIELD * float(others)


def seeds_for(key: TuningKey, profile: DeviceProfile, records: Sequence[TuningRecord] = ()) -> list[Seed]:
    """The heuristic's configuration, and what else is feasible, each once.

    Raises:
        InadmissibleConfigError: the device runs no configuration of this key.
    """
    default = choose(key.spec(), profile)
    found = [Seed(default, "heuristic")]
    if default.streams:
        default = choose_without_streaming(key.spec(), profile)
        found.append(Seed(default, "the heuristic's without streamed programs"))
    recorded = list(_recorded(key, records))
    kinds = (
        _nearest_otherwise(recorded),
        _several_at_once(key, default, profile),
        _streamed(key, default, profile),
        _large_tiles(key, default, profile),
        _padded_rows(key, default, profile),
        _in_chunks(key, profile),
        _pipelined(key, default, profile),
        _variants(default),
    )
    for seed in (*recorded, *_in_turn(kinds)):
        new = all(seed.config != known.config for known in found)
        if new and why_infeasible(key, seed.config, profile) is None:
            found.append(seed)
    return found


def _in_turn(kinds: Iterable[Iterable[Seed]]) -> Iterator[Seed]:
    """The first of each kind, then the second of each that has one, and so on."""
    return (seed for seed in chain.from_iterable(zip_longest(*kinds)) if seed is not None)


def _recorded(key: TuningKey, records: Sequence[TuningRecord]) -> Iterable[Seed]:
    nearest = sorted(records, key=lambda record: (not record.measured, distance(key, record.key), record.key.name))
    configs: list[KernelConfig] = []
    for record in nearest:
        if record.config not in configs and len(configs) < MAX_NEIGHBOURS:
            configs.append(record.config)
            yield Seed(record.config, f"recorded for {record.key.name}")


def _nearest_otherwise(recorded: Sequence[Seed]) -> Iterable[Seed]:
    """The nearest record's with one decision taken the other way."""
    for nearest in recorded[:1]:
        for changed in _other_residency(nearest.config):
            yield Seed(changed, "the nearest record's, with other programs at once")
        for changed in _divided(nearest.config):
            yield Seed(changed, "the nearest record's, divided otherwise")


def _several_at_once(key: TuningKey, default: KernelConfig, profile: DeviceProfile) -> Iterable[Seed]:
    """Unsplit programs of which an SM holds all that it will get, or four, in tiles that leave room for them: where
    they are done soon, one that waits for another to end begins with nothing in flight."""
    spec = key.spec()
    at_once = min(-(-programs_before_splitting(spec) // profile.sm_count), _MOST_AT_ONCE)
    if at_once < 2 or spec.cache is not None or spec.rope_dim:
        return
    fits = profile.shared_memory_bytes // at_once // 3 // kv_tile_bytes(spec, 1)
    block_kv = min(128, max(MIN_BLOCK_KV, 1 << max(0, fits.bit_length() - 1)))
    for warps in _AT_ONCE_WARPS:
        tiles = replace(
            default, block_kv=block_kv, num_splits=1, num_warps=warps, num_stages=3, partition=Partition.EVEN
        )
        yield Seed(_by_tma(key, tiles, profile), "several programs at once")


def _by_tma(key: TuningKey, config: KernelConfig, profile: DeviceProfile) -> KernelConfig:
    """``config`` with its tiles by TMA where they can come so, else by pointers."""
    by_tma = replace(config, load_path=LoadPath.TMA)
    return by_tma if why_infeasible(key, by_tma, profile) is None else replace(config, load_path=LoadPath.POINTER)


def _large_tiles(key: TuningKey, default: KernelConfig, profile: DeviceProfile) -> Iterable[Seed]:
    """For many query rows over one KV head, as multi-query attention or several queries have: searches of a few trials
    do not come from the heuristic's tiles to these, which change three knobs at once."""
    spec = key.spec()
    if spec.rows > MIN_DOT_ROWS and default.load_path is not LoadPath.PRODUCER:
        splits = max(1, min(profile.sm_count // programs_before_splitting(spec), MAX_SPLITS))
        large = replace(
            default,
            block_kv=_LARGE_TILE_KEYS,
            num_splits=splits,
            num_warps=_LARGE_TILE_WARPS,
            num_stages=3,
            load_path=LoadPath.TMA,
            partition=Partition.EVEN if splits == 1 else Partition.STRIDED,
        )
        yield Seed(large, "large tiles for many rows")


def _padded_rows(key: TuningKey, default: KernelConfig, profile: DeviceProfile) -> Iterable[Seed]:
    """Few rows padded to a warpgroup's: half of the barriers of a tile, and registers for two programs an SM that hold
    three tiles each. Four knobs at once, with one program an SM and as many as the heuristic has, and once for each
    load path, of which the faster may be refused. With fewer rows than a tensor core's 16 it was no faster anywhere."""
    if default.load_path is LoadPath.PRODUCER or key.spec().rows < MIN_DOT_ROWS:
        return
    alone = max(1, min(profile.sm_count // programs_before_splitting(key.spec()), MAX_SPLITS))
    for path in (LoadPath.TMA, LoadPath.POINTER):
        for splits in dict.fromkeys((alone, default.num_splits)):
            padded = replace(
                default,
                block_kv=64,
                num_splits=splits,
                num_warps=WARPGROUP_WARPS,
                num_stages=3,
                load_path=path,
                operand_order=OperandOrder.QK64,
                partition=Partition.EVEN if splits == 1 else Partition.STRIDED,
            )
            yield Seed(padded, "rows padded to a warpgroup's")


def _streamed(key: TuningKey, default: KernelConfig, profile: DeviceProfile) -> Iterable[Seed]:
    """As many programs as run at once, all of them from the first moment to the last: no other step of a search leads
    to these, for only streamed programs have a number that does not follow from the batch."""
    spec = key.spec()
    if not is_streamable(spec):
        return
    for per_sm, tile_bytes, warps in _STREAMED:
        block_kv = min(128, max(16, bucket(tile_bytes // kv_tile_bytes(spec, 1) + 1) // 2))
        tiles = replace(
            default,
            block_kv=block_kv,
            num_splits=streams_at_once(spec, per_sm * profile.sm_count),
            num_warps=warps,
            num_stages=3,
            partition=Partition.STREAMED,
        )
        yield Seed(_by_tma(key, tiles, profile), "streamed")


def _in_chunks(key: TuningKey, profile: DeviceProfile) -> Iterable[Seed]:
    """What users get whose results must not depend on the batch: no record should be slower than that."""
    if not key.spec().rope_dim:
        yield Seed(choose_for_any_batch(key.spec(), profile), "that of deterministic results")


def _pipelined(key: TuningKey, default: KernelConfig, profile: DeviceProfile) -> Iterable[Seed]:
    """What the heuristic would choose if there were no kernel with a producer warp, whose variants differ in little."""
    if default.load_path is LoadPath.PRODUCER:
        yield Seed(choose_without_producer(key.spec(), profile), "the heuristic's without a producer warp")


def _other_residency(config: KernelConfig) -> Iterable[KernelConfig]:
    """The same tiles, with another number of programs or warps on an SM, or with no programs that wait there for the
    kernel before.

    How many an SM holds follows from registers and shared memory, so it changes with the kernels and with Triton, and
    more of them may be worse than fewer.
    """
    settled = config.load_path is LoadPath.PRODUCER
    if config.num_stages < MAX_STAGES and not settled:
        yield replace(config, num_stages=config.num_stages + 1)
    yield replace(config, launch_overlap=not config.launch_overlap)
    if config.num_warps > 1 and not settled:
        # Fewer warps exchange less: one alone compares the scores of a tile without a barrier.
        yield replace(config, num_warps=config.num_warps // 2)


def _divided(config: KernelConfig) -> Iterable[KernelConfig]:
    """The same tiles in other partitions."""
    for partition in Partition:
        if partition is Partition.STREAMED:
            continue
        more = partition in _UNEQUAL_SHARES
        splits = max(3, config.num_splits + 1) if more else config.num_splits
        balanced = partition is Partition.BALANCED
        if partition is not config.partition and splits > 1 and not (balanced and config.prologue_prefetch):
            yield replace(config, num_splits=splits, partition=partition)


def _variants(default: KernelConfig) -> Iterable[Seed]:
    """The default with one decision taken the other way; most of them change what limits a program."""
    other_path = LoadPath.POINTER if default.load_path is LoadPath.TMA else LoadPath.TMA
    splits = default.num_splits
    changed = [
        replace(default, num_splits=max(3, splits + 1), partition=Partition.BALANCED),
        replace(default, num_splits=max(4, 2 * splits), partition=Partition.CHUNKED),
        # Of sequences of different lengths only the long ones are divided, and no second kernel is launched for them.
        replace(default, num_splits=max(2, splits), partition=Partition.CHUNKED, merge=Merge.INPLACE),
        replace(default, prologue_prefetch=True),
        replace(default, load_path=other_path),
        default.with_producer(),
        replace(default, num_splits=max(1, splits // 2), partition=default.partition if splits > 2 else Partition.EVEN),
        replace(default, block_kv=min(MAX_BLOCK_KV, default.block_kv * 2), num_warps=4, num_stages=3),
        replace(default, block_kv=max(MIN_BLOCK_KV, default.block_kv // 2)),
        replace(default, operand_order=OperandOrder.KQ, num_stages=max(2, default.num_stages), num_warps=4),
    ]
    return [Seed(config, "variant of the heuristic's") for config in changed]
