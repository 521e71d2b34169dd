"""What a measuring process does with a kernel that is wrong: it says so, and never times it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from prefetch_compiler.templates.manifest import TEMPLATES

from prefetch_compiler.config import KernelConfig
from prefetch_compiler.database.key import TuningKey
from prefetch_compiler.tuning import bench_worker
from prefetch_compiler.tuning.bench_worker import Reply
from prefetch_compiler.tuning.finals import judge
from prefetch_compiler.tuning.protocol import FailureKind, TrialFailure, TrialRequest, TrialResult
from prefetch_compiler.tuning.verification import verify

from .fakes import result_of
from .mutants import mutated_templates
from .seeded_bugs import DEVICE, SEEDED_BUGS

# One of every template, and of what they share.
NAMES = (
    "last split dropped",
    "tail too long by one",
    "odd columns of V for the even ones",
    "dropped rotary keys",
)
# A kernel in Gluon has no interpreter: tests/contract/test_latent_producer.py runs its source over NumPy.
GLUON = ("latent_producer",)
FEWEST_BUGS = 12


class Timed:
    """In the place of a session: notes what is timed, and finds everything faster than anything before."""

    def __init__(self, key: TuningKey) -> None:
        self.key = key
        self.timed: list[KernelConfig] = []

    def trial(self, config: KernelConfig, error: float) -> TrialResult:
        self.timed.append(config)
        return result_of(self.key, [1.0] * 15)

    def finals(self, configs: list[KernelConfig], errors: list[float]) -> list[TrialResult]:
        return [self.trial(config, error) for config, error in zip(configs, errors, strict=True)]


def _trial(key: TuningKey, config: KernelConfig) -> Reply:
    return bench_worker.trial(TrialRequest(key, config, seed=0))


def _finals(key: TuningKey, config: KernelConfig) -> Reply:
    return bench_worker.finals(key, (config,), seed=0)


def test_there_are_seeded_bugs_of_every_template() -> None:
    seeded = {bug.module for case in SEEDED_BUGS.values() for bug in case.bugs}
    kernels = {entry.partition(".")[0] for template in TEMPLATES for entry in template.entries}
    assert kernels - {*GLUON} <= seeded
    assert len(SEEDED_BUGS) >= FEWEST_BUGS


@pytest.mark.parametrize("measure", [_trial, _finals])
@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_kernel_is_never_timed(
    name: str,
    measure: Callable[[TuningKey, KernelConfig], Reply],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = SEEDED_BUGS[name]
    session = Timed(case.key)
    monkeypatch.setattr(bench_worker, "_session_of", lambda key: session)
    monkeypatch.setattr(bench_worker, "_device", DEVICE)
    with mutated_templates(case.bugs, tmp_path) as launch:
        monkeypatch.setattr(bench_worker, "verify", partial(verify, launch=launch))
        (outcome,) = measure(case.key, case.config).outcomes
    assert isinstance(outcome, TrialFailure)
    assert outcome.kind is FailureKind.WRONG
    assert session.timed == []
    # Nor does it become the record where nothing else was measured.
    assert judge(case.config, (case.config,), (outcome,)).measurement is None


@pytest.mark.parametrize("measure", [_trial, _finals])
def test_a_right_kernel_is(
    measure: Callable[[TuningKey, KernelConfig], Reply], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = SEEDED_BUGS[NAMES[0]]
    session = Timed(case.key)
    monkeypatch.setattr(bench_worker, "_session_of", lambda key: session)
    monkeypatch.setattr(bench_worker, "_device", torch.device(DEVICE))
    (outcome,) = measure(case.key, case.config).outcomes
    assert isinstance(outcome, TrialResult)
    assert session.timed == [case.config]
