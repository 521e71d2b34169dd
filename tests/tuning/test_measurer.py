"""Whatever a trial does to its process costs that trial, bounded seconds and a fresh process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from prefetch_compiler.database.key import Alignment, Layout, MaskClass, TuningKey
from prefetch_compiler.tuning.bench_worker import Reply
from prefetch_compiler.tuning.errors import NoTuningGpuError
from prefetch_compiler.tuning.measurer import KILL_S, GpuMeasurer, Worker, WorkerMeasurer
from prefetch_compiler.tuning.protocol import FailureKind, Outcome, TrialFailure, TrialRequest, TrialResult

from . import faults

ROOT = Path(__file__).parents[2]
KEY = TuningKey("float16", "float16", 2, 2, 16, 16, 1, 4, 64, Layout.BHSD, Alignment.TMA, MaskClass.BOOL)
DEADLINE_S = 30.0
SHORT_DEADLINE_S = 1.0
# Generous: two shared cores.
MOST_S = 20.0


@pytest.fixture(autouse=True, scope="module")
def _tasks_can_be_imported() -> Iterator[None]:
    """A worker imports its tasks by name, from where this process would."""
    sys.path.insert(0, str(ROOT))
    yield
    sys.path.remove(str(ROOT))


@pytest.fixture(scope="module")
def worker(_tasks_can_be_imported: None) -> Iterator[Worker]:
    worker = Worker(faults.start)
    yield worker
    worker.close()


def ask(worker: Worker, task: Callable[..., Reply], *arguments: object, deadline_s: float = DEADLINE_S) -> Outcome:
    (outcome,) = worker.run(task, arguments, deadline_s, 1)
    return outcome


def works(worker: Worker) -> bool:
    return ask(worker, faults.fine) == faults.result()


def alive(pid: int) -> bool:
    """Whether a process runs, zombies not counted."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rsplit(")", 1)[1].split()[0] != "Z"


def gone(pid: int, within_s: float) -> bool:
    until = time.monotonic() + within_s
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.05)
    return not alive(pid)


def parent_of(process: Path) -> int | None:
    """The parent of a live process, a folder in /proc."""
    try:
        fields = (process / "stat").read_text().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else int(fields[1])


def children() -> set[int]:
    """Live processes that this one started."""
    return {int(process.name) for process in Path("/proc").glob("[0-9]*") if parent_of(process) == os.getpid()}


@pytest.mark.parametrize(
    ("task", "kind", "detail"),
    [
        (faults.segmentation_fault, FailureKind.CRASH, f"exit code -{int(signal.SIGSEGV)}"),
        (faults.aborts, FailureKind.CRASH, f"exit code -{int(signal.SIGABRT)}"),
        (faults.killed, FailureKind.CRASH, f"exit code -{int(signal.SIGKILL)}"),
        (faults.endless, FailureKind.HANG, "killed after 1 s"),
        (faults.deaf, FailureKind.HANG, "killed after 1 s"),
        (faults.raises, FailureKind.ERROR, "RuntimeError: something else"),
        (faults.device_out_of_memory, FailureKind.OUT_OF_MEMORY, "CUDA out of memory"),
        (faults.out_of_memory, FailureKind.OUT_OF_MEMORY, "MemoryError"),
        (faults.wrong, FailureKind.WRONG, "a long cache: the error is 3 times its bound"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_fault_costs_one_trial(worker: Worker, task: Callable[..., Reply], kind: FailureKind, detail: str) -> None:
    assert works(worker)
    before = len(children())
    started = time.monotonic()
    outcome = ask(worker, task, deadline_s=SHORT_DEADLINE_S if kind is FailureKind.HANG else DEADLINE_S)
    took = time.monotonic() - started
    assert isinstance(outcome, TrialFailure)
    assert outcome.kind is kind
    assert detail in outcome.detail
    assert outcome.seconds == pytest.approx(took, abs=0.5)
    assert took < (SHORT_DEADLINE_S + KILL_S if kind is FailureKind.HANG else MOST_S)
    assert works(worker)
    assert len(children()) == before


def test_an_error_that_sticks_to_the_device_costs_one_trial_and_the_process(worker: Worker, tmp_path: Path) -> None:
    """What else was asked of that process was not measured; the next trial is, by another one."""
    assert ask(worker, faults.pid_in, tmp_path / "pid") == faults.result()
    outcomes = worker.run(faults.illegal_access, (), DEADLINE_S, 2)
    assert [getattr(outcome, "kind", None) for outcome in outcomes] == [FailureKind.CRASH] * 2
    assert all("illegal memory access" in getattr(outcome, "detail", "") for outcome in outcomes)
    assert gone(int((tmp_path / "pid").read_text()), within_s=2)
    assert works(worker)


def test_what_a_killed_worker_had_started_dies_with_it(worker: Worker, tmp_path: Path) -> None:
    outcome = ask(worker, faults.killed_while_assembling, tmp_path / "pid")
    assert isinstance(outcome, TrialFailure)
    assert outcome.kind is FailureKind.CRASH
    assert gone(int((tmp_path / "pid").read_text()), within_s=2)
    assert works(worker)


def test_a_compiler_that_hangs_is_killed_with_its_worker(worker: Worker, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    outcome = ask(worker, faults.slow_assembler, pid_file, deadline_s=SHORT_DEADLINE_S)
    assert isinstance(outcome, TrialFailure)
    assert outcome.kind is FailureKind.HANG
    assert gone(int(pid_file.read_text()), within_s=2)
    assert works(worker)


def test_a_worker_that_died_between_trials_is_no_trials_fault(worker: Worker, tmp_path: Path) -> None:
    for pause_s in (0.0, 1.0):
        assert ask(worker, faults.pid_in, tmp_path / "pid") == faults.result()
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
        time.sleep(pause_s)
        assert works(worker)


def test_the_same_process_serves_trial_after_trial(worker: Worker, tmp_path: Path) -> None:
    pids = set()
    for _ in range(3):
        ask(worker, faults.pid_in, tmp_path / "pid")
        pids.add((tmp_path / "pid").read_text())
    assert len(pids) == 1


def test_a_worker_that_cannot_start_is_a_failure_and_not_a_wait() -> None:
    worker = Worker(faults.fail_to_start)
    outcome = ask(worker, faults.fine)
    assert isinstance(outcome, TrialFailure)
    assert outcome.kind is FailureKind.CRASH
    assert outcome.seconds < MOST_S
    worker.close()


def test_closing_leaves_no_process(tmp_path: Path) -> None:
    worker = Worker(faults.start)
    ask(worker, faults.pid_in, tmp_path / "pid")
    pid = int((tmp_path / "pid").read_text())
    assert alive(pid)
    worker.close()
    worker.close()
    assert not alive(pid)


def test_a_worker_and_its_compiler_die_with_their_parent(tmp_path: Path) -> None:
    """Killed itself, the parent can do nothing about it."""
    pid_file = tmp_path / "pid"
    parent = subprocess.Popen([sys.executable, Path(__file__).with_name("worker_parent.py"), ROOT, pid_file])
    try:
        until = time.monotonic() + 60
        while not (pid_file.exists() and pid_file.read_text()) and time.monotonic() < until:
            assert parent.poll() is None
            time.sleep(0.05)
        compiler = int(pid_file.read_text())
        started = [int(process.name) for process in Path("/proc").glob("[0-9]*") if parent_of(process) == parent.pid]
        assert parent_of(Path(f"/proc/{compiler}")) in started
    finally:
        parent.kill()
        parent.wait()
    assert all(gone(pid, within_s=3) for pid in (compiler, *started))


@pytest.fixture
def measurer(worker: Worker) -> WorkerMeasurer:
    return WorkerMeasurer(worker, 5.0, faults.trial, faults.finals)


def test_a_trial(measurer: WorkerMeasurer) -> None:
    assert measurer.trial(TrialRequest(KEY, faults.CONFIG, 0)) == faults.result()
    crashing = measurer.trial(TrialRequest(KEY, replace(faults.CONFIG, num_splits=faults.CRASHING_SPLITS), 0))
    assert isinstance(crashing, TrialFailure)


def test_a_finalist_that_breaks_the_worker_takes_no_other_along(measurer: WorkerMeasurer) -> None:
    good, better = (replace(faults.CONFIG, block_kv=block) for block in (32, 64))
    crashing = replace(faults.CONFIG, num_splits=faults.CRASHING_SPLITS)
    wrong = replace(faults.CONFIG, num_splits=faults.WRONG_SPLITS)
    outcomes = measurer.finals(KEY, (good, crashing, wrong, better), 0)
    kinds = [outcome.kind if isinstance(outcome, TrialFailure) else None for outcome in outcomes]
    assert kinds == [None, FailureKind.CRASH, FailureKind.WRONG, None]
    times = [outcome.objective_us for outcome in outcomes if isinstance(outcome, TrialResult)]
    assert times == [32, 64]


class _Crashing(Worker):
    """A worker whose every task dies."""

    def __init__(self) -> None:
        super().__init__(faults.start)
        self.tasks = 0

    def run(self, task: object, arguments: object, deadline_s: float, count: int) -> tuple[Outcome, ...]:
        self.tasks += 1
        return (TrialFailure(FailureKind.CRASH, "the worker died", 1.0),) * count


def test_finals_that_all_fail_end() -> None:
    worker = _Crashing()
    configs = tuple(replace(faults.CONFIG, num_warps=warps) for warps in (1, 2, 4))
    outcomes = WorkerMeasurer(worker, 5.0).finals(KEY, configs, 0)
    assert [isinstance(outcome, TrialFailure) for outcome in outcomes] == [True] * 3
    assert worker.tasks == 1 + len(configs)


def test_without_a_gpu_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(NoTuningGpuError, match="GPU"):
        GpuMeasurer()
