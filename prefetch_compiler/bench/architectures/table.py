"""Step times of architectures as a table."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..table import MISSING, Table
from ..variant import BACKEND, FLEX
from .measure import ArchitectureResult

COLUMNS = (
    "architecture",
    "attention",
    "Inductor",
    "FlexAttention",
    "kvprefetch",
    "over Inductor",
    "over Flex",
    "lowered",
)


def table_of(results: Sequence[ArchitectureResult]) -> Table:
    """A row an architecture; milliseconds, and how many times as fast ours is."""
    case = results[0].outcome.case
    title = f"Decode steps of two layers: batch {case.batch}, capacity {case.capacity}, {case.held} keys held (ms)"
    return Table(title, COLUMNS, [_row(result) for result in results], notes_of(results))


def notes_of(results: Sequence[ArchitectureResult]) -> list[str]:
    """Why a figure is missing, and how much faster ours is in the geometric mean."""
    found = [
        f"{result.architecture.name}, {variant.variant.name}: {variant.failure}"
        for result in results
        for variant in result.outcome.variants
        if variant.failure is not None
    ]
    for peer in ("inductor", FLEX.name):
        ratios = [ratio for ratio in (faster(result, peer) for result in results) if ratio is not None]
        if ratios:
            mean = math.exp(math.fsum(map(math.log, ratios)) / len(ratios))
            found.append(
                f"over {peer}: {mean:.2f}x in the geometric mean of {len(ratios)}, {min(ratios):.2f}x the least"
            )
    return found


def faster(result: ArchitectureResult, peer: str) -> float | None:
    """The peer's time over ours."""
    theirs, ours = result.step_us(peer), result.step_us(BACKEND)
    return None if theirs is None or ours is None else theirs / ours


def _row(result: ArchitectureResult) -> tuple[str, ...]:
    times = [_milliseconds(result.step_us(name)) for name in ("inductor", FLEX.name, BACKEND)]
    ratios = [_ratio(faster(result, peer)) for peer in ("inductor", FLEX.name)]
    return (result.architecture.name, result.architecture.attention, *times, *ratios, _lowered(result))


def _milliseconds(us: float | None) -> str:
    return MISSING if us is None else f"{us * 1e-3:.3f}"


def _ratio(ratio: float | None) -> str:
    return MISSING if ratio is None else f"{ratio:.2f}"


def _lowered(result: ArchitectureResult) -> str:
    facts = next((one.compiled for one in result.outcome.variants if one.variant.is_ours), None)
    return MISSING if facts is None else f"{facts.lowered} of {result.outcome.layers}"
