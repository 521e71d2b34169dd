"""A whole run without a GPU: the stopwatch is a fake that only runs what it is given."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from prefetch_compiler.bench.errors import DeviceLostError
from prefetch_compiler.bench.kernel import case_ceiling as case_ceiling_module
from prefetch_compiler.bench.kernel import contest as contest_module
from prefetch_compiler.bench.kernel import run as run_module
from prefetch_compiler.bench.kernel.cases import CacheLayout, Case, Fill
from prefetch_compiler.bench.kernel.contest import Contest, device_works
from prefetch_compiler.bench.kernel.guard import problems
from prefetch_compiler.bench.kernel.operands import Operands, cache_count, create_operands, why_too_large
from prefetch_compiler.bench.kernel.oracle import checked_sequences
from prefetch_compiler.bench.kernel.peers.peer import Attend, UnsupportedCaseError
from prefetch_compiler.bench.kernel.peers.sdpa import Sdpa
from prefetch_compiler.bench.kernel.readers import MORE_SHAPES, Reader
from prefetch_compiler.bench.kernel.result import (
    BEST_BARE,
    BEST_PREFETCHING,
    DETERMINISTIC,
    HEURISTIC,
    OURS,
    SHIPPED,
    KernelRun,
    PeerResult,
    Status,
)
from prefetch_compiler.bench.kernel.run import KernelBench, KernelSettings
from prefetch_compiler.bench.kernel.stopwatch import Recording
from prefetch_compiler.config import KernelConfig
from prefetch_compiler.device import INTERPRETER, interpreting

CPU = torch.device("cpu")
CASE = Case(4, 2, 64, 2, 64, Fill.HALF, dtype="float16")
READING_US = [0.5, 0.75]
pytestmark = pytest.mark.skipif(not interpreting(), reason="needs TRITON_INTERPRET=1")


class FakeStopwatch:
    """Runs a candidate once, over the last cache; a launch of the n-th takes n + 1 microseconds, one that only
    reads as long as READING_US says of the first shapes, and of those that are tried besides."""

    def __init__(self, operands: Operands, device: torch.device) -> None:
        self.operands = operands

    def record(self, attend: Attend) -> Recording:
        return Recording(None, attend(self.operands.q, *self.operands.caches[-1]), attend)  # type: ignore[arg-type]

    def replayed(self, recording: Recording) -> Tensor:
        return recording.output

    def rounds(self, recordings: Sequence[Recording], rounds: int) -> list[list[float]]:
        shapes = [one.attend.shape if isinstance(one.attend, Reader) else None for one in recordings]
        return [
            [READING_US[shape in MORE_SHAPES] if shape is not None else float(number + 1)] * rounds
            for number, shape in enumerate(shapes)
        ]


class NoCompiler:
    """Refuses every other configuration."""

    def refusals(self, spec: object, configs: Sequence[KernelConfig]) -> list[str | None]:
        return [None if number % 2 == 0 else "spills" for number in range(len(configs))]

    def close(self) -> None: ...


@dataclass(frozen=True)
class FakePeer:
    """``prepare`` is the given function."""

    name: str
    prepare_with: Callable[[Operands], Attend]
    reason: str | None = None
    family: str = "fake"

    def unavailable(self) -> str | None:
        return self.reason

    def unsupported(self, case: Case) -> str | None:
        return "no pages" if case.layout.page_size else None

    def prepare(self, operands: Operands) -> Attend:
        return self.prepare_with(operands)


def _raise(error: Exception) -> Callable[[Operands], Attend]:
    def prepare(operands: Operands) -> Attend:
        raise error

    return prepare


def _zeros(operands: Operands) -> Attend:
    return lambda q, k, v: torch.zeros(q.shape[0], q.shape[1], q.shape[3])


MATH = Sdpa("math", masked=True, heads="gqa")
PEERS = (
    MATH,
    FakePeer("absent", _zeros, "not installed: no module 'absent'"),
    FakePeer("picky", _raise(UnsupportedCaseError("head_dim 64"))),
    FakePeer("broken", _raise(RuntimeError("no kernel image\nmore"))),
    FakePeer("greedy", _raise(torch.cuda.OutOfMemoryError("too much"))),
    FakePeer("wrong", _zeros),
)


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contest_module, "Stopwatch", FakeStopwatch)
    monkeypatch.setattr(contest_module, "device_works", lambda device: True)
    monkeypatch.setattr(run_module, "device_works", lambda device: True)
    monkeypatch.setattr(run_module, "CompileAhead", lambda profile: NoCompiler())
    monkeypatch.setattr(run_module, "give_back_memory", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 30, 1 << 30))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)


def bench(cases: tuple[Case, ...], **settings: Any) -> KernelRun:
    kept: list[int] = []
    options = {"peers": PEERS, "rounds": 3, "search": 0, **settings}
    run = KernelBench(
        KernelSettings(cases, **options), CPU, lambda line: None, lambda run: kept.append(len(run.cases))
    ).run()
    assert kept[-1] == len(run.cases)
    return run


def statuses(peers: list[PeerResult]) -> dict[str, Status]:
    return {peer.name: peer.status for peer in peers}


def test_everyone_is_listed_and_only_the_right_are_ranked() -> None:
    (case,) = bench((CASE,)).cases
    assert statuses(case.peers) == {
        SHIPPED: Status.MEASURED,
        HEURISTIC: Status.MEASURED,
        DETERMINISTIC: Status.MEASURED,
        BEST_BARE: Status.UNSUPPORTED,
        BEST_PREFETCHING: Status.UNSUPPORTED,
        MATH.name: Status.MEASURED,
        "absent": Status.UNAVAILABLE,
        "picky": Status.UNSUPPORTED,
        "broken": Status.FAILED,
        "greedy": Status.FAILED,
        "wrong": Status.WRONG,
    }
    reasons = {peer.name: peer.reason for peer in case.peers}
    assert reasons["broken"] == "RuntimeError: no kernel image\nmore"
    assert reasons["greedy"] == "out of GPU memory"
    assert reasons[BEST_BARE] == "not searched: --search 0"
    assert "times the bound" in reasons["wrong"]
    best = case.best_peer
    assert best is not None
    assert best.name == MATH.name
    assert case.time_us("wrong") is None
    assert case.of("wrong").samples.samples_us  # type: ignore[union-attr]


def test_ours_with_one_configuration_are_measured_once() -> None:
    (case,) = bench((CASE,)).cases
    shipped, heuristic = case.of(SHIPPED), case.of(HEURISTIC)
    assert shipped is not None
    assert heuristic is not None
    assert shipped.config == heuristic.config
    assert shipped.samples.samples_us == heuristic.samples.samples_us == [1.0, 1.0, 1.0]
    assert str(shipped.verdict).startswith("heuristic: ")
    assert case.faster_than_best_peer(SHIPPED) == 2.0
    assert case.ceiling_share(SHIPPED) == 0.5
    assert case.ceiling.first_us is None
    assert case.ceiling.tb_per_s == CASE.valid_bytes(0) / 0.5 * 1e-6


def test_a_beaten_ceiling_is_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "READING_US", [1.5, 0.75])
    (case,) = bench((CASE,)).cases
    ceiling = case.ceiling
    assert (ceiling.first_us, ceiling.first_beaten_by, ceiling.time_us) == (1.5, SHIPPED, 0.75)
    assert ceiling.rival.samples_us == [1.0] * 3
    assert len(ceiling.shapes) > 4
    assert case.ceiling_beaten_by is None
    assert case.ceiling_share(SHIPPED) == 0.75


def test_a_ceiling_that_stays_beaten_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "READING_US", [1.5, 1.25])
    run = bench((CASE,))
    (case,) = run.cases
    assert case.ceiling.time_us == 1.25
    assert case.ceiling_beaten_by is case.of(SHIPPED)
    assert case.ceiling_share(SHIPPED) is None
    assert run.to_dict()["cases"][0]["ceiling"]["beaten_by"] == SHIPPED


def test_a_wrong_result_beats_no_ceiling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "READING_US", [1.5, 1.25])
    (case,) = bench((CASE,), peers=PEERS[5:], ours=False).cases
    assert case.of("wrong").samples.samples_us == [1.0] * 3  # type: ignore[union-attr]
    assert case.ceiling.first_us is None


def test_no_reader_is_no_ceiling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(case_ceiling_module, "FIRST_SHAPES", ())
    (skipped,) = bench((CASE,)).not_run
    assert "no read ceiling" in skipped.reason


def test_the_search_gives_two_more_of_ours() -> None:
    long = Case(4, 2, 64, 1, 1024, Fill.FULL, dtype="float16")
    (case,) = bench((long,), search=3, peers=()).cases
    bare, deep = case.of(BEST_BARE), case.of(BEST_PREFETCHING)
    assert bare is not None
    assert deep is not None
    assert KernelConfig.decode(str(bare.config)).prefetch_depth == 0
    assert KernelConfig.decode(str(deep.config)).prefetch_depth > 0
    assert "the best of" in str(deep.verdict)
    assert statuses(case.peers) == dict.fromkeys(OURS, Status.MEASURED)


def test_a_wrong_result_of_ours_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contest_module, "attend_with", lambda operands, config: _zeros(operands))
    run = bench((CASE,))
    assert statuses(run.cases[0].peers)[SHIPPED] is Status.WRONG
    assert [line.split(": ")[1].split(" (")[0] for line in problems(run)] == [SHIPPED, HEURISTIC, DETERMINISTIC]
    assert problems(bench((CASE,), ours=False)) == []


def test_paged_cases_are_run_with_us() -> None:
    (case,) = bench((Case(4, 2, 64, 2, 64, Fill.RAGGED, CacheLayout.PAGE16, "float16"),)).cases
    found = statuses(case.peers)
    assert (found[SHIPPED], found[HEURISTIC]) == (Status.MEASURED, Status.MEASURED)
    assert case.best_peer is None


def test_a_used_up_budget_lists_what_was_not_run() -> None:
    run = bench((CASE, CASE), budget_s=0.0)
    assert run.cases == []
    assert [one.reason for one in run.not_run] == ["the budget of 0 s was used up"] * 2


def test_what_does_not_fit_is_skipped_with_the_reason() -> None:
    large = Case(32, 8, 128, 64, 4096)
    run = bench((large, CASE))
    assert [one.case for one in run.not_run] == [large]
    assert "its cache takes 1.1 GB and 0.6 GB may be taken here" in run.not_run[0].reason
    assert [case.case for case in run.cases] == [CASE]


def test_a_lost_device_ends_the_run_and_keeps_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    full = Case(4, 2, 64, 2, 64, Fill.FULL, dtype="float16")

    def prepare(operands: Operands) -> Attend:
        if operands.case == full:
            raise RuntimeError("illegal access")
        return _zeros(operands)

    killer = FakePeer("killer", prepare)
    monkeypatch.setattr(contest_module, "device_works", lambda device: False)
    run = bench((CASE, full, CASE), peers=(killer,))
    assert [case.case for case in run.cases] == [CASE]
    assert [one.case for one in run.not_run] == [full, CASE]
    assert "killer left the GPU unusable" in run.not_run[0].reason


def test_an_error_outside_any_peer_costs_one_case(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Contest, rounds: int, valid_bytes: int) -> None:
        raise ValueError("no time")

    monkeypatch.setattr(Contest, "time", fail)
    run = bench((CASE,))
    assert [one.reason for one in run.not_run] == ["ValueError: no time"]


def test_a_lost_device_is_told_from_a_failed_candidate(monkeypatch: pytest.MonkeyPatch) -> None:
    contest = Contest(create_operands(CASE, 0, 1, CPU), CPU, INTERPRETER)
    monkeypatch.setattr(contest_module, "device_works", lambda device: False)
    with pytest.raises(DeviceLostError, match="broken"):
        contest.enter(PEERS[3], None)


@pytest.mark.parametrize(
    ("capacity_bytes", "valid_bytes", "free_bytes", "count"),
    [
        (32 << 20, 32 << 20, 100 << 30, 8),  # 240 MB over 32
        (4 << 20, 4 << 20, 100 << 30, 32),  # no more than the limit
        (4 << 30, 4 << 30, 100 << 30, 1),  # one may take all that is allowed
        (1 << 30, 1 << 30, 100 << 30, 2),  # two at least
        (1 << 30, 128 << 20, 100 << 30, 2),  # bytes that are read count, not those that lie there
        (32 << 20, 32 << 20, 100 << 20, 1),
    ],
)
def test_how_many_caches(capacity_bytes: int, valid_bytes: int, free_bytes: int, count: int) -> None:
    assert cache_count(capacity_bytes, valid_bytes, 60 << 20, free_bytes) == count


def test_the_largest_declared_case_fits_a_large_gpu() -> None:
    assert why_too_large(Case(32, 32, 128, 64, 4096), 140 << 30) is None
    assert why_too_large(Case(32, 32, 128, 256, 131072), 140 << 30) is not None


def test_a_large_batch_is_checked_in_part() -> None:
    lengths = tuple(range(1, 257))
    assert checked_sequences(lengths, 1) == list(range(256))
    chosen = checked_sequences(lengths, 1 << 20, most_bytes=1 << 30)
    assert {0, 255} <= set(chosen)
    assert len(chosen) == 4
    assert checked_sequences((1 << 20, 5), 1 << 20) == [0]


@pytest.mark.parametrize(("refused", "works"), [(0, True), (1, True), (2, False)])
def test_an_error_that_is_told_once_is_not_a_lost_device(
    refused: int, works: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As CUDA does after a launch with too many threads, and after an illegal access."""
    left = [False] * refused
    monkeypatch.setattr(contest_module, "_computes", lambda device: left.pop() if left else True)
    assert device_works(torch.device("cpu")) is works
