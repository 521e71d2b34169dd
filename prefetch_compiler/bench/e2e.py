"""The end-to-end run: every variant's whole decode steps, side by side in one process, with the floor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .case import Case, by_shape
from .ceiling import ReadCeiling, measure_ceiling
from .check import Oracle
from .compile_time import CompileComparison, compare_compile_time
from .environment import describe_environment
from .flex_mask import unbroken_block_mask
from .floor import step_bytes
from .group import CaseGroup, Say
from .model import BenchModel, find_bench_model
from .result import RunResult
from .settings import Settings
from .step import fresh_compiler

Keep = Callable[[RunResult], None]


def run(
    settings: Settings,
    device: torch.device,
    say: Say = print,
    keep: Keep = lambda _: None,
    bench_model: BenchModel | None = None,
) -> RunResult:
    """Run every case.

    Args:
        say: receives progress, one line at a time.
        keep: receives the result so far, whenever there is more of it.
        bench_model: the model, if not the one that ``settings`` names.
    """
    bench_model = bench_model or find_bench_model(settings.model, settings.layers)
    result = RunResult(settings.to_dict(), describe_environment(device))
    model = bench_model.load(device, settings.dtype, settings.seed)
    oracle = _make_oracle(model, settings, say)
    for cases in by_shape(settings.chosen_cases()):
        ceilings = {case: _ceiling(model, case, device) for case in cases}
        with fresh_compiler(), unbroken_block_mask():
            result.cases.extend(CaseGroup(settings, bench_model, model, oracle, cases, say).run(ceilings))
        keep(result)
    del model, oracle  # the compile jobs need the memory
    if settings.compile_repeats:
        result.compile_time = _time_compiles(settings, device, say)
        keep(result)
    return result


def _ceiling(model: Any, case: Case, device: torch.device) -> ReadCeiling | None:
    if device.type != "cuda":
        return None
    ceiling = measure_ceiling(step_bytes(model, case).all_bytes, device)
    torch.cuda.empty_cache()
    return ceiling


def _make_oracle(model: Any, settings: Settings, say: Say) -> Oracle | None:
    if not settings.oracle:
        return None
    try:
        return Oracle(model)
    except torch.OutOfMemoryError:
        say("no float64 oracle: it does not fit beside the model")
        return None


def _time_compiles(settings: Settings, device: torch.device, say: Say) -> CompileComparison:
    """Cold compiles of the first case."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    case = settings.chosen_cases()[0]
    say(f"case {case}: timing {settings.compile_repeats} cold compiles each of Inductor and of ours")
    return compare_compile_time(
        settings.model, settings.layers, case, settings.mode, settings.dtype, device, settings.compile_repeats
    )
