"""Proving a database anew: every record admissible and compilable for its GPU, and on that GPU correct, and as fast as
it says.

The file itself was checked when it was read. Without the GPU a record is compiled for it; the assembler tells registers
and spills. A record that cannot even be looked at is one that failed; the others are checked all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from ..config import KernelConfig
from ..database.device_identity import identity_of
from ..database.document import Database
from ..database.merge import objective_us
from ..database.record import DeviceIdentity, TuningRecord
from ..device import INTERPRETER, REFERENCE_DEVICES, DeviceProfile, interpreting, profile
from ..select.admissible import why_inadmissible
from ..select.heuristic import choose

if TYPE_CHECKING:
    from ..tuning.compile_pool import CompileOutcome, Compiler
    from ..tuning.protocol import Measurer

# Seeds that neither trials (the job's seed) nor finals (that plus 10,000) draw inputs from.
VERIFY_SEED_OFFSET = 20_000
# A run of another day, at other clocks: records are compared within runs, so this finds what is broken, not noise.
DEFAULT_TOLERANCE = 1.25


@dataclass(frozen=True)
class Checked:
    """What became of one record. ``problem`` is None when nothing was found; a time ratio is now over recorded."""

    record: TuningRecord
    problem: str | None
    error: float | None = None
    time_ratio: float | None = None


@dataclass(frozen=True)
class Means:
    """What records are checked with. Without a compiler they are not compiled, without a measurer they do not run.

    Attributes:
        tolerance: the largest ratio of the time now to the recorded one; None compares no times.
    """

    profile: DeviceProfile
    compiler: Compiler | None = None
    measurer: Measurer | None = None
    tolerance: float | None = None


def profile_of(device: DeviceIdentity) -> DeviceProfile | None:
    """Limits of a database's GPU: of the one that is here if it is that model, else public figures of its architecture
    (with the database's own name and SM count). The interpreter's are known where it runs."""
    if device == identity_of(INTERPRETER) and interpreting():
        return INTERPRETER
    present = matching_gpu(device)
    if present is not None:
        return profile(present)
    reference = REFERENCE_DEVICES.get(device.arch) if device.backend == "cuda" else None
    return None if reference is None else replace(reference, name=device.name, sm_count=device.sm_count)


def matching_gpu(device: DeviceIdentity) -> torch.device | None:
    """The first GPU here that is of this model."""
    gpus = (torch.device("cuda", index) for index in range(torch.cuda.device_count()))
    return next((gpu for gpu in gpus if identity_of(profile(gpu)) == device), None)


def verify(
    database: Database, means: Means, progress: Callable[[list[Checked]], None] = lambda checked: None
) -> list[Checked]:
    """Check every record, in order. ``progress`` is told of those that are done, after each. Never raises for what a
    record does."""
    waiting = _submit(database, means)
    checked: list[Checked] = []
    for record in database.records:
        try:
            checked.append(_check(record, means, waiting.get(record)))
        except Exception as error:
            checked.append(Checked(record, f"it cannot be checked: {type(error).__name__}: {error}"))
        progress(checked)
    return checked


def _submit(database: Database, means: Means) -> dict[TuningRecord, Future[CompileOutcome]]:
    """Compile whatever is admissible, all at once: the pool keeps its processes busy."""
    if means.compiler is None:
        return {}
    return {record: _compiling(record, means, means.compiler) for record in database.records}


def _compiling(record: TuningRecord, means: Means, compiler: Compiler) -> Future[CompileOutcome]:
    """What goes wrong here is told when the record's turn comes."""
    failed: Future[CompileOutcome] = Future()
    try:
        if _why_inadmissible(record, means) is None:
            return compiler.submit(record.key, record.config)
    except Exception as error:
        failed.set_exception(error)
    return failed


def _check(record: TuningRecord, means: Means, compiling: Future[CompileOutcome] | None) -> Checked:
    found = _inadmissible(record, means) or _uncompilable(record, means, compiling)
    if found is not None:
        return Checked(record, found)
    return _measured(record, means) if means.measurer is not None else Checked(record, None)


def _why_inadmissible(record: TuningRecord, means: Means) -> str | None:
    return why_inadmissible(record.key.spec(), record.config, means.profile)


def _inadmissible(record: TuningRecord, means: Means) -> str | None:
    reason = _why_inadmissible(record, means)
    return None if reason is None else f"inadmissible: {reason}"


def _uncompilable(record: TuningRecord, means: Means, compiling: Future[CompileOutcome] | None) -> str | None:
    if compiling is None:
        return None
    from ..tuning.feasible import spill_limit, why_too_large
    from ..tuning.protocol import TrialFailure

    compiled = compiling.result()
    if isinstance(compiled, TrialFailure):
        return f"{compiled.kind.value}: {compiled.detail}"
    if why_too_large(compiled, means.profile, spill_limit(())) is None:
        return None
    # The search lets a kernel spill as much as the default does, whose kernel is compiled already more often than not.
    default = means.compiler.submit(record.key, _default(record, means)).result() if means.compiler else ()
    limit = spill_limit(() if isinstance(default, TrialFailure) else default)
    reason = why_too_large(compiled, means.profile, limit)
    return None if reason is None else f"resources: {reason}"


def _default(record: TuningRecord, means: Means) -> KernelConfig:
    measurement = record.evidence.measurement
    return choose(record.key.spec(), means.profile) if measurement is None else measurement.default.config


def _measured(record: TuningRecord, means: Means) -> Checked:
    from ..tuning.protocol import TrialFailure, TrialRequest

    assert means.measurer is not None
    seed = record.evidence.seed + VERIFY_SEED_OFFSET
    outcome = means.measurer.trial(TrialRequest(record.key, record.config, seed))
    if isinstance(outcome, TrialFailure):
        return Checked(record, f"{outcome.kind.value}: {outcome.detail}")
    if means.tolerance is None or not record.measured:
        return Checked(record, None, outcome.error)
    ratio = outcome.objective_us / objective_us(record)
    slow = f"it takes {ratio:.2f} times what was recorded; the limit is {means.tolerance:g}"
    return Checked(record, slow if ratio > means.tolerance else None, outcome.error, ratio)


def problems(checked: list[Checked]) -> Iterator[str]:
    """One line for each record that failed."""
    for one in checked:
        if one.problem is not None:
            yield f"{one.record.key.name}, {one.record.config.encode()}: {one.problem}"
