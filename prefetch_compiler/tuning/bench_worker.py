"""What the measuring process runs. It holds one GPU, one key's operands at a time, and may die at any moment."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..bench.ceiling import measure_ceiling
from ..config import KernelConfig
from ..database.key import TuningKey
from ..errors import InadmissibleConfigError
from .ceilings import Ceilings
from .contained import die_with, lead_process_group
from .errors import KeyTooLargeError, WrongResultError
from .protocol import FailureKind, Outcome, TrialFailure, TrialRequest, TrialResult
from .session import Session
from .verification import forget_checks, verify

# Inputs that finalists are verified on.
HELD_OUT_SEEDS = 2
_DETAIL_CHARACTERS = 300
_TRITON_FAILURES = {
    "OutOfResources": FailureKind.RESOURCES,
    "CompilationError": FailureKind.COMPILE_ERROR,
    "PTXASError": FailureKind.COMPILE_ERROR,
}


@dataclass(frozen=True)
class Reply:
    """An outcome for each configuration asked about. ``broken``: this process can no longer use its GPU."""

    outcomes: tuple[Outcome, ...]
    broken: bool = False


_device = torch.device("cpu")
_session: Session | None = None
_ceilings: Ceilings | None = None


def start(device_index: int | None, parent: int) -> None:
    """Take the GPU; without one (None) this process interprets. The process dies with ``parent``, whatever way that
    goes: a measuring process left behind would hold the GPU's memory."""
    global _device, _ceilings
    die_with(parent)
    lead_process_group()
    logging.getLogger("prefetch_compiler").setLevel(logging.ERROR)
    if device_index is None:
        torch.set_num_threads(1)  # tensors this small have nothing for a second one to do
        return
    _device = torch.device("cuda", device_index)
    torch.cuda.set_device(_device)
    _ceilings = Ceilings(lambda byte_count: measure_ceiling(byte_count, _device).samples.median_us)


def trial(request: TrialRequest) -> Reply:
    """Verify one configuration, then time it."""

    def measure() -> Outcome:
        error = verify(request.key, request.config, request.seed, _device)
        return _session_of(request.key).trial(request.config, error)

    return guarded([measure])


def correctness(request: TrialRequest) -> Reply:
    """Verify one configuration on every held-out seed, and time nothing."""
    return guarded([lambda: TrialResult((), (), _verified(request.key, request.config, request.seed))])


def finals(key: TuningKey, configs: tuple[KernelConfig, ...], seed: int) -> Reply:
    """Verify each on inputs that no trial has seen, then time those that pass in interleaved rounds."""
    checked = guarded([lambda config=config: _verified(key, config, seed) for config in configs])  # type: ignore[misc]
    if checked.broken:
        return checked
    outcomes = list(checked.outcomes)
    passed = [n for n, outcome in enumerate(outcomes) if isinstance(outcome, float)]
    measured: list[Outcome] = []

    def measure() -> Outcome:
        errors = [outcomes[n] for n in passed]
        results = _session_of(key).finals([configs[n] for n in passed], errors)  # type: ignore[arg-type]
        measured.extend(results)
        return results[0]

    reply = guarded([measure]) if passed else Reply(())
    for place, n in enumerate(passed):
        outcomes[n] = measured[place] if measured else reply.outcomes[0]
    return Reply(tuple(outcomes), reply.broken)


def _verified(key: TuningKey, config: KernelConfig, seed: int) -> float:
    return max(verify(key, config, seed + more, _device) for more in range(HELD_OUT_SEEDS))


def _session_of(key: TuningKey) -> Session:
    global _session
    assert _ceilings is not None
    if _session is None or _session.key != key:
        _session = None  # its memory, before the next one's is taken
        torch.cuda.empty_cache()
        _session = Session(key, _device, _ceilings)
    return _session


def guarded(tasks: list[Callable[[], object]]) -> Reply:
    """Run each; what it raises becomes a failure. After an error of the device's nothing more can run here."""
    outcomes: list[object] = []
    for task in tasks:
        try:
            outcome = task()
            _synchronize()
            outcomes.append(outcome)
        except Exception as error:
            failure, broken = _failure(error)
            outcomes.append(failure)
            if broken:
                outcomes.extend([failure] * (len(tasks) - len(outcomes)))
                return Reply(tuple(outcomes), broken=True)  # type: ignore[arg-type]
    return Reply(tuple(outcomes))  # type: ignore[arg-type]


def _failure(error: Exception) -> tuple[TrialFailure, bool]:
    """What an exception means, and whether it leaves the device unusable to this process: errors of CUDA's stick to the
    context (CUDA programming guide, "Error checking")."""
    global _session
    detail = " ".join(f"{type(error).__name__}: {error}".split())[:_DETAIL_CHARACTERS]
    if isinstance(error, WrongResultError):
        return TrialFailure(FailureKind.WRONG, error.reason, 0.0), False
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError | KeyTooLargeError):
        _session = None
        forget_checks()
        return TrialFailure(FailureKind.OUT_OF_MEMORY, detail, 0.0), False
    if isinstance(error, InadmissibleConfigError):
        return TrialFailure(FailureKind.INADMISSIBLE, detail, 0.0), False
    # By name: importing Triton for its classes would be all that this module needs it for.
    kind = _TRITON_FAILURES.get(type(error).__name__)
    if kind is not None:
        return TrialFailure(kind, detail, 0.0), False
    if not _device_works():
        return TrialFailure(FailureKind.CRASH, detail, 0.0), True
    return TrialFailure(FailureKind.ERROR, detail, 0.0), False


def _device_works() -> bool:
    try:
        torch.zeros(1, device=_device).add_(1).item()
        _synchronize()
    except Exception:
        return False
    return True


def _synchronize() -> None:
    if _device.type == "cuda":
        torch.cuda.synchronize(_device)
