"""Errors of a group's cases: the kernel's and the reference's against float64, in roundings of what is summed."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from ...config import KernelConfig
from ...device import DeviceProfile
from ...lower.launch import launch_decode
from ...lower.precompile import precompile
from ...reference import exact_attention, same_dtype_attention
from ...spec import AttentionSpec
from .group import Group, Sizes, runnable
from .problem import Cases, build
from .result import GroupResult, NumericsResult

Launch = Callable[..., Tensor]
Say = Callable[[str], None]
# Of float64 copies that the oracle may take at a time.
WORKING_BYTES = 2 << 30
COMPILER_THREADS = 8


@dataclass(frozen=True)
class Errors:
    """(cases,) in float64, of the largest of a case: infinite where something that is not finite was returned."""

    kernel: Tensor
    reference: Tensor


def measure(
    groups: tuple[Group, ...],
    sizes: Sizes,
    cases: int,
    seed: int,
    device: torch.device,
    profile: DeviceProfile,
    say: Say,
    launch: Launch = launch_decode,
) -> NumericsResult:
    """About ``cases`` in total, as many of each group that ``profile`` can run."""
    able = [group for group in groups if not isinstance(runnable(group, sizes, 1, profile), str)]
    batch = max(1, -(-cases // max(1, len(able))))
    found = [(group, runnable(group, sizes, batch, profile)) for group in groups]
    _compile([chosen for _, chosen in found if not isinstance(chosen, str)], device, say)
    results = []
    for number, (group, chosen) in enumerate(found, 1):
        say(f"{number} of {len(found)}: {group.name}")
        if isinstance(chosen, str):
            results.append(GroupResult.skipped(group, chosen))
            continue
        spec, config = chosen
        given = build(spec, config, seed + number, device)
        results.append(GroupResult.of(group, config, given, errors_of(given, _launched(given, config, launch))))
    return NumericsResult(tuple(results), seed)


def _compile(chosen: list[tuple[AttentionSpec, KernelConfig]], device: torch.device, say: Say) -> None:
    """In threads: most of a compile is LLVM's and the assembler's, which take no Python. What fails is the launch's to
    raise."""
    if device.type != "cuda":
        return
    say(f"compiling the kernels of {len(chosen)} groups")
    with ThreadPoolExecutor(COMPILER_THREADS) as threads:
        for future in [threads.submit(precompile, spec, config, device) for spec, config in chosen]:
            future.exception()


def _launched(cases: Cases, config: KernelConfig, launch: Launch) -> Tensor:
    spec, mask = cases.spec, cases.launched_mask
    whole = (spec.batch, spec.query_heads, spec.q_len, spec.kv_len)
    return launch(
        cases.q, cases.stored_k, cases.stored_v, None if mask is None else mask.expand(whole), cases.bounds,
        is_causal=spec.is_causal, scale=spec.scale, heads_first=True, config=config, k_scale=cases.k_scale,
        v_scale=cases.v_scale, lengths=cases.lengths, table=cases.table, softcap=spec.softcap, sink=cases.sink,
        k_zero=cases.k_zero, v_zero=cases.v_zero, storage=cases.storage, rope=cases.rope,
    )  # fmt: skip


def errors_of(cases: Cases, out: Tensor) -> Errors:
    """Some sequences at a time, so that float64 copies take little memory."""
    spec = cases.spec
    per_case = spec.query_heads * spec.kv_len * (spec.query_dim + spec.value_dim + 6 * spec.q_len) * 8
    step = max(1, WORKING_BYTES // (3 * per_case))
    parts = [_errors(cases, out, slice(first, first + step)) for first in range(0, spec.batch, step)]
    kernel, reference = (torch.cat([part[number] for part in parts]) for number in (0, 1))
    return Errors(kernel, reference)


def _errors(cases: Cases, out: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
    spec, mask = cases.spec, cases.mask[rows]
    q, k, v = cases.q[rows], cases.k[rows], cases.v[rows]

    def exactly(values: Tensor) -> Tensor:
        return exact_attention(q, k, values, mask, scale=spec.scale, softcap=spec.softcap, sink=cases.sink)

    answer, sizes = exactly(v), exactly(v.abs())
    # What a quantised cache holds is dequantised first, as code without such a kernel does.
    reference = same_dtype_attention(
        q, k.to(spec.dtype), v.to(spec.dtype), mask, scale=spec.scale, softcap=spec.softcap, sink=cases.sink
    )
    size = sizes.amax((1, 2, 3))
    return _largest(out[rows], answer, size), _largest(reference, answer, size)


def _largest(actual: Tensor, answer: Tensor, size: Tensor) -> Tensor:
    """In roundings of numbers of ``size``; below the smallest normal number all are of its spacing."""
    error = (actual.double() - answer).abs().amax((1, 2, 3))
    limits = torch.finfo(actual.dtype)
    wrong = error.isfinite().logical_not() | ((size == 0) & (error > 0))
    return (error / (size.clamp(min=limits.tiny) * limits.eps / 2)).masked_fill(wrong, math.inf)
