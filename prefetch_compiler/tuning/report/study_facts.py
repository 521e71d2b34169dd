"""What a study of ours says: its key, every trial's configuration and time, and what became of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..remembered import RememberedTrial, remember_all
from ..study_store import PUBLISHED

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial


@dataclass(frozen=True)
class StudyFacts:
    """Times are microseconds, of one measurement each: the search's own, before any finals.

    Attributes:
        title: the tuning key, or the study's name where the study is not of ours.
        trials: all of Optuna's, finished ones.
        measured: trials of ours with a time, the fastest first.
        counted: trials of ours that were paid for.
        failures: trials of ours without a time, by kind.
        facts: what the study says of itself (device, versions, ...), in order.
        default: the heuristic's configuration; ``published`` the one that was recorded in the end.
    """

    study: optuna.Study
    title: str
    trials: tuple[FrozenTrial, ...]
    measured: tuple[RememberedTrial, ...]
    counted: int
    failures: Counter[str] = field(default_factory=Counter)
    facts: tuple[tuple[str, str], ...] = ()
    default: str | None = None
    published: str | None = None

    @property
    def best(self) -> RememberedTrial | None:
        return self.measured[0] if self.measured else None

    @property
    def best_depth0(self) -> RememberedTrial | None:
        return next((trial for trial in self.measured if not trial.config.prefetches), None)

    @property
    def default_us(self) -> float | None:
        """The heuristic's time, where it was measured."""
        times = (trial.objective_us for trial in self.measured if trial.config.encode() == self.default)
        return next(times, None)

    @property
    def gain(self) -> float | None:
        """The heuristic's time over the best."""
        return _ratio(self.default_us, self.best)

    @property
    def depth0_gain(self) -> float | None:
        """The best time without prefetch over the best."""
        bare = self.best_depth0
        return None if bare is None else _ratio(bare.objective_us, self.best)

    def by_depth(self) -> dict[int, RememberedTrial]:
        """For each prefetch depth that was tried the fastest trial: everything else at its best."""
        found: dict[int, RememberedTrial] = {}
        for trial in self.measured:
            found.setdefault(trial.config.prefetch_depth, trial)
        return dict(sorted(found.items()))

    def tried_by_depth(self) -> Counter[int]:
        return Counter(trial.config.prefetch_depth for trial in self.measured)


_FACTS = ("device", "template_hash", "torch", "triton", "driver")
_MOST_CHARACTERS = {"template_hash": 12}


def facts_of(study: optuna.Study) -> StudyFacts:
    trials = tuple(trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished())
    remembered = remember_all(trials)
    measured = [trial for trial in remembered if trial.objective_us is not None]
    said = study.user_attrs
    return StudyFacts(
        study=study,
        title=str(said.get("key", study.study_name)),
        trials=trials,
        measured=tuple(sorted(measured, key=lambda trial: (trial.objective_us or 0.0, trial.number))),
        counted=sum(trial.counts for trial in remembered),
        failures=Counter(trial.failure.value for trial in remembered if trial.failure is not None),
        facts=tuple(
            (name.replace("_", " "), str(said[name])[: _MOST_CHARACTERS.get(name, 60)])
            for name in _FACTS
            if said.get(name)
        ),
        default=_text(said.get("default")),
        published=_text(said.get(PUBLISHED)),
    )


def _ratio(time_us: float | None, best: RememberedTrial | None) -> float | None:
    return time_us / best.objective_us if time_us and best is not None and best.objective_us else None


def _text(value: object) -> str | None:
    return None if value is None else str(value)
