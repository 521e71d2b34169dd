"""Whether a configuration computes what it should: no configuration is accepted without.

Each check runs the kernels on a problem made to trip them, and is passed when

- every output, which held NaN before, is finite, and errs no more than ``error_bound`` allows for these inputs;
- nothing was written around the output or the scratch memory (guard bands);
- launching again, with other garbage in the scratch memory, gives the same bits: merging is in a fixed order, so a
  difference is a race or a read of memory that nobody wrote;
- so do launches in a row that hand the scratch memory from one to the next, as those of a model do (on a GPU).

Keys that no query may see hold NaN, and so does everything around K and V. Problems are small in memory whatever the
key: its head counts, dims, layout, mask and dtype are kept, batch and capacity are chosen for what they provoke. A
problem depends on the key and the seed only, so that its float64 answer serves every configuration of a study.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from ..config import KernelConfig
from ..database.key import TuningKey
from ..device import profile
from ..error_bound import Yardstick, yardstick
from ..errors import InadmissibleConfigError
from ..lower.launch import allocate, launch_kernels
from ..lower.quick_check import REACHED_SOFTCAP
from ..lower.specialise import DecodeTensors
from ..select.admissible import why_inadmissible
from ..spec import AS_THE_DTYPE_SAYS, AttentionSpec, MaskKind
from .cuda_graph import graph_of
from .errors import WrongResultError
from .inputs import NAN, Operands, mask_of, operands

# Lengths at which tiles of 16 to 256 keys are one short, exact, or one over.
TILE_EDGES = tuple(tile + step for tile in (16, 32, 64, 128, 256) for step in (-1, 0, 1))
# Capacity of the problem of edges, and memory of K and V that either problem may take.
EDGES_CAPACITY = 640
PROBLEM_BYTES = 128 << 20
GUARD_ELEMENTS = 1024
GUARD_VALUE = 1024.0
# Scratch memory holds NaN before the first launch, and these before further ones.
OTHER_GARBAGE = (0.0, -1.0)
LAUNCHES_IN_A_ROW = 6
_RANDOM_LENGTHS = 5


class Launch(Protocol):
    """Writes ``tensors.out``: the kernels under test."""

    def __call__(
        self, tensors: DecodeTensors, *, is_causal: bool, scale: float, softcap: float | None, config: KernelConfig
    ) -> None: ...


@dataclass(frozen=True)
class Check:
    """A problem with its answer."""

    name: str
    operands: Operands
    yardstick: Yardstick


def verify(
    key: TuningKey, config: KernelConfig, seed: int, device: torch.device, launch: Launch = launch_kernels
) -> float:
    """The largest error over its bound (at most 1), over every problem of ``key`` drawn from ``seed``.

    Raises:
        InadmissibleConfigError: the configuration cannot run the key on ``device``.
        WrongResultError: an output is wrong; names the problem and how.
    """
    reason = why_inadmissible(key.spec(), config, profile(device))
    if reason is not None:
        raise InadmissibleConfigError(config.encode(), reason)
    problems = checks(key, seed, device)
    found = [_right_output(check, config, launch) for check in problems]
    for check, (out, _) in zip(problems, found, strict=True):
        if not all(_same_bits(out, _launched_on(check, config, launch, garbage)) for garbage in OTHER_GARBAGE):
            raise WrongResultError(config, check.name, "launching again gave other bits: a race, or unwritten memory")
    # The interpreter runs one program after the other: there is nothing to overlap.
    if device.type == "cuda" and not _same_in_a_row(problems[-1], config, launch, found[-1][0]):
        raise WrongResultError(
            config, problems[-1].name, "launches in a row gave other bits: one did not wait for another"
        )
    return max(share for _, share in found)


def _right_output(check: Check, config: KernelConfig, launch: Launch) -> tuple[Tensor, float]:
    """The output of a launch and its largest error over its bound.

    Raises:
        WrongResultError: the output is wrong.
    """
    out = _launched_on(check, config, launch, NAN)
    unwritten = int(out.isfinite().logical_not().sum())
    if unwritten:
        raise WrongResultError(config, check.name, f"{unwritten} of {out.numel()} outputs are NaN or infinite")
    share = check.yardstick.share(out)
    if not share <= 1.0:
        raise WrongResultError(config, check.name, f"the error is {share:.3g} times its bound")
    return out, share


def checks(key: TuningKey, seed: int, device: torch.device) -> tuple[Check, ...]:
    """The problems of a key; the last few keys' are kept."""
    return _checks(key, seed, device)


@lru_cache(maxsize=3)
def _checks(key: TuningKey, seed: int, device: torch.device) -> tuple[Check, ...]:
    generator = torch.Generator(device).manual_seed(seed)
    found = []
    if key.spec().mask is MaskKind.LENGTHS:
        given_by_name = (
            (name, operands(spec, None, generator, torch.tensor(lengths, dtype=torch.int32, device=device)))
            for name, spec, lengths in _problems_of_lengths(key, seed)
        )
    else:
        given_by_name = (
            (name, operands(spec, mask, generator)) for name, spec, mask in _problems(key, seed, generator)
        )
    for name, given in given_by_name:
        found.append(Check(name, given, yardstick(given)))
    return tuple(found)


def _problems_of_lengths(key: TuningKey, seed: int) -> Iterator[tuple[str, AttentionSpec, list[int]]]:
    """Every length that may trip a tile, a split or a page; and long caches, full, nearly so and mostly empty."""
    page_edges = [page * key.page_size + step for page in (1, 2) for step in (-1, 0, 1)] if key.page_size else []
    yield "lengths at edges", *_edge_lengths(key, seed, tuple(page_edges))
    spec = _spec(key, 3, min(key.capacity_bucket, max(1, PROBLEM_BYTES // (3 * _bytes_per_key(key)))))
    missing = seed % min(spec.kv_len, key.page_size or TILE_EDGES[-1])
    yield "a long cache", spec, [spec.kv_len, spec.kv_len - missing, max(1, spec.kv_len // 8)]


def forget_checks() -> None:
    """Give back the memory of the problems that are kept."""
    _checks.cache_clear()


def _problems(
    key: TuningKey, seed: int, generator: torch.Generator
) -> Iterator[tuple[str, AttentionSpec, Tensor | None]]:
    if key.spec().mask is MaskKind.NONE:
        for capacity in _capacities(key):
            yield f"{capacity} keys", _spec(key, 2, capacity), None
        return
    yield _edges(key, seed, generator)
    yield _long(key, seed, generator)


def _spec(key: TuningKey, batch: int, capacity: int) -> AttentionSpec:
    spec = key.at(batch=batch, capacity=capacity).spec()
    return spec if spec.softcap is None else replace(spec, softcap=REACHED_SOFTCAP)


def _bytes_per_key(key: TuningKey) -> int:
    return _spec(key, 1, 1).kv_bytes_per_key


def _capacities(key: TuningKey) -> list[int]:
    """Without a mask the capacity is the length: every edge, and one that is long."""
    longest = min(key.capacity_bucket, max(1, PROBLEM_BYTES // (2 * _bytes_per_key(key))))
    return [*(edge for edge in (1, *TILE_EDGES) if edge < longest), longest]


def _edges(key: TuningKey, seed: int, generator: torch.Generator) -> tuple[str, AttentionSpec, Tensor | None]:
    """A sequence of each length that may trip a tile or a split, among them an empty one."""
    spec, lengths = _edge_lengths(key, seed)
    held = torch.tensor(lengths, device=generator.device)[:, None]
    visible = torch.arange(spec.kv_len, device=generator.device) < held
    return "lengths at edges", spec, _with_rows(spec, visible, generator)


def _edge_lengths(key: TuningKey, seed: int, more: tuple[int, ...] = ()) -> tuple[AttentionSpec, list[int]]:
    """Each length in a sequence of its own, and the spec that holds them; ``more`` among them."""
    candidates = len(TILE_EDGES) + len(more) + _RANDOM_LENGTHS + 4
    capacity = min(key.capacity_bucket, EDGES_CAPACITY, max(1, PROBLEM_BYTES // (candidates * _bytes_per_key(key))))
    capacity = _spec(key, 1, capacity).kv_len
    random = torch.randint(0, capacity + 1, (_RANDOM_LENGTHS,), generator=torch.Generator().manual_seed(seed)).tolist()
    wanted = {0, 1, capacity - 1, capacity, *TILE_EDGES, *more, *random}
    lengths = sorted(length for length in wanted if 0 <= length <= capacity)
    return _spec(key, len(lengths), capacity), lengths


def _long(key: TuningKey, seed: int, generator: torch.Generator) -> tuple[str, AttentionSpec, Tensor | None]:
    """As long as memory allows: full; left-padded, with a key hidden at either end; with a hole; short in a long cache;
    every other key."""
    capacity = min(key.capacity_bucket, max(1, PROBLEM_BYTES // (5 * _bytes_per_key(key))))
    spec = _spec(key, 5, capacity)
    position = torch.arange(capacity, device=generator.device)
    third = capacity // 3
    padding = (seed * 7 + 5) % max(1, third)
    padded = (position >= padding) & (position < max(1, capacity - 1))
    visible = torch.stack(
        (
            position >= 0,
            padded & (position != padding + 1) & (position != capacity - 3),
            (position < third) | (position >= capacity - max(1, third)),
            position < max(1, capacity // 8),
            position % 2 == seed % 2,
        )
    )
    return "a long cache", spec, _with_rows(spec, visible, generator)


def _with_rows(spec: AttentionSpec, visible: Tensor, generator: torch.Generator) -> Tensor | None:
    """The spec's mask over ``visible`` (batch, keys). Where it differs by row, some more are hidden in every other
    sequence, and every fifth row sees nothing. An additive mask adds a bias to every other one; the rest have clean
    ranges. It hides keys in either of the two usual ways, which differ for rows that see nothing."""
    sequence = torch.arange(spec.batch, device=visible.device)[:, None, None, None]
    visible = visible[:, None, None, :]
    if spec.mask_per_row:
        shape = (spec.batch, spec.query_heads, spec.q_len, spec.kv_len)
        kept = torch.rand(shape, generator=generator, device=visible.device) < 0.8
        kept &= (torch.arange(spec.query_heads * spec.q_len, device=visible.device) % 5 != 3).view(*shape[1:3], 1)
        visible = visible & (kept | (sequence % 2 == 0))
    mask = mask_of(spec, visible)
    if mask is None or spec.mask_dtype is None or spec.mask is not MaskKind.ADDITIVE:
        return mask
    # A float16 mask's least value swallows no score but a float16 one.
    if spec.mask_dtype is not torch.float16 or spec.dtype is torch.float16:
        mask = torch.where((sequence % 4 >= 2) & ~visible, torch.finfo(spec.mask_dtype).min, mask)
    bias = torch.empty_like(mask).normal_(generator=generator)
    return mask + bias * (sequence % 2)


def _guarded_tensors(check: Check, config: KernelConfig, garbage: float) -> tuple[DecodeTensors, list[Tensor]]:
    """Operands, and an output of NaN and scratch memory of ``garbage`` amid guard bands, whose buffers come second."""
    given = check.operands
    storage = AS_THE_DTYPE_SAYS if given.spec.cache is None else given.spec.cache.storage
    plain = allocate(
        given.q, given.stale_k, given.stale_v, given.expanded_mask(), given.bounds, given.spec.out_heads_first, config,
        k_scale=given.k_scale, v_scale=given.v_scale, lengths=given.lengths, table=given.table, sink=given.sink,
        k_zero=given.k_zero, v_zero=given.v_zero, storage=storage, rope=given.rope,
    )  # fmt: skip
    guards: list[Tensor] = []

    def guarded(tensor: Tensor | None, fill: float) -> Tensor | None:
        return None if tensor is None else _guarded(tensor, fill, guards)

    tensors = replace(
        plain,
        out=_guarded(plain.out, NAN, guards),
        partial=guarded(plain.partial, garbage),
        stats=guarded(plain.stats, garbage),
        arrivals=guarded(plain.arrivals, 0),
    )
    return tensors, guards


def _guarded(tensor: Tensor, fill: float, guards: list[Tensor]) -> Tensor:
    """The same view amid guard bands, filled with ``fill``."""
    size = math.prod(tensor.shape)
    buffer = torch.full((size + 2 * GUARD_ELEMENTS,), GUARD_VALUE, device=tensor.device).to(tensor.dtype)
    buffer[GUARD_ELEMENTS : GUARD_ELEMENTS + size] = fill
    guards.append(buffer)
    return buffer.as_strided(tensor.shape, tensor.stride(), GUARD_ELEMENTS)


def _launched_on(check: Check, config: KernelConfig, launch: Launch, garbage: float) -> Tensor:
    """The output of one launch.

    Raises:
        WrongResultError: something was written outside.
    """
    tensors, guards = _guarded_tensors(check, config, garbage)
    spec = check.operands.spec
    launch(tensors, is_causal=spec.is_causal, scale=spec.scale, softcap=spec.softcap, config=config)
    bands = [band for buffer in guards for band in (buffer[:GUARD_ELEMENTS], buffer[-GUARD_ELEMENTS:])]
    if not torch.stack([(band == GUARD_VALUE).all() for band in bands]).all():
        raise WrongResultError(config, check.name, "memory outside an output was written")
    return tensors.out


def _same_in_a_row(check: Check, config: KernelConfig, launch: Launch, expected: Tensor) -> bool:
    """Whether launches that follow each other at once, on the same scratch memory and with other queries every other
    time, give the bits of a launch that is alone. In a CUDA graph: Python issues kernels too slowly for one to catch up
    with another."""
    tensors, _ = _guarded_tensors(check, config, NAN)
    spec, others = check.operands.spec, tensors.q.flip(0)
    outputs = [torch.full_like(tensors.out, NAN) for _ in range(2 * LAUNCHES_IN_A_ROW)]

    def launches() -> None:
        for number, out in enumerate(outputs):
            if tensors.arrivals is not None:
                tensors.arrivals.zero_()
            turn = replace(tensors, q=tensors.q if number % 2 else others, out=out)
            launch(turn, is_causal=spec.is_causal, scale=spec.scale, softcap=spec.softcap, config=config)

    graph_of(launches, tensors.q.device)
    ours, theirs = outputs[1::2], outputs[::2]
    return all(_same_bits(out, expected) for out in ours) and all(_same_bits(out, theirs[0]) for out in theirs)


def _same_bits(one: Tensor, other: Tensor) -> bool:
    integer = {2: torch.int16, 4: torch.int32}[one.element_size()]
    return torch.equal(one.contiguous().view(integer), other.contiguous().view(integer))
