"""The offline job: for each key a study, finals and a record, published at once, so that a kill loses nothing that was
finished. Several workers may run the same job on one storage: Optuna divides the trials of each key among them, and
the worker that finishes a key's last trial settles it.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path

from optuna.storages import BaseStorage

from ..config import KernelConfig
from ..database.device_identity import identity_of
from ..database.document import Database
from ..database.errors import DatabaseError
from ..database.key import TuningKey
from ..database.record import Evidence, Measurement, TuningRecord
from ..database.store import file_name, publish, read
from ..device import DeviceProfile
from ..errors import InadmissibleConfigError
from ..select.admissible import why_inadmissible
from .acceptance import MIN_GAIN
from .compile_pool import Compiler
from .events import Ending, JobFinished, JobStarted, KeyFinished, KeyStarted, Report, TrialFinished, silent
from .finals import FINALISTS, ceiling_share, decide, gb_per_s
from .key_order import in_order
from .model_measurer import MODEL_MIN_GAIN
from .pipeline import KeyRun
from .protocol import Measurer, Outcome, TrialFailure, TrialResult
from .sampler import DEFAULT_SAMPLER, sampler_choice
from .seeds import seeds_for
from .storage import storage_errors
from .study import KeyStudy
from .study_store import mark_published, mark_settling, open_study, published, settled_elsewhere
from .toolchain import ToolchainOf

DEFAULT_TRIALS = 64
DEFAULT_TIMEOUT_S = 300.0
# Between a key's last trial and the claim on its finals lies a moment in which nobody seems to be at it.
_GRACE_S = 2.0
_PAUSE_S = 0.5


@dataclass(frozen=True)
class JobSettings:
    """
    Attributes:
        trials: a key, over all workers and runs.
        timeout_s: for the trials of one key; what was found by then is settled.
        window: configurations compiled ahead.
        retune: forget earlier studies of these keys.
        shared: other workers run the same job.
        modelled: the measurer only models the device: records are unmeasured.
    """

    trials: int = DEFAULT_TRIALS
    seed: int = 0
    sampler: str = DEFAULT_SAMPLER
    timeout_s: float = DEFAULT_TIMEOUT_S
    finalists: int = FINALISTS
    window: int = 16
    retune: bool = False
    shared: bool = False
    modelled: bool = False


@dataclass(frozen=True)
class JobResult:
    """``path`` holds the records, whether of this run or an earlier one."""

    path: Path
    keys: tuple[KeyFinished, ...]
    finished: JobFinished


def database_path(out: Path, profile: DeviceProfile, modelled: bool = False) -> Path:
    """``out`` itself if it names a JSON file, else the device's file in the folder ``out``. Modelled records have a
    file of their own, whose name says so."""
    if out.suffix == ".json" and not out.is_dir():
        return out
    name = file_name(identity_of(profile))
    return out / (f"{name.removesuffix('.json')}.unmeasured.json" if modelled else name)


def tune_keys(
    keys: Sequence[TuningKey],
    measurer: Measurer,
    *,
    profile: DeviceProfile,
    toolchain: ToolchainOf,
    storage: BaseStorage,
    out: Path,
    settings: JobSettings | None = None,
    compiler: Compiler | None = None,
    records: Sequence[TuningRecord] = (),
    report: Report = silent,
) -> JobResult:
    """Tune ``keys`` and publish a record of each into the database at ``out`` (a file, or a folder of such).

    Args:
        measurer: of the device that ``profile`` describes. It is not closed here, nor is ``compiler``.
        toolchain: what a record of a key and a configuration will depend on, and without one the key's study.
        records: of earlier jobs, whose configurations are tried first.

    Raises:
        UnknownSamplerError, MissingSamplerPackageError: ``settings.sampler``.
        DatabaseError: a record could not be published.
        StudyStorageError: ``storage`` failed. The job can be started again: what was told to it and published stays.
    """
    settings = settings or JobSettings()
    sampler_choice(settings.sampler)
    path = database_path(out, profile, settings.modelled)
    job = _Job(profile, toolchain, measurer, compiler, storage, path, settings, list(records), report)
    with storage_errors():
        return job.run(keys)


@dataclass
class _Open:
    """A key that is being worked on."""

    key: TuningKey
    study: KeyStudy
    run: KeyRun
    known: int
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started


@dataclass
class _Job:
    profile: DeviceProfile
    toolchain: ToolchainOf
    measurer: Measurer
    compiler: Compiler | None
    storage: BaseStorage
    path: Path
    settings: JobSettings
    records: list[TuningRecord]
    report: Report
    finished: list[KeyFinished] = field(default_factory=list)
    unsettled: list[TuningKey] = field(default_factory=list)
    numbers: dict[TuningKey, int] = field(default_factory=dict)

    def run(self, keys: Sequence[TuningKey]) -> JobResult:
        start = time.monotonic()
        ordered = in_order(keys)
        self.numbers = {key: number for number, key in enumerate(ordered, start=1)}
        self.report(JobStarted(self.profile.name, len(ordered), self.settings.trials, self.settings.sampler))
        queue = deque(ordered)
        current = self._next(queue)
        while current is not None:
            upcoming = self._run_trials(current, queue)
            self._end(current)
            current = upcoming or self._next(queue)
        for key in self.unsettled:
            self._settle_later(key)
        return self._result(time.monotonic() - start)

    def _next(self, queue: deque[TuningKey]) -> _Open | None:
        """The first key of the queue that has work left."""
        while queue:
            opened = self._open(queue.popleft(), fresh=self.settings.retune)
            if opened is not None:
                return opened
        return None

    def _open(self, key: TuningKey, fresh: bool = False) -> _Open | None:
        try:
            seeds = seeds_for(key, self.profile, self.records)
        except InadmissibleConfigError as error:
            self._finish(KeyFinished(key.name, Ending.FAILED, str(error), 0, 0.0))
            return None
        settings = self.settings
        study = open_study(
            key,
            self.profile,
            self.toolchain(key, None),
            self.storage,
            seeds,
            trials=settings.trials,
            sampler=settings.sampler,
            seed=settings.seed,
            shared=settings.shared,
            fresh=fresh,
            suffix=" | modelled" if settings.modelled else "",
        )
        recorded = self._recorded(key)
        if published(study) is not None and study.finished and recorded is not None:
            ending = Ending.ELSEWHERE if key in self.unsettled else Ending.KNOWN
            self._finish(_summary(recorded, ending, "published before", 0.0))
            return None
        run = KeyRun(
            study,
            self.compiler,
            self.measurer,
            seed=settings.seed,
            window=settings.window,
            timeout_s=settings.timeout_s,
            shared=settings.shared,
        )
        return _Open(key, study, run, study.counted)

    def _run_trials(self, current: _Open, queue: deque[TuningKey]) -> _Open | None:
        """All trials of ``current`` that fall to this worker. Meanwhile the next key's first configurations, which
        depend on no trial, are compiled; that key is returned."""
        key, upcoming = current.key, None
        current.started = time.monotonic()
        default = current.study.default.encode()
        self.report(KeyStarted(key.name, self.numbers[key], len(self.numbers), default, current.known))
        current.run.fill()
        while (trial := current.run.step()) is not None:
            self._report_trial(current, *trial)
            if upcoming is None and queue:
                upcoming = self._next(queue)
                if upcoming is not None:
                    upcoming.run.fill()
        return upcoming

    # Settling

    def _end(self, opened: _Open) -> None:
        """Settle a key whose last trial was ours. Another worker may be at its last ones: that is looked at later."""
        if opened.run.finished_it or opened.run.timed_out:
            self._settle(opened)
        else:
            self.unsettled.append(opened.key)

    def _settle_later(self, key: TuningKey) -> None:
        """Finish what other workers have left, or wait until they have finished it."""
        start, idle_since = time.monotonic(), time.monotonic()
        while (opened := self._open(key)) is not None:
            while (trial := opened.run.step()) is not None:
                self._report_trial(opened, *trial)
                idle_since = time.monotonic()
            grace = _GRACE_S if self.settings.shared else 0.0
            ours = opened.run.finished_it or (
                opened.study.finished and not settled_elsewhere(opened.study) and time.monotonic() - idle_since >= grace
            )
            if ours or opened.run.timed_out or time.monotonic() - start > self.settings.timeout_s:
                self._settle(opened)
                return
            time.sleep(_PAUSE_S)

    def _settle(self, opened: _Open) -> None:
        mark_settling(opened.study)
        settings = self.settings
        min_gain = MODEL_MIN_GAIN if settings.modelled else MIN_GAIN
        verdict = decide(opened.study, self.measurer, settings.seed, settings.finalists, min_gain)
        if verdict.measurement is None:
            trials = opened.study.counted
            self._finish(KeyFinished(opened.key.name, Ending.FAILED, verdict.reason, trials, opened.seconds))
            return
        record = self._record(opened, verdict.config, verdict.measurement)
        publish(self.path, Database(identity_of(self.profile), (record,)), self._why_not)
        mark_published(opened.study, verdict.config.encode())
        self.records.append(record)
        ending = Ending.TUNED if verdict.beat_default else Ending.DEFAULT
        ending = Ending.MODELLED if self.settings.modelled else ending
        self._finish(_summary(record, ending, verdict.reason, opened.seconds))

    def _record(self, opened: _Open, config: KernelConfig, measurement: Measurement) -> TuningRecord:
        modelled = self.settings.modelled
        evidence = Evidence(
            toolchain=self.toolchain(opened.key, config),
            trials=opened.study.counted,
            seed=self.settings.seed,
            date=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            measurement=None if modelled else measurement,
            modelled_us=measurement.timing.median_us if modelled else None,
        )
        return TuningRecord(opened.key, config, evidence)

    def _why_not(self, record: TuningRecord) -> str | None:
        return why_inadmissible(record.key.spec(), record.config, self.profile)

    def _recorded(self, key: TuningKey) -> TuningRecord | None:
        """What the database holds for ``key`` from these kernels and this compiler."""

        def is_it(record: TuningRecord) -> bool:
            here = self.toolchain(key, record.config)
            return record.identity == (key, here.template, here.template_hash, here.triton_minor)

        try:
            return next((record for record in read(self.path).records if record.key == key and is_it(record)), None)
        except DatabaseError:
            return None

    # Reporting

    def _finish(self, event: KeyFinished) -> None:
        self.finished.append(event)
        self.report(event)

    def _report_trial(self, opened: _Open, config: KernelConfig, outcome: Outcome) -> None:
        study = opened.study
        best, counted = study.best(), study.counted
        done = counted - opened.known
        eta_s = opened.seconds / done * max(0, study.trials - counted) if done > 0 else None
        shown = TrialResult(best.fills, (), 0.0) if best is not None else None
        self.report(
            TrialFinished(
                key=opened.key.name,
                trial=counted,
                trials=study.trials,
                config=config.encode(),
                objective_us=outcome.objective_us if isinstance(outcome, TrialResult) else None,
                failure=outcome.kind.value if isinstance(outcome, TrialFailure) else None,
                detail=outcome.detail if isinstance(outcome, TrialFailure) else "",
                best=best.config.encode() if best is not None else None,
                best_us=best.objective_us if best is not None else None,
                gb_per_s=gb_per_s(shown) if shown is not None else None,
                ceiling_share=(ceiling_share(shown) or None) if shown is not None else None,
                eta_s=eta_s,
            )
        )

    def _result(self, seconds: float) -> JobResult:
        settled = [event for event in self.finished if event.ending is not Ending.FAILED]
        finished = JobFinished(
            database=str(self.path),
            records=len(settled),
            failed=len(self.finished) - len(settled),
            seconds=seconds,
            gain=_geometric_mean([event.gain for event in settled]),
            depth0_gain=_geometric_mean([event.depth0_gain for event in settled]),
        )
        self.report(finished)
        return JobResult(self.path, tuple(self.finished), finished)


def _summary(record: TuningRecord, ending: Ending, reason: str, seconds: float) -> KeyFinished:
    """What is said of a key that has a record. Of an unmeasured one only the modelled time is known."""
    measurement, evidence = record.evidence.measurement, record.evidence
    known = KeyFinished(
        record.key.name, ending, reason, evidence.trials, seconds, record.config.encode(), evidence.modelled_us
    )
    if measurement is None:
        return known
    total_us = sum(fill.median_us for fill in measurement.fills)
    return replace(
        known,
        time_us=measurement.timing.median_us,
        default_us=measurement.default.timing.median_us,
        depth0_us=measurement.best_depth0.timing.median_us,
        gb_per_s=sum(fill.kv_bytes for fill in measurement.fills) / total_us / 1000 if total_us else None,
        ceiling_share=measurement.ceiling_share or None,
    )


def _geometric_mean(gains: Sequence[float | None]) -> float | None:
    known = [math.log(gain) for gain in gains if gain is not None]
    return math.exp(statistics.fmean(known)) if known else None
