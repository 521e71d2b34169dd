"""Replaying searches on recorded tables: study, pipeline and samplers are those of ``kvprefetch tune``; only the
times come from a table. Needs no GPU."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import optuna

from ..config import KernelConfig
from ..database.key import TuningKey
from ..database.record import FillTiming
from ..tuning.pipeline import KeyRun
from ..tuning.protocol import FailureKind, Outcome, TrialFailure, TrialRequest, TrialResult
from ..tuning.sampler import sampler_choice
from ..tuning.seeds import Seed, seeds_for
from ..tuning.study import KeyStudy
from .search_grid import GridSpace
from .search_table import FAILED, TOO_LARGE, SearchTable, time_us

# Shares of the grid's feasible points, as trials, at which the best so far is looked at.
BUDGETS = (0.01, 0.02, 0.03, 0.05)
# Within this share of the optimum, a search has found it.
FOUND = 0.02
# Configurations compiled ahead, as in a real job with 8 or more cores.
WINDOW = 8


class TableMeasurer:
    """Answers trials from a table."""

    def __init__(self, table: SearchTable) -> None:
        self._codes = table.by_config()

    def trial(self, request: TrialRequest) -> Outcome:
        code = self._codes[request.config]
        if code >= 0:
            held = request.key.capacity_bucket
            return TrialResult((FillTiming(held, 1, time_us(code), 0.0),), (), 0.0)
        kind = {FAILED: FailureKind.ERROR, TOO_LARGE: FailureKind.RESOURCES}.get(code, FailureKind.INADMISSIBLE)
        return TrialFailure(kind, "as recorded", 0.0)

    def finals(self, key: TuningKey, configs: tuple[KernelConfig, ...], seed: int) -> tuple[Outcome, ...]:
        return tuple(self.trial(TrialRequest(key, config, seed)) for config in configs)

    def close(self) -> None:
        return


@dataclass(frozen=True)
class Replay:
    """``regrets``: best time so far over the optimum, less 1, after each trial that was paid for."""

    key: str
    sampler: str
    seed: int
    regrets: tuple[float, ...]

    def regret_at(self, trials: int) -> float:
        return self.regrets[min(trials, len(self.regrets)) - 1] if self.regrets else math.inf


@dataclass(frozen=True)
class SamplerScore:
    """``regret``: its median and 90th percentile over keys and seeds, for each budget. ``found``: the share of searches
    within 2 % of the optimum with 5 % of the grid's trials, over all keys and for the key where it is least."""

    sampler: str
    searches: int
    regret: dict[float, tuple[float, float]]
    found: float
    found_worst_key: float


def budget_trials(table: SearchTable, share: float) -> int:
    return max(1, math.floor(share * table.feasible))


def replay(table: SearchTable, sampler: str, seed: int) -> Replay:
    """One search of ``table`` with 5 % of its feasible points as trials."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    choice = sampler_choice(sampler)
    space = GridSpace(table.key, table.profile, table.values)
    study = KeyStudy(
        table.key,
        table.profile,
        optuna.create_study(sampler=choice.make(seed)),
        trials=budget_trials(table, max(BUDGETS)),
        choice=choice,
        seeds=_seeds(table, space),
        seed=seed,
        space=space,
    )
    run = KeyRun(study, None, TableMeasurer(table), seed=seed, window=WINDOW)
    regrets: list[float] = []
    while run.step() is not None:
        best = study.best()
        regret = best.objective_us / table.optimum_us - 1 if best is not None and best.objective_us else math.inf
        regrets += [regret] * (study.counted - len(regrets))
    return Replay(table.key.name, sampler, seed, tuple(regrets))


def _seeds(table: SearchTable, space: GridSpace) -> list[Seed]:
    """The seeds of a real search, as far as the grid holds them."""
    found: dict[KernelConfig, Seed] = {}
    for seed in seeds_for(table.key, table.profile):
        snapped = space.snap(seed.config)
        found.setdefault(snapped, Seed(snapped, seed.source))
    return list(found.values())


def replay_all(
    tables: Sequence[SearchTable], samplers: Sequence[str], seeds: Sequence[int], processes: int = 1
) -> list[Replay]:
    """Every sampler on every table with every seed."""
    jobs = [(table, sampler, seed) for sampler in samplers for table in tables for seed in seeds]
    if processes == 1:
        return [replay(*job) for job in jobs]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        return list(pool.map(_replay_job, jobs, chunksize=4))


def _replay_job(job: tuple[SearchTable, str, int]) -> Replay:
    return replay(*job)


def score(sampler: str, replays: Sequence[Replay], tables: Sequence[SearchTable]) -> SamplerScore:
    """How ``sampler`` did."""
    by_key = {table.key.name: table for table in tables}
    ours = [one for one in replays if one.sampler == sampler]
    regret = {}
    for share in BUDGETS:
        at = sorted(one.regret_at(budget_trials(by_key[one.key], share)) for one in ours)
        regret[share] = (statistics.median(at), at[math.ceil(0.9 * len(at)) - 1])
    found = {name: [one.regret_at(len(one.regrets)) <= FOUND for one in ours if one.key == name] for name in by_key}
    shares = [statistics.fmean(hits) for hits in found.values() if hits]
    return SamplerScore(sampler, len(ours), regret, statistics.fmean(shares), min(shares))


def scores_to_dict(scores: Sequence[SamplerScore], tables: Sequence[SearchTable]) -> dict[str, Any]:
    """Plain data for JSON."""
    return {
        "tables": [
            {"key": table.key.name, "feasible": table.feasible, "optimum_us": table.optimum_us} for table in tables
        ],
        "samplers": [
            {
                "sampler": one.sampler,
                "searches": one.searches,
                "regret": {f"{share:g}": {"median": mid, "p90": high} for share, (mid, high) in one.regret.items()},
                "found": one.found,
                "found_worst_key": one.found_worst_key,
            }
            for one in scores
        ],
    }
