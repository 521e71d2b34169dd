"""``bench kernel`` and ``bench ceiling`` on a GPU: a tiny grid, right results, and times that mean what they claim."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from prefetch_compiler.bench.cli import app
from prefetch_compiler.bench.kernel.cases import CacheLayout, Case, Fill
from prefetch_compiler.bench.kernel.guard import problems
from prefetch_compiler.bench.kernel.operands import create_operands
from prefetch_compiler.bench.kernel.peers.registry import all_peers
from prefetch_compiler.bench.kernel.result import OURS, SHIPPED, KernelRun, Status, read_run
from prefetch_compiler.bench.kernel.run import KernelBench, KernelSettings
from prefetch_compiler.bench.kernel.stopwatch import Stopwatch

pytestmark = pytest.mark.gpu

DEVICE = torch.device("cuda", 0)
CASES = (
    Case(32, 8, 128, 2, 1024),
    Case(32, 8, 128, 2, 1024, Fill.HALF),
    Case(28, 4, 128, 4, 512, Fill.RAGGED),
    Case(8, 8, 64, 2, 512, Fill.FULL, CacheLayout.BSHD, "float16"),
    Case(32, 8, 128, 2, 512, Fill.RAGGED, CacheLayout.PAGE64),
)
# FlexAttention compiles for seconds in each case.
PEERS = tuple(peer for peer in all_peers() if peer.family != "FlexAttention")


def run(cases: tuple[Case, ...], **settings: object) -> KernelRun:
    options = KernelSettings(cases, **{"peers": PEERS, "rounds": 5, "search": 0, **settings})  # type: ignore[arg-type]
    return KernelBench(options, DEVICE, print, lambda run: None).run()


@pytest.fixture(scope="module")
def measured() -> KernelRun:
    return run(CASES)


def test_every_case_is_measured_and_ours_is_right(measured: KernelRun) -> None:
    assert [case.case for case in measured.cases] == list(CASES)
    assert measured.not_run == []
    assert problems(measured) == []
    for case in measured.cases:
        assert case.of(SHIPPED).status is Status.MEASURED, case.case.name  # type: ignore[union-attr]


def test_some_peer_is_right_in_every_case_in_one_piece(measured: KernelRun) -> None:
    for case in measured.cases:
        if case.case.layout.page_size is None:
            assert case.best_peer is not None, case.case.name


def test_no_peer_of_torch_is_wrong(measured: KernelRun) -> None:
    wrong = [
        (case.case.name, peer.name, peer.reason)
        for case in measured.cases
        for peer in case.peers
        if peer.family == "SDPA" and peer.status is Status.WRONG
    ]
    assert wrong == []


def test_nobody_beats_reading(measured: KernelRun) -> None:
    for case in measured.cases:
        beaten_by = case.ceiling_beaten_by
        assert beaten_by is None, (case.case.name, case.ceiling.time_us, beaten_by.name, beaten_by.samples.median_us)
        for peer in case.peers:
            share = case.ceiling_share(peer.name)
            assert share is None or 0 < share < 1.15, (case.case.name, peer.name, share)


def test_the_ceiling_is_the_memory_s_after_others_have_run() -> None:
    """A large case after a small one with every peer: the first measurement is right, and two of them agree."""
    small, first, second = Case(32, 8, 128, 16, 4096), Case(32, 8, 128, 64, 4096), Case(16, 16, 128, 32, 4096)
    _, one, other = run((small, first, second)).cases
    assert one.valid_bytes == other.valid_bytes
    assert one.ceiling.time_us == pytest.approx(other.ceiling.time_us, rel=0.03)
    for case in (one, other):
        assert case.ceiling_beaten_by is None
        assert len(case.ceiling.shapes) >= 10


def test_a_search_finds_both_kinds() -> None:
    (case,) = run((Case(32, 8, 128, 1, 8192, Fill.FULL),), peers=(), search=4).cases
    assert [case.of(name).status for name in OURS] == [Status.MEASURED] * len(OURS)  # type: ignore[union-attr]


def test_flex_is_compiled_captured_and_right() -> None:
    flex = tuple(peer for peer in all_peers() if peer.name == "flex")
    (case,) = run((Case(8, 2, 64, 2, 256, Fill.RAGGED),), peers=flex).cases
    found = case.of("flex")
    assert found is not None
    assert found.status is Status.MEASURED, found.reason


def test_time_follows_bytes() -> None:
    one, four = run((Case(32, 8, 128, 16, 2048), Case(32, 8, 128, 64, 2048)), peers=()).cases
    first, second = one.time_us(SHIPPED), four.time_us(SHIPPED)
    assert first is not None
    assert second is not None
    assert 3 < second / first < 5


def test_a_replay_writes_its_output_and_nothing_else_is_measured() -> None:
    """A graph in which nothing is launched takes next to no time, and its output stays NaN."""
    operands = create_operands(CASES[0], 0, 2, DEVICE)
    stopwatch = Stopwatch(operands, DEVICE)
    out = torch.zeros(2, 32, 128, device=DEVICE)

    def nothing(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return out

    recording = stopwatch.record(nothing)
    assert stopwatch.replayed(recording).isnan().all()
    (times,) = stopwatch.rounds([recording], 5)
    assert sorted(times)[2] < 2.0


def test_the_command_writes_what_it_shows(tmp_path: Path) -> None:
    out = tmp_path / "kernel.json"
    arguments = ["kernel", "--cases", "8q/2kv b1 s256", "--peers", "kvprefetch,sdpa", "--search", "0", "--rounds", "3"]
    result = CliRunner().invoke(app, [*arguments, "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert len(read_run(out).cases) == 1


def test_the_ceiling_command(tmp_path: Path) -> None:
    out = tmp_path / "ceiling.json"
    result = CliRunner().invoke(app, ["ceiling", "--least", "64MB", "--most", "128MB", "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert [point["asked_bytes"] for point in json.loads(out.read_text())["points"]] == [64 << 20, 128 << 20]
