"""The run: case by case, every kernel verified, then all of them timed together."""

from __future__ import annotations

import statistics
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from ...config import KernelConfig
from ...database import overlay
from ...database.key import key_of
from ...database.overlay import Overlays
from ...database.template_hash import template_hash
from ...device import profile
from ...error_bound import Yardstick
from ...tuning.compile_pool import Compiler
from ...tuning.protocol import TrialFailure
from ..environment import describe_environment
from .case import PaperCase
from .check import verified, yardstick_of
from .clock import Clock, GraphClock
from .contestants import Contestant, cudnn, ours, paper_style
from .errors import CaseTooLargeError
from .inputs import CaseInputs, caches_for, make_inputs, require_room
from .kernel import PAPER_DECODE
from .ours import OurConfigs, choose_ours, likely_configs
from .result import CaseResult, ColumnResult, LeftOut, PaperRun
from .settings import PaperSettings
from .variant import PAPER_STYLE, Column
from .warps import best_warps, probe_warps

SEARCH_ROUNDS = 3

Say = Callable[[str], None]
Keep = Callable[[PaperRun], None]


@dataclass(frozen=True)
class Tools:
    """What a run works with. ``compiler`` compiles ahead in other processes; None compiles at the first launch."""

    device: torch.device
    databases: Overlays
    clock: Callable[[CaseInputs], Clock] = GraphClock
    compiler: Compiler | None = None


def run(
    settings: PaperSettings,
    device: torch.device,
    say: Say,
    keep: Keep = lambda _: None,
    compiler: Compiler | None = None,
    clock: Callable[[CaseInputs], Clock] = GraphClock,
) -> PaperRun:
    """Run every case that fits the device and the budget.

    Args:
        say: receives progress, one line at a time.
        keep: receives the result so far, whenever there is more of it.
    """
    tools = Tools(device, overlay.load(), clock, compiler)
    environment = {
        **describe_environment(device),
        # The assembler decides what becomes of loads around a prefetch.
        "ptxas": _ptxas_version(),
        "paper_template_sha256": template_hash(PAPER_DECODE, frozenset()),
    }
    result = PaperRun(settings.to_dict(), environment)
    started = time.monotonic()
    _compile_ahead(settings, tools)
    for case in settings.cases:
        spent = time.monotonic() - started
        if settings.budget_s is not None and spent >= settings.budget_s:
            result.left_out.append(LeftOut(str(case), f"the budget of {settings.budget_s:g} s was spent"))
            continue
        try:
            result.cases.append(measure_case(case, settings, tools))
        except Exception as error:  # the other cases are still worth having
            room = isinstance(error, (CaseTooLargeError, torch.OutOfMemoryError))
            result.left_out.append(LeftOut(str(case), _first_line(error), failed=not room))
            say(f"{case}: left out\n{traceback.format_exc()}")
        else:
            say(f"{_line(result.cases[-1])} ({time.monotonic() - started:.0f} s)")
        if device.type == "cuda":
            torch.cuda.empty_cache()
        keep(result)
    return result


def _ptxas_version() -> str | None:
    """Of the assembler that Triton calls; None where there is none."""
    from triton import knobs

    try:
        return str(knobs.nvidia.ptxas.version)
    except (AttributeError, RuntimeError):
        return None


def _compile_ahead(settings: PaperSettings, tools: Tools) -> None:
    """Let the compiler's processes begin with what the searches will try first, in the order of the cases."""
    if tools.compiler is None:
        return
    for case in settings.cases:
        spec = case.spec()
        key = key_of(spec)
        for config in likely_configs(spec, profile(tools.device), tools.databases):
            tools.compiler.submit(key, config)


def measure_case(case: PaperCase, settings: PaperSettings, tools: Tools) -> CaseResult:
    """Every column of one case.

    Raises:
        CaseTooLargeError: its caches do not fit.
    """
    l2_bytes = profile(tools.device).l2_bytes
    caches = caches_for(case.kv_bytes, l2_bytes)
    if tools.device.type == "cuda":
        require_room(case, caches, torch.cuda.mem_get_info(tools.device)[0])
    inputs = make_inputs(case, caches, tools.device, settings.seed)
    expected = yardstick_of(inputs)
    clock = tools.clock(inputs)
    probes = probe_warps(inputs, expected, clock)
    warps = best_warps(probes)
    configs = _our_configs(inputs, expected, clock, settings.trials, tools)
    makers: list[tuple[Column, Callable[[], Contestant]]] = [
        *((column, partial(paper_style, inputs, column, warps)) for column in PAPER_STYLE),
        (Column.OURS_DEPTH0, partial(ours, inputs, Column.OURS_DEPTH0, configs.depth0.config, configs.depth0.source)),
        (Column.OURS_FREE, partial(ours, inputs, Column.OURS_FREE, configs.free.config, configs.free.source)),
        (Column.CUDNN, partial(cudnn, inputs)),
    ]
    columns = _time_columns(makers, expected, clock, settings.rounds)
    named = {str(warps): times for warps, times in probes.items()}
    return CaseResult(str(case), case.kv_bytes, caches, warps, named, columns)


def _our_configs(inputs: CaseInputs, expected: Yardstick, clock: Clock, trials: int, tools: Tools) -> OurConfigs:
    def time_configs(configs: Sequence[KernelConfig]) -> list[float | None]:
        return _time_configs(configs, inputs, expected, clock, tools.compiler)

    return choose_ours(inputs.case.spec(), profile(tools.device), tools.databases, trials, time_configs)


def _time_configs(
    configs: Sequence[KernelConfig],
    inputs: CaseInputs,
    expected: Yardstick,
    clock: Clock,
    compiler: Compiler | None,
) -> list[float | None]:
    """Rough times of configurations of ours, side by side; None for one that does not compile, run or compute."""
    if compiler is not None:
        key = key_of(inputs.case.spec())
        outcomes = [future.result() for future in [compiler.submit(key, config) for config in configs]]
        refused = {
            config for config, outcome in zip(configs, outcomes, strict=True) if isinstance(outcome, TrialFailure)
        }
    else:
        refused = set()
    prepared = {}
    for config in configs:
        if config in refused:
            continue
        contestant = ours(inputs, Column.OURS_FREE, config, "")
        try:
            verified(contestant, expected)
            prepared[config] = clock.prepare(contestant.launch)
        except Exception:  # a configuration that does not work here is none to choose
            continue
    samples = clock.rounds(list(prepared.values()), SEARCH_ROUNDS) if prepared else []
    times = {config: statistics.median(taken) for config, taken in zip(prepared, samples, strict=True)}
    return [times.get(config) for config in configs]


def _time_columns(
    makers: Sequence[tuple[Column, Callable[[], Contestant]]], expected: Yardstick, clock: Clock, rounds: int
) -> list[ColumnResult]:
    """Verify each, then time those that passed together. One that fails is listed with its reason."""
    results, prepared = [], []
    for column, make in makers:
        result = ColumnResult(column)
        try:
            contestant = make()
            result.detail = contestant.detail
            result.error = verified(contestant, expected)
            prepared.append((result, clock.prepare(contestant.launch)))
        except Exception as error:  # a peer that cannot run is a result, not the end of the run
            result.failure = _first_line(error)
        results.append(result)
    samples = clock.rounds([one for _, one in prepared], rounds)
    for (result, _), taken in zip(prepared, samples, strict=True):
        result.samples_us = taken
    return results


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]


def _line(case: CaseResult) -> str:
    """One line on a case as soon as it is done."""
    times = {column.value: case.us(column) for column in Column}
    return f"{case.case}: " + ", ".join(f"{name} {'-' if us is None else f'{us:.1f}'}" for name, us in times.items())
