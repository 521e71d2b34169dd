"""Whether a configuration computes what it should: no configuration is accepted without.

Each check runs the kernels on a problem made to trip them, and is passed when

- every output, which held NaN before, is finite, and errs no more than ``error_bound`` allows for these inputs;
- nothing was written around the output or the partial results (guard bands);
- launching again, with other garbage in the scratch memory, gives the same bits: merging is in a fixed order, so a
  difference is a race or a read of memory that nobody wrote.

Keys that no query may see hold NaN. Problems are small in memory whatever the key: its head counts, dims, layout, mask
and dtype are kept, batch and capacity are chosen for what they provoke.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from ..config import KernelConfig
from ..database.key import TuningKey
from ..device import profile
from ..error_bound import Yardstick, yardstick
from ..lower.launch import allocate
from ..lower.precompile import kernel_calls
from ..lower.specialise import DecodeTensors
from ..select.admissible import why_inadmissible
from ..spec import AttentionSpec, MaskKind
from .errors import WrongResultError
from .inputs import NAN, Operands, mask_of, operands

# Lengths at which tiles of 16 to 256 keys are one short, exact, or one over.
TILE_EDGES = tuple(tile + step for tile in (16, 32, 64, 128, 256) for step in (-1, 0, 1))
# Capacity of the problem of edges, and memory of K and V that either problem may take.
EDGES_CAPACITY = 640
PROBLEM_BYTES = 128 << 20
GUARD_ELEMENTS = 1024
GUARD_VALUE = 1024.0
LAUNCHES = 3
_RANDOM_LENGTHS = 5


@dataclass(frozen=True)
class Check:
    """A problem with its answer."""

    name: str
    operands: Operands
    yardstick: Yardstick


def verify(key: TuningKey, config: KernelConfig, seed: int, device: torch.device) -> float:
    """The largest error over its bound (at most 1), over every problem of ``key`` drawn from ``seed``.

    Raises:
        WrongResultError: an output is wrong; names the problem and how.
    """
    return max((run_check(check, config) for check in checks(key, seed, device)), default=0.0)


def run_check(check: Check, config: KernelConfig) -> float:
    """As :func:`verify`, for one problem. A configuration that is admissible for the key and not for the problem (a
    single sequence has other strides) has nothing to show there.

    Raises:
        WrongResultError: the output is wrong.
    """
    given = check.operands
    if why_inadmissible(given.spec, config, profile(given.q.device)) is not None:
        return 0.0
    first = None
    for launch in range(LAUNCHES):
        out = _guarded_launch(check, config, garbage=NAN if launch % 2 == 0 else 0.0)
        if first is None:
            first = out
        elif not torch.equal(_bits(first), _bits(out)):
            raise WrongResultError(config, check.name, "launching again gave other bits: a race, or unwritten memory")
    assert first is not None
    unwritten = int(first.isfinite().logical_not().sum())
    if unwritten:
        raise WrongResultError(config, check.name, f"{unwritten} of {first.numel()} outputs are NaN or infinite")
    share = check.yardstick.share(first)
    if not share <= 1.0:
        raise WrongResultError(config, check.name, f"the error is {share:.3g} times its bound")
    return share


def checks(key: TuningKey, seed: int, device: torch.device) -> tuple[Check, ...]:
    """The problems of a key; the last few keys' are kept."""
    return _checks(key, seed, device)


@lru_cache(maxsize=3)
def _checks(key: TuningKey, seed: int, device: torch.device) -> tuple[Check, ...]:
    generator = torch.Generator(device).manual_seed(seed)
    found = []
    for name, spec, mask in _problems(key, seed, generator):
        given = operands(spec, mask, generator)
        found.append(Check(name, given, yardstick(given)))
    return tuple(found)


def _problems(
    key: TuningKey, seed: int, generator: torch.Generator
) -> Iterator[tuple[str, AttentionSpec, Tensor | None]]:
    if key.spec().mask is MaskKind.NONE:
        for capacity in _capacities(key, seed):
            yield f"{capacity} keys", _spec(key, 2, capacity), None
        return
    yield _edges(key, seed, generator)
    yield _long(key, seed, generator)


def _spec(key: TuningKey, batch: int, capacity: int) -> AttentionSpec:
    return key.at(batch=batch, capacity=capacity).spec()


def _bytes_per_key(key: TuningKey) -> int:
    return _spec(key, 1, 1).kv_bytes_per_key


def _capacities(key: TuningKey, seed: int) -> list[int]:
    """Without a mask the capacity is the length: some edges (others for another seed), and one that is long."""
    longest = min(key.capacity_bucket, max(1, PROBLEM_BYTES // (2 * _bytes_per_key(key))))
    edges = [edge for edge in (1, *TILE_EDGES) if edge < longest]
    chosen = edges[seed % 3 :: 3]
    return [*chosen, longest]


def _edges(key: TuningKey, seed: int, generator: torch.Generator) -> tuple[str, AttentionSpec, Tensor | None]:
    """A sequence of each length that may trip a tile or a split, among them an empty one."""
    candidates = len(TILE_EDGES) + _RANDOM_LENGTHS + 4
    capacity = min(key.capacity_bucket, EDGES_CAPACITY, max(1, PROBLEM_BYTES // (candidates * _bytes_per_key(key))))
    random = torch.randint(0, capacity + 1, (_RANDOM_LENGTHS,), generator=torch.Generator().manual_seed(seed)).tolist()
    lengths = [length for length in (0, 1, capacity - 1, capacity, *TILE_EDGES, *random) if 0 <= length <= capacity]
    spec = _spec(key, len(lengths), capacity)
    held = torch.tensor(lengths, device=generator.device)[:, None]
    visible = torch.arange(capacity, device=generator.device) < held
    return "lengths at edges", spec, _with_rows(spec, visible, generator)


def _long(key: TuningKey, seed: int, generator: torch.Generator) -> tuple[str, AttentionSpec, Tensor | None]:
    """As long as memory allows: full; left-padded; with a hole; short in a long cache."""
    capacity = min(key.capacity_bucket, max(1, PROBLEM_BYTES // (4 * _bytes_per_key(key))))
    spec = _spec(key, 4, capacity)
    position = torch.arange(capacity, device=generator.device)
    third = capacity // 3
    padding = (seed * 7 + 5) % max(1, third)
    visible = torch.stack(
        (
            position >= 0,
            (position >= padding) & (position < max(1, capacity - 1)),
            (position < third) | (position >= capacity - max(1, third)),
            position < max(1, capacity // 8),
        )
    )
    return "a long cache", spec, _with_rows(spec, visible, generator)


def _with_rows(spec: AttentionSpec, visible: Tensor, generator: torch.Generator) -> Tensor | None:
    """The spec's mask over ``visible`` (batch, keys): rows of their own hide some more, an additive one adds a bias."""
    if spec.mask_per_row:
        shape = (spec.batch, spec.query_heads, spec.q_len, spec.kv_len)
        visible = visible[:, None, None, :] & (torch.rand(shape, generator=generator, device=generator.device) < 0.8)
    mask = mask_of(spec, visible)
    if mask is not None and spec.mask is MaskKind.ADDITIVE:
        # Every other sequence; the rest have clean ranges.
        mask[::2] += torch.empty_like(mask[::2]).normal_(generator=generator)
    return mask


def _guarded_launch(check: Check, config: KernelConfig, garbage: float) -> Tensor:
    """The output of one launch into poisoned memory.

    Raises:
        WrongResultError: something was written outside.
    """
    given, spec = check.operands, check.operands.spec
    plain = allocate(
        given.q, given.stale_k, given.stale_v, given.expanded_mask(), given.bounds, spec.out_heads_first, config
    )
    guards: list[Tensor] = []
    tensors: DecodeTensors = replace(
        plain,
        out=_guarded(plain.out, NAN, guards),
        partial=None if plain.partial is None else _guarded(plain.partial, garbage, guards),
        stats=None if plain.stats is None else _guarded(plain.stats, garbage, guards),
    )
    for call in kernel_calls(spec, config, tensors):
        call.launch()
    for buffer in guards:
        if not (buffer[:GUARD_ELEMENTS] == GUARD_VALUE).all() or not (buffer[-GUARD_ELEMENTS:] == GUARD_VALUE).all():
            raise WrongResultError(config, check.name, "memory outside an output was written")
    return tensors.out


def _guarded(tensor: Tensor, fill: float, guards: list[Tensor]) -> Tensor:
    """The same view amid guard bands, filled with ``fill``."""
    size = math.prod(tensor.shape)
    buffer = torch.full((size + 2 * GUARD_ELEMENTS,), GUARD_VALUE, dtype=tensor.dtype, device=tensor.device)
    buffer[GUARD_ELEMENTS : GUARD_ELEMENTS + size] = fill
    guards.append(buffer)
    return buffer.as_strided(tensor.shape, tensor.stride(), GUARD_ELEMENTS)


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view({2: torch.int16, 4: torch.int32}[tensor.element_size()])
