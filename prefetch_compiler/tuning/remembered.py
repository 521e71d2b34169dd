"""What a trial in storage says: the configuration, where it came from, and what it showed. The report reads this."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from ..config import KernelConfig
from ..database.record import FillTiming
from ..errors import InvalidConfigError
from .acceptance import timing_of
from .protocol import FailureKind, Outcome, TrialFailure

# User attributes of a trial.
CONFIG, WORKER, SOURCE, RESULT = "config", "worker", "source", "result"


@dataclass(frozen=True)
class RememberedTrial:
    """``objective_us`` is None for what failed, and ``failure`` for what did not. ``counts``: it cost a trial."""

    number: int
    config: KernelConfig
    source: str
    counts: bool
    objective_us: float | None
    failure: FailureKind | None
    detail: str
    fills: tuple[FillTiming, ...]


def result_attribute(outcome: Outcome, counts: bool) -> dict[str, Any]:
    """Plain data for a trial's RESULT."""
    if isinstance(outcome, TrialFailure):
        failed = {"failure": outcome.kind.value, "detail": outcome.detail[:500], "seconds": round(outcome.seconds, 3)}
        return {"counts": counts, **failed}
    timing = timing_of(outcome)
    return {
        "counts": counts,
        "fills": [[fill.held, fill.kv_bytes, fill.median_us, fill.ceiling_us] for fill in outcome.fills],
        "p20_us": timing.p20_us,
        "p80_us": timing.p80_us,
        "error": outcome.error,
    }


def repeated_attribute(of: RememberedTrial) -> dict[str, Any]:
    """RESULT of a trial that was answered from an earlier one."""
    return {"counts": False, "same_as": of.number}


def remember(trial: FrozenTrial) -> RememberedTrial | None:
    """What a finished trial showed; None for one that was given up, or only repeats another."""
    result = trial.user_attrs.get(RESULT)
    if trial.state not in (TrialState.COMPLETE, TrialState.PRUNED) or not isinstance(result, dict):
        return None
    if "same_as" in result:
        return None
    try:
        config = KernelConfig.decode(trial.user_attrs[CONFIG])
        failure = FailureKind(result["failure"]) if "failure" in result else None
        fills = tuple(FillTiming(*fill) for fill in result.get("fills", ()))
    except (KeyError, TypeError, ValueError, InvalidConfigError):
        return None
    return RememberedTrial(
        number=trial.number,
        config=config,
        source=str(trial.user_attrs.get(SOURCE, "sampler")),
        counts=bool(result.get("counts")),
        objective_us=trial.value if failure is None else None,
        failure=failure,
        detail=str(result.get("detail", "")),
        fills=fills,
    )


def remember_all(trials: Iterable[FrozenTrial]) -> list[RememberedTrial]:
    """Every trial that showed something, in order."""
    return [found for trial in trials if (found := remember(trial)) is not None]
