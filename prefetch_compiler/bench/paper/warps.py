"""How many warps the paper's kernel runs with: whichever makes the fastest of its variants fastest, case by case."""

from __future__ import annotations

import math
import statistics

from ...error_bound import Yardstick
from .check import verified
from .clock import Clock
from .contestants import paper_style
from .errors import WrongOutputError
from .inputs import CaseInputs
from .kernel import WARPS
from .variant import PAPER_STYLE, Column

PROBE_ROUNDS = 3
# Microseconds of each variant, by number of warps.
Probes = dict[int, dict[Column, float]]


def probe_warps(inputs: CaseInputs, expected: Yardstick, clock: Clock) -> Probes:
    """Time every variant at every number of warps, roughly, but for those that are wrong."""
    prepared = {}
    for warps in WARPS:
        for column in PAPER_STYLE:
            contestant = paper_style(inputs, column, warps)
            try:
                verified(contestant, expected)
            except WrongOutputError:
                continue
            prepared[warps, column] = clock.prepare(contestant.launch)
    probes: Probes = {warps: {} for warps in WARPS}
    samples = clock.rounds(list(prepared.values()), PROBE_ROUNDS) if prepared else []
    for (warps, column), taken in zip(prepared, samples, strict=True):
        probes[warps][column] = statistics.median(taken)
    return probes


def best_warps(probes: Probes) -> int:
    """Where the fastest variant was; the first number of warps when nothing was timed."""
    return min(probes, key=lambda warps: min(probes[warps].values(), default=math.inf))
