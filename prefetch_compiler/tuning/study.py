"""One Optuna study per key: what to try next, and what is known.

Storage is the only memory: trials carry their configuration and what it showed, so a study resumes after a kill, and
workers that share a storage share its trials. A trial *counts* when it was measured or died trying; what arithmetic or
the compiler's resource figures rule out, and what was proposed before, is told to the sampler and costs nothing.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState

from ..config import KernelConfig
from ..database.key import TuningKey
from ..device import DeviceProfile
from ..errors import InvalidConfigError
from .distributions import SearchSpace
from .feasible import why_spec_infeasible
from .protocol import FailureKind, Outcome, TrialFailure, TrialResult
from .remembered import (
    CONFIG,
    RESULT,
    SOURCE,
    WORKER,
    RememberedTrial,
    remember,
    repeated_attribute,
    result_attribute,
)
from .sampler import SamplerChoice
from .seeds import Seed
from .worker_name import known_dead, worker_name

# Proposals that cost nothing (infeasible, or known) in a row, before a random fresh configuration is taken instead.
MAX_FREE_PROPOSALS = 12
# Draws of a random fresh configuration, before the space counts as exhausted.
MAX_DRAWS = 2000
# No trial takes as long: the worker of another host that holds one is taken for dead.
STALE_AFTER = timedelta(minutes=30)
# Share of the trials after which every other proposal is a neighbour of the best, for samplers with ``+local``.
LOCAL_FROM = 0.35
# What costs nothing, and would cost without end if nothing bounded it: as many as the study has trials.
_FREE_KINDS = (FailureKind.INADMISSIBLE, FailureKind.RESOURCES)
_SEEDED = "seeded"


@dataclass(frozen=True)
class Candidate:
    """A configuration to measure, and the trial that it belongs to."""

    trial: Trial
    config: KernelConfig


class KeyStudy:
    """The search for one key on one device.

    Args:
        study: of Optuna's, with the sampler that ``choice`` made.
        trials: that count, over all workers and all runs.
        seeds: enqueued before the sampler is asked; the first is the default.
        space: all that may be proposed; by default the declared space, as far as key and device allow.
    """

    def __init__(
        self,
        key: TuningKey,
        profile: DeviceProfile,
        study: optuna.Study,
        *,
        trials: int,
        choice: SamplerChoice,
        seeds: Sequence[Seed],
        seed: int,
        space: SearchSpace | None = None,
    ) -> None:
        self.key, self.profile, self.study, self.trials = key, profile, study, trials
        self.default = seeds[0].config
        self.exhausted = False
        self._spec = key.spec()
        self._choice = choice
        self._space = space or SearchSpace(key, profile, [seed.config for seed in seeds])
        self._random = random.Random(seed)
        self._worker = worker_name()
        self._in_flight: dict[KernelConfig, int] = {}
        self._known: dict[KernelConfig, RememberedTrial] = {}
        self._seen: set[int] = set()
        self._asked = 0
        self._depth0_tried: set[KernelConfig] = set()
        self.reclaim()
        if not study.user_attrs.get(_SEEDED):
            for first in seeds:
                self._enqueue(first.config, first.source)
            study.set_user_attr(_SEEDED, True)

    # What is known

    def sync(self) -> list[FrozenTrial]:
        """Read what this and other workers have told."""
        trials = self.study.get_trials(deepcopy=False)
        for trial in trials:
            if trial.state.is_finished() and trial.number not in self._seen:
                self._seen.add(trial.number)
                found = remember(trial)
                if found is not None:
                    self._known.setdefault(found.config, found)
        return trials

    @property
    def counted(self) -> int:
        """Trials that were paid for and are finished."""
        return sum(trial.counts for trial in self._known.values())

    @property
    def enqueued(self) -> bool:
        """Whether the next proposal was decided on before: it depends on no trial under way."""
        return any(trial.state is TrialState.WAITING for trial in self.study.get_trials(deepcopy=False))

    @property
    def finished(self) -> bool:
        self.sync()
        return self.exhausted or self.counted >= self.trials

    def remembered(self) -> list[RememberedTrial]:
        """Everything that was tried or ruled out, each configuration once."""
        self.sync()
        return sorted(self._known.values(), key=lambda trial: trial.number)

    def ranked(self) -> list[RememberedTrial]:
        """What was measured, the fastest first."""
        measured = [trial for trial in self._known.values() if trial.objective_us is not None]
        return sorted(measured, key=lambda trial: (trial.objective_us, trial.number))

    def best(self) -> RememberedTrial | None:
        ranked = self.ranked()
        return ranked[0] if ranked else None

    def best_depth0(self) -> RememberedTrial | None:
        """The best without any prefetch."""
        return next((trial for trial in self.ranked() if not trial.config.prefetches), None)

    # What to try next

    def ask(self) -> Candidate | None:
        """A configuration that is neither known nor ruled out by arithmetic; None when no more trials are to be had:
        all are done or under way, or the space is exhausted."""
        for free in range(2 * MAX_FREE_PROPOSALS):
            trials = self.sync()
            running = sum(trial.state is TrialState.RUNNING for trial in trials)
            if self.exhausted or self.counted + running >= self.trials:
                return None
            if free >= MAX_FREE_PROPOSALS and not self._enqueue_fresh():
                self.exhausted = True
                return None
            self._enqueue_due()
            trial = self.study.ask()
            trial.set_user_attr(WORKER, self._worker)
            config = self._space.suggest(trial)
            trial.set_user_attr(CONFIG, config.encode())
            self._asked += 1
            if not self._settled(trial, config):
                self._in_flight[config] = trial.number
                return Candidate(trial, config)
        return None

    def _settled(self, trial: Trial, config: KernelConfig) -> bool:
        """Whether the proposal was answered without measuring anything."""
        others = self._under_way_elsewhere(trial, config)
        known = self._known.get(config)
        if known is not None:
            trial.set_user_attr(RESULT, repeated_attribute(known))
            self._tell(trial, known.objective_us)
            return True
        if others:
            self.study.tell(trial, state=TrialState.FAIL)
            if trial.number < min(others):
                self._enqueue(config, "again")
            return True
        reason = why_spec_infeasible(self._spec, config, self.profile)
        if reason is None:
            return False
        failure = TrialFailure(FailureKind.INADMISSIBLE, reason, 0.0)
        trial.set_user_attr(RESULT, result_attribute(failure, counts=False))
        self._tell(trial, None)
        return True

    def _under_way_elsewhere(self, trial: Trial, config: KernelConfig) -> list[int]:
        """Other trials, of any worker, that are at the same configuration.

        Read after the trial was given its configuration: of two workers that propose one at the same moment at least
        one sees the other. If both do, both give way, and the earlier trial's worker leaves it to whoever asks next.
        """
        name = config.encode()
        return [
            other.number
            for other in self.sync()
            if other.state is TrialState.RUNNING
            and other.number != trial.number
            and other.user_attrs.get(CONFIG) == name
        ]

    def _tell(self, trial: Trial, objective_us: float | None) -> None:
        """None is a failure: pruned, or a bad time for a sampler that would not see it otherwise."""
        if objective_us is None and not self._choice.learns_from_pruned:
            measured = self.ranked()
            objective_us = 2 * (measured[-1].objective_us or 0) if measured else None
        state = TrialState.PRUNED if objective_us is None else TrialState.COMPLETE
        self.study.tell(trial, objective_us, state=state, skip_if_finished=True)

    def tell(self, candidate: Candidate, outcome: Outcome) -> None:
        """What a configuration showed. Samplers learn to avoid the neighbourhood of what failed."""
        self._in_flight.pop(candidate.config, None)
        free = isinstance(outcome, TrialFailure) and outcome.kind in _FREE_KINDS and self._free_left()
        # Another worker may have told it before: it took us for dead, or was handed the same enqueued trial.
        with suppress(UpdateFinishedTrialError):
            candidate.trial.set_user_attr(RESULT, result_attribute(outcome, counts=not free))
        self._tell(candidate.trial, outcome.objective_us if isinstance(outcome, TrialResult) else None)

    def give_back(self, candidate: Candidate) -> None:
        """Leave a candidate that was not measured to a later run."""
        self._in_flight.pop(candidate.config, None)
        self.study.tell(candidate.trial, state=TrialState.FAIL, skip_if_finished=True)
        self._enqueue(candidate.config, "again")

    def _free_left(self) -> bool:
        spent = sum(trial.failure is FailureKind.RESOURCES and not trial.counts for trial in self._known.values())
        return spent < self.trials

    def reclaim(self) -> None:
        """Trials left running by a worker that is gone are given up, and their configurations tried again."""
        now = datetime.now()
        for trial in self.sync():
            if trial.state is not TrialState.RUNNING or trial.number in self._in_flight.values():
                continue
            owner = str(trial.user_attrs.get(WORKER, ""))
            stale = trial.datetime_start is not None and now - trial.datetime_start > STALE_AFTER
            if owner == self._worker or known_dead(owner) or stale:
                self.study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
                if CONFIG in trial.user_attrs:
                    self._enqueue_name(trial.user_attrs[CONFIG])

    def _enqueue_name(self, name: str) -> None:
        try:
            self._enqueue(KernelConfig.decode(name), "again")
        except InvalidConfigError:
            return

    def _enqueue(self, config: KernelConfig, source: str) -> None:
        self.study.enqueue_trial(self._space.params(config), user_attrs={SOURCE: source}, skip_if_exists=False)

    def _fresh(self, config: KernelConfig) -> bool:
        known = config in self._known or config in self._in_flight
        return not known and why_spec_infeasible(self._spec, config, self.profile) is None

    def _enqueue_due(self) -> None:
        """The best without its prefetch, and for local search a neighbour of the best."""
        best = self.best()
        if best is None:
            return
        bare = best.config.without_prefetch()
        if best.config.prefetches and bare not in self._depth0_tried and self._fresh(bare):
            self._depth0_tried.add(bare)
            self._enqueue(bare, "the best without prefetch")
        elif self._choice.local and self.counted >= LOCAL_FROM * self.trials and self._asked % 2:
            neighbour = next(self._fresh_neighbours(), None)
            if neighbour is not None:
                self._enqueue(neighbour, "neighbour of the best")

    def _fresh_neighbours(self) -> Iterator[KernelConfig]:
        for trial in self.ranked()[:3]:
            around = self._space.neighbours(trial.config)
            self._random.shuffle(around)
            yield from (config for config in around if self._fresh(config))

    def _enqueue_fresh(self) -> bool:
        """Whether a configuration that was not tried yet could be found, at random."""
        for _ in range(MAX_DRAWS):
            config = self._space.draw(self._random)
            if self._fresh(config):
                self._enqueue(config, "random")
                return True
        return False
