"""Recording tables on a GPU: every feasible point of a key's grid is compiled in the pool and measured once."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from typing import Any

from ..config import KernelConfig
from ..database.key import TuningKey
from ..device import DeviceProfile
from ..select.heuristic import choose
from ..tuning.compile_pool import CompileOutcome, Compiler
from ..tuning.feasible import SPILL_LIMIT_BYTES, spill_limit, why_infeasible, why_too_large
from ..tuning.protocol import Measurer, TrialFailure, TrialRequest
from .search_grid import grid_points, grid_values
from .search_table import FAILED, INFEASIBLE, TOO_LARGE, UNMEASURED, SearchTable, time_code

# Two head shapes at three loads each: little, fitting and many programs for the SMs of a large GPU.
DEFAULT_KEYS = (
    "bfloat16 32q/8kv d128 q1 b1 s8192 bhsd-tma bool",
    "bfloat16 32q/8kv d128 q1 b16 s4096 bhsd-tma bool",
    "bfloat16 32q/8kv d128 q1 b64 s4096 bhsd-tma bool",
    "float16 12q/12kv d64 q1 b1 s1024 bhsd-tma bool",
    "float16 12q/12kv d64 q1 b8 s1024 bhsd-tma bool",
    "float16 12q/12kv d64 q1 b64 s1024 bhsd-tma bool",
)
_POLL_S = 0.5

Progress = Callable[[str], None]


@dataclass
class _Submitted:
    """A key whose feasible points are being compiled."""

    key: TuningKey
    values: dict[str, tuple[Any, ...]]
    points: list[KernelConfig]
    waiting: dict[Future[CompileOutcome], KernelConfig]
    default: Future[CompileOutcome]


def record_tables(
    keys: Sequence[TuningKey],
    measurer: Measurer,
    compiler: Compiler,
    profile: DeviceProfile,
    *,
    seconds_per_key: float,
    seed: int,
    origin: Callable[[TuningKey], dict[str, Any]],
    progress: Progress,
) -> Iterator[SearchTable]:
    """One table a key, as it is done. While a key is measured the next one's kernels are compiled; keys of one head
    shape share theirs. What is not measured within the time is left out; the order is random, so that what was is a
    sample."""
    following = _submit(keys[0], compiler, profile, seed) if keys else None
    for number, key in enumerate(keys):
        current = following
        assert current is not None
        following = _submit(keys[number + 1], compiler, profile, seed) if number + 1 < len(keys) else None
        start = time.monotonic()
        times = _measure(current, measurer, profile, seconds_per_key, seed)
        table = SearchTable(key, profile, current.values, tuple(times), origin(key))
        left = sum(code == UNMEASURED for code in times)
        progress(f"{key.name}: {table.feasible} of {len(times)} points, {left} left, {time.monotonic() - start:.0f} s")
        yield table


def _submit(key: TuningKey, compiler: Compiler, profile: DeviceProfile, seed: int) -> _Submitted:
    values = grid_values(key, profile)
    points = grid_points(values)
    feasible = [config for config in points if why_infeasible(key, config, profile) is None]
    random.Random(seed).shuffle(feasible)
    default = compiler.submit(key, choose(key.spec(), profile))
    return _Submitted(key, values, points, {compiler.submit(key, config): config for config in feasible}, default)


def _measure(submitted: _Submitted, measurer: Measurer, profile: DeviceProfile, seconds: float, seed: int) -> list[int]:
    codes = dict.fromkeys(submitted.points, INFEASIBLE)
    codes.update(dict.fromkeys(submitted.waiting.values(), UNMEASURED))
    deadline = time.monotonic() + seconds
    compiled_default = submitted.default.result()
    limit = SPILL_LIMIT_BYTES if isinstance(compiled_default, TrialFailure) else spill_limit(compiled_default)
    while submitted.waiting and time.monotonic() < deadline:
        done, _ = wait(submitted.waiting, _POLL_S, FIRST_COMPLETED)
        for future in done:
            config = submitted.waiting.pop(future)
            if time.monotonic() < deadline:
                codes[config] = _code(submitted.key, config, future.result(), measurer, profile, limit, seed)
    return [codes[config] for config in submitted.points]


def _code(
    key: TuningKey,
    config: KernelConfig,
    compiled: CompileOutcome,
    measurer: Measurer,
    profile: DeviceProfile,
    limit: int,
    seed: int,
) -> int:
    if isinstance(compiled, TrialFailure):
        return FAILED
    if why_too_large(compiled, profile, limit) is not None:
        return TOO_LARGE
    outcome = measurer.trial(TrialRequest(key, config, seed))
    return FAILED if isinstance(outcome, TrialFailure) else time_code(outcome.objective_us)
