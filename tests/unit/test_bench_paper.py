"""bench paper without a GPU: cases, page tables, choosing configurations, arithmetic, counters, files and pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from prefetch_compiler.templates.manifest import TEMPLATES
from typer.testing import CliRunner

from prefetch_compiler.bench.cli import app
from prefetch_compiler.bench.paper import clock, contestants, ncu, profiled
from prefetch_compiler.bench.paper.case import BATCHES, CONTEXTS, PaperCase, cases_of
from prefetch_compiler.bench.paper.check import verified, yardstick_of
from prefetch_compiler.bench.paper.clock import per_launch
from prefetch_compiler.bench.paper.contestants import Launch
from prefetch_compiler.bench.paper.errors import CaseTooLargeError, InvalidRunFileError, NcuOutputError
from prefetch_compiler.bench.paper.inputs import (
    MAX_CACHES,
    Problem,
    caches_for,
    make_inputs,
    needed_bytes,
    require_room,
)
from prefetch_compiler.bench.paper.kernel import PAPER_DECODE
from prefetch_compiler.bench.paper.models import MODELS, PaperModel
from prefetch_compiler.bench.paper.ours import OurConfigs, choose_ours, starting_points
from prefetch_compiler.bench.paper.paging import blocks_of, paged_copy, scattered_table
from prefetch_compiler.bench.paper.plots import draw
from prefetch_compiler.bench.paper.result import (
    CaseResult,
    ColumnResult,
    CounterRow,
    Counters,
    LeftOut,
    PaperRun,
    read_run,
    write_run,
)
from prefetch_compiler.bench.paper.summary import geomean, summarize
from prefetch_compiler.bench.paper.tables import run_tables
from prefetch_compiler.bench.paper.variant import Column
from prefetch_compiler.bench.paper.warps import best_warps
from prefetch_compiler.bench.table import plain_text
from prefetch_compiler.config import KernelConfig
from prefetch_compiler.database.key import MaskClass
from prefetch_compiler.database.merge import keep
from prefetch_compiler.database.overlay import NO_DATABASES, Overlays, load
from prefetch_compiler.database.record import TuningRecord
from prefetch_compiler.database.template_hash import template_hash, whole_hashes
from prefetch_compiler.device import REFERENCE_DEVICES
from prefetch_compiler.errors import InvalidOptionError

LLAMA3 = PaperCase.parse("Llama3-8B:64x527")
# The shipped database has a record of it, or of a neighbour.
RECORDED = PaperCase.parse("Llama3-8B:1x2063")
H200 = REFERENCE_DEVICES[90]
CPU = torch.device("cpu")

# Cases


def test_a_case_is_spelled_as_it_is_read() -> None:
    for case in cases_of(MODELS, BATCHES, CONTEXTS):
        assert PaperCase.parse(str(case)) == case


@pytest.mark.parametrize("text", ["Llama3-8B", "Llama3-8B:64", "GPT-2:1x10", "Llama3-8B:0x10", "Llama3-8B:1x0"])
def test_what_is_no_case_is_refused(text: str) -> None:
    with pytest.raises(InvalidOptionError):
        PaperCase.parse(text)


def test_the_papers_cases_run_first_and_long_contexts_last() -> None:
    cases = cases_of(MODELS, BATCHES, CONTEXTS)
    assert [case.is_the_papers for case in cases] == [True] * 4 + [False] * 56
    contexts = [case.context for case in cases[4:]]
    assert contexts == sorted(contexts)


def test_bytes_of_a_case() -> None:
    assert LLAMA3.kv_bytes == 64 * 527 * 8 * 128 * 2 * 2
    spec = LLAMA3.spec()
    assert spec.capacity_bytes == LLAMA3.kv_bytes
    assert (spec.group, spec.kv_len, spec.tma_loadable) == (4, 527, True)


def test_enough_caches_to_exceed_l2() -> None:
    for case in cases_of(MODELS, BATCHES, CONTEXTS):
        caches = caches_for(case.kv_bytes, H200.l2_bytes)
        assert caches * case.kv_bytes >= 4 * H200.l2_bytes
    assert caches_for(1, H200.l2_bytes) == MAX_CACHES


def test_a_case_without_room_is_refused() -> None:
    needed = needed_bytes(LLAMA3, 2)
    assert needed > 4 * LLAMA3.kv_bytes
    require_room(LLAMA3, 2, 2 * needed)
    with pytest.raises(CaseTooLargeError, match="GB are free"):
        require_room(LLAMA3, 2, needed)


# Pages


def test_a_table_uses_every_page_once_and_scatters_them() -> None:
    table = scattered_table(5, 33, torch.Generator().manual_seed(3))
    assert table.dtype == torch.int32
    assert torch.equal(table.flatten().sort().values, torch.arange(165, dtype=torch.int32))
    assert (table.diff(dim=1) == 1).float().mean() < 0.1
    assert torch.equal(table, scattered_table(5, 33, torch.Generator().manual_seed(3)))
    assert not torch.equal(table, scattered_table(5, 33, torch.Generator().manual_seed(4)))


@pytest.mark.parametrize("context", [1, 16, 31])
def test_pages_hold_the_cache_and_nan_beyond_it(context: int) -> None:
    cache = torch.randn(3, 2, context, 8)
    blocks = blocks_of(context)
    table = scattered_table(3, blocks, torch.Generator().manual_seed(0))
    pages = paged_copy(cache, table)
    gathered = pages[table.long()].transpose(1, 2).reshape(3, 2, blocks * 16, 8)
    assert torch.equal(gathered[:, :, :context], cache)
    assert gathered[:, :, context:].isnan().all()


def test_inputs_are_drawn_from_the_seed_and_caches_differ() -> None:
    case = PaperCase(PaperModel("tiny", 4, 2, 16, 1.0), 2, 20)
    inputs, again = (make_inputs(case, 2, CPU, seed=5) for _ in range(2))
    assert torch.equal(inputs.problems[1].k, again.problems[1].k)
    assert torch.equal(inputs.paged[1].table, again.paged[1].table)
    assert not torch.equal(inputs.problems[0].k, inputs.problems[1].k)
    inputs.problems[0].q.zero_()
    inputs.write_queries(0)
    assert torch.equal(inputs.paged[0].q, inputs.q_source[:, :, 0])


# The template


def test_the_rebuilt_kernel_serves_no_model() -> None:
    """It is in no manifest, so neither selection nor any record's template hash knows it."""
    assert PAPER_DECODE not in TEMPLATES
    assert list(whole_hashes()) == [template.name for template in TEMPLATES]
    assert PAPER_DECODE.refusal(LLAMA3.spec()) is not None
    assert len(template_hash(PAPER_DECODE, frozenset())) == 64


# Our configurations


def recording(times: dict[str, float], tried: list[KernelConfig]) -> Any:
    """A clock by rule: prefetching costs, larger blocks gain; and a note of what was asked."""

    def time_configs(configs: Sequence[KernelConfig]) -> list[float | None]:
        tried.extend(configs)
        return [times.get(config.encode(), 1000 / config.block_kv + config.prefetch_depth) for config in configs]

    return time_configs


@pytest.mark.parametrize("trials", [1, 5, 12, 30])
def test_the_search_is_bounded_and_tries_nothing_twice(trials: int) -> None:
    tried: list[KernelConfig] = []
    chosen = choose_ours(LLAMA3.spec(), H200, NO_DATABASES, trials, recording({}, tried))
    assert len(tried) == len(set(tried)) <= trials
    best = min(tried, key=lambda config: 1000 / config.block_kv + config.prefetch_depth)
    assert (chosen.free.config, chosen.depth0.config.prefetch_depth) == (best, 0)
    assert f"best of {len(tried)} tried" in chosen.free.source


def test_the_search_tries_prefetching_and_takes_it_where_it_gains() -> None:
    tried: list[KernelConfig] = []
    choose_ours(LLAMA3.spec(), H200, NO_DATABASES, 20, recording({}, tried))
    prefetching = next(config for config in tried if config.prefetch_depth)
    chosen = choose_ours(LLAMA3.spec(), H200, NO_DATABASES, 20, recording({prefetching.encode(): 0.5}, []))
    assert chosen.free.config == prefetching
    assert chosen.depth0.config.prefetch_depth == 0


@pytest.fixture(scope="module")
def of_masks() -> Overlays:
    """What ships, without the records of caches that have no mask."""

    def masked(record: TuningRecord) -> bool:
        return record.key.mask is MaskClass.BOOL

    return Overlays(tuple(tuple(keep(one, masked) for one in layer) for layer in load().layers))


def test_the_search_starts_from_the_record_of_masked_caches_and_the_heuristic(of_masks: Overlays) -> None:
    sources = [start.source for start in starting_points(RECORDED.spec(), H200, of_masks)]
    assert sources[0].startswith("the record of masked caches, tuned for NVIDIA H200")
    assert any("heuristic" in source for source in sources[1:])
    without = starting_points(RECORDED.spec(), H200, NO_DATABASES)
    assert without[0].source == "the heuristic's"


def test_without_a_search_the_first_starting_point_is_taken(of_masks: Overlays) -> None:
    def never(_: Sequence[KernelConfig]) -> list[float | None]:
        raise AssertionError

    chosen = choose_ours(RECORDED.spec(), H200, of_masks, 0, never)
    assert chosen.free.source.startswith("the record of masked caches")
    assert chosen.depth0.config.prefetch_depth == 0


def test_configurations_that_all_fail_leave_the_first_to_be_seen_failing() -> None:
    chosen = choose_ours(LLAMA3.spec(), H200, NO_DATABASES, 9, lambda configs: [None] * len(configs))
    assert isinstance(chosen, OurConfigs)
    assert chosen.free.source == "the heuristic's"


# Times


def test_what_stands_between_launches_is_taken_off() -> None:
    assert per_launch([[30.0, 34.0], [14.0, 18.0], [8.0, 10.0, 12.0]], 4) == [[5.0, 6.0], [1.0, 2.0]]
    assert per_launch([[5.0], [6.0]], 1) == [[0.01]]


class FakeGraph:
    """What is replayed is written down."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def replay(self) -> None:
        self.log.append(self.name)


def test_rounds_rotate_flush_before_each_replay_and_throw_the_first_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU's clock, with graphs and events that only count: event n is recorded at n milliseconds."""
    log: list[str] = []

    class FakeEvent:
        recorded = 0

        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at_ms = FakeEvent.recorded = FakeEvent.recorded + 1

        def elapsed_time(self, end: FakeEvent) -> float:
            return float(end.at_ms - self.at_ms)

    def capture(work: Any, device: torch.device) -> FakeGraph:
        launched.clear()
        work()
        return FakeGraph("".join(launched) or "spacers", log)

    launched: list[str] = []
    properties = SimpleNamespace(L2_cache_size=1 << 20, multi_processor_count=1)
    monkeypatch.setattr(clock, "graph_of", capture)
    monkeypatch.setattr(clock, "launch_read", lambda *_: log.append("flush"))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    inputs = make_inputs(PaperCase(PaperModel("tiny", 4, 2, 16, 1.0), 1, 20), 2, CPU, seed=0)
    timer = clock.GraphClock(inputs)

    def launch(name: str) -> Launch:
        return lambda cache: (launched.append(f"{name}{cache}"), inputs.problems[cache].q)[1]

    samples = timer.rounds([timer.prepare(launch("a")), timer.prepare(launch("b"))], 2)
    replayed = [name for name in log if name != "flush"]
    assert log == [entry for name in replayed for entry in ("flush", name)]
    assert replayed == ["a0a1", "b0b1", "spacers", "b0b1", "spacers", "a0a1", "spacers", "a0a1", "b0b1"]
    assert samples == [[0.01, 0.01]] * 2


def test_cudnn_takes_a_group_as_query_rows_where_enable_gqa_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def sdpa(q: torch.Tensor, problem: Problem, grouped: bool) -> torch.Tensor:
        if grouped:
            raise RuntimeError("No available kernel")
        return torch.nn.functional.scaled_dot_product_attention(q, problem.k, problem.v, scale=problem.scale)

    monkeypatch.setattr(contestants, "_sdpa_by_cudnn", sdpa)
    inputs = make_inputs(PaperCase(PaperModel("tiny", 6, 2, 16, 1.0), 2, 40), 1, CPU, seed=0)
    contestant = contestants.cudnn(inputs)
    assert "refused" in contestant.detail
    assert verified(contestant, yardstick_of(inputs)) <= 1


def test_the_warps_of_the_fastest_variant_are_taken() -> None:
    probes = {1: {Column.NONE: 9.0, Column.NEXT_1: 5.0}, 2: {Column.NONE: 4.0, Column.NEXT_1: 6.0}, 4: {}}
    assert best_warps(probes) == 2
    assert best_warps({1: {}, 2: {}}) == 1


def case_result(name: str, times: dict[Column, float]) -> CaseResult:
    columns = [ColumnResult(column, "b64-s1, a source", 0.5, [us * 0.9, us, us * 1.1]) for column, us in times.items()]
    return CaseResult(name, PaperCase.parse(name).kv_bytes, 2, 4, {"4": {Column.NONE: 1.0}}, columns)


PAPERS = {
    Column.NONE: 100.0, Column.OFF: 75.0, Column.CONTROL: 80.0, Column.NEXT_1: 60.0, Column.NEXT_2: 50.0,
    Column.NEXT_4: 90.0, Column.OURS_DEPTH0: 20.0, Column.OURS_FREE: 25.0, Column.CUDNN: 30.0,
}  # fmt: skip
LONG = {
    Column.NONE: 40.0, Column.OFF: 60.0, Column.CONTROL: 50.0, Column.NEXT_1: 80.0, Column.NEXT_2: 100.0,
    Column.NEXT_4: 160.0, Column.OURS_DEPTH0: 40.0, Column.OURS_FREE: 10.0,
}  # fmt: skip


@pytest.fixture
def run() -> PaperRun:
    long = case_result("Llama3-8B:64x4111", LONG)
    long.columns.append(ColumnResult(Column.CUDNN, failure="RuntimeError: no kernel"))
    return PaperRun(
        {"seed": 0, "cases": []},
        {"device": "a GPU", "torch": "2.11.0", "triton": "3.6.0", "driver": None},
        [case_result("Llama3-8B:64x527", PAPERS), long, case_result("Llama2-7B:1x527", PAPERS)],
        [LeftOut("Llama2-7B:64x8704", "needs 100 GB")],
        Counters([CounterRow("Llama3-8B:64x527", Column.CONTROL, {"lts__t_sector_hit_rate.pct": 31.5})]),
    )


def test_geomeans_leave_out_what_is_not_there() -> None:
    assert geomean([2.0, None, 8.0]) == pytest.approx(4.0)
    assert geomean([]) is None
    assert geomean([None]) is None


def test_the_summary_compares_with_the_best_depth_of_each_case(run: PaperRun) -> None:
    summary = summarize(run)
    assert summary.over_best_prefetch == pytest.approx((50 / 25 * 80 / 10 * 50 / 25) ** (1 / 3))
    assert summary.over_best_prefetch_depth0 == pytest.approx((50 / 20 * 80 / 40 * 50 / 20) ** (1 / 3))
    assert summary.over_fastest == pytest.approx((50 / 25 * 40 / 10 * 50 / 25) ** (1 / 3))
    assert summary.cudnn_over_ours == pytest.approx(30 / 25)
    assert (summary.cases, summary.goal, summary.goal_met) == (3, 2.0, True)


def test_gains_are_by_model_and_batch_over_contexts(run: PaperRun) -> None:
    llama2, llama3 = summarize(run).gains
    assert (llama2.model, llama2.batch, llama2.contexts) == ("Llama2-7B", 1, 1)
    assert (llama3.model, llama3.batch, llama3.contexts) == ("Llama3-8B", 64, 2)
    assert llama3.best == pytest.approx((100 / 50 * 40 / 80) ** 0.5)
    assert llama3.control == pytest.approx((100 / 80 * 40 / 50) ** 0.5)
    assert llama3.off == pytest.approx((100 / 75 * 40 / 60) ** 0.5)
    assert llama3.over_off == pytest.approx((75 / 50 * 60 / 80) ** 0.5)
    assert llama3.depths["next tile, depth 4"] == pytest.approx((100 / 90 * 40 / 160) ** 0.5)


def test_a_goal_without_cases_is_not_met() -> None:
    assert not summarize(PaperRun({}, {})).goal_met


def test_failures_of_peers_are_no_problems_of_ours(run: PaperRun) -> None:
    assert run.problems == []
    run.cases[0].columns[3] = ColumnResult(Column.NEXT_2, failure="WrongOutputError: 3 times")
    run.left_out.append(LeftOut("Llama2-7B:1x1039", "RuntimeError: broken", failed=True))
    assert run.problems == [
        "Llama3-8B:64x527: next tile, depth 2: WrongOutputError: 3 times",
        "Llama2-7B:1x1039: RuntimeError: broken",
    ]


# Files, tables, pictures


def test_a_run_comes_back_from_its_file_as_it_was(run: PaperRun, tmp_path: Path) -> None:
    write_run(run, tmp_path / "run.json")
    assert read_run(tmp_path / "run.json") == run
    column = json.loads((tmp_path / "run.json").read_text())["cases"][0]["columns"][0]
    assert (column["column"], column["median_us"]) == ("no prefetch", 100.0)


@pytest.mark.parametrize(
    "content", ["", "[]", '{"settings": {}}', '{"settings": {}, "environment": {}, "cases": [{"case": 1}]}']
)
def test_a_file_that_holds_no_run_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(content)
    with pytest.raises(InvalidRunFileError, match=r"run\.json"):
        read_run(path)
    with pytest.raises(InvalidRunFileError):
        read_run(tmp_path / "none.json")


def test_a_run_of_an_unknown_model_is_refused(run: PaperRun, tmp_path: Path) -> None:
    run.cases[0].case = "GPT-2:1x10"
    write_run(run, tmp_path / "run.json")
    with pytest.raises(InvalidRunFileError, match="GPT-2"):
        read_run(tmp_path / "run.json")


def test_the_tables_say_everything(run: PaperRun) -> None:
    text = "\n".join(plain_text(table) for table in run_tables(run))
    for said in (
        "1.89", "Goal: at least 2×", ": met", "Llama2-7B:64x8704: not measured: needs 100 GB", "31.5", "a source",
        "SDPA cuDNN failed: RuntimeError: no kernel", "12.0%",
    ):  # fmt: skip
        assert said in text, said


def test_an_empty_run_still_shows(tmp_path: Path) -> None:
    empty = PaperRun({}, {"device": "a GPU"}, counters=Counters(failure="ncu is not there"))
    assert "no counters: ncu is not there" in "\n".join(plain_text(table) for table in run_tables(empty))
    pytest.importorskip("matplotlib")
    assert draw(empty, tmp_path) == []


def test_pictures_are_drawn(run: PaperRun, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    drawn = draw(run, tmp_path / "plots")
    assert [path.name for path in drawn] == ["paper-gains.png", "paper-bandwidth.png", "paper-speedup.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)


# Hardware counters

NCU_OUTPUT = """\
==PROF== Connected to process 4242 (/usr/bin/python3.12)
==PROF== Profiling "paper_decode" - 0: 0%....50%....100% - 4 passes
something the program printed, with Metric words
==PROF== Disconnected from process 4242
"ID","Process ID","Process Name","Host Name","Kernel Name","Context","Stream","Block Size","Grid Size","Device","CC","Section Name","Metric Name","Metric Unit","Metric Value"
"0","4242","python3.12","127.0.0.1","paper_decode","1","7","(128, 1, 1)","(32, 64, 1)","0","9.0","Command line profiler metrics","dram__throughput.avg.pct_of_peak_sustained_elapsed","%","41.20"
"0","4242","python3.12","127.0.0.1","paper_decode","1","7","(128, 1, 1)","(32, 64, 1)","0","9.0","Command line profiler metrics","gpu__time_duration.sum","ns","73,184"
"0","4242","python3.12","127.0.0.1","paper_decode","1","7","(128, 1, 1)","(32, 64, 1)","0","9.0","Command line profiler metrics","lts__t_sector_hit_rate.pct","%","0.52"
"0","4242","python3.12","127.0.0.1","paper_decode","1","7","(128, 1, 1)","(32, 64, 1)","0","9.0","Command line profiler metrics","smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio","inst","21.75"
"0","4242","python3.12","127.0.0.1","paper_decode","1","7","(128, 1, 1)","(32, 64, 1)","0","9.0","Command line profiler metrics","some__other.metric","inst","n/a"
"1","4242","python3.12","127.0.0.1","another_kernel","1","7","(128, 1, 1)","(32, 64, 1)","0","9.0","Command line profiler metrics","lts__t_sector_hit_rate.pct","%","99.00"
"2","4242","python3.12","127.0.0.1","paper_decode","1","7","(128, 1, 1)","(32, 64, 1)","0","9.0","Command line profiler metrics","lts__t_sector_hit_rate.pct","%","29.95"
"10","4242","python3.12","127.0.0.1","paper_decode","1","7","(128, 1, 1)","(32, 64, 1)","0","9.0","Command line profiler metrics","lts__t_sector_hit_rate.pct","%","30.10"
"""  # noqa: E501


def test_counters_are_read_launch_by_launch() -> None:
    first, second, third = ncu.parse_csv(NCU_OUTPUT)
    assert first == {
        "dram__throughput.avg.pct_of_peak_sustained_elapsed": 41.2,
        "gpu__time_duration.sum": 73184.0,
        "lts__t_sector_hit_rate.pct": 0.52,
        "smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio": 21.75,
    }
    assert (second, third) == ({"lts__t_sector_hit_rate.pct": 29.95}, {"lts__t_sector_hit_rate.pct": 30.1})


def test_launches_get_the_names_of_their_variants() -> None:
    rows = ncu.counter_rows(NCU_OUTPUT, [(LLAMA3, 4)])
    assert [(row.case, row.column) for row in rows] == [(str(LLAMA3), column) for column in ncu.PROFILED_COLUMNS]


@pytest.mark.parametrize(
    ("text", "jobs", "problem"),
    [
        ("", 1, "no line with the column names"),
        (NCU_OUTPUT, 2, "3 launches and not 6"),
        (NCU_OUTPUT.replace("29.95", "(!) nan?"), 1, "is '\\(!\\) nan\\?'"),
    ],
)
def test_output_that_is_not_the_table_asked_for(text: str, jobs: int, problem: str) -> None:
    with pytest.raises(NcuOutputError, match=problem):
        ncu.counter_rows(text, [(LLAMA3, 4)] * jobs)


def test_why_ncu_refused() -> None:
    denied = "==PROF== Connected\n==ERROR== ERR_NVGPUCTRPERM - The user does not have permission\n"
    assert ncu.why_refused(1, denied) == "ERR_NVGPUCTRPERM - The user does not have permission"
    assert ncu.why_refused(9, "Killed\n") == "ncu ended with exit code 9: Killed"
    assert ncu.why_refused(0, NCU_OUTPUT) is None


def test_without_ncu_the_reason_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    assert ncu.collect([(LLAMA3, 4)], 0).failure == "ncu (Nsight Compute) is not on PATH"


def test_an_ncu_that_fails_is_reported_and_one_that_works_is_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = tmp_path / "ncu"
    fake.write_text("#!/bin/sh\necho '==ERROR== ERR_NVGPUCTRPERM'\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setattr("shutil.which", lambda _: str(fake))
    assert ncu.collect([(LLAMA3, 4)], 0).failure == "ERR_NVGPUCTRPERM"
    (tmp_path / "output").write_text(NCU_OUTPUT)
    fake.write_text(f"#!/bin/sh\ncat {tmp_path}/output\n")
    assert len(ncu.collect([(LLAMA3, 4)], 0).rows) == 3


def test_the_driver_reads_what_the_command_says(run: PaperRun) -> None:
    jobs = ncu.jobs_of(run.cases)
    assert [(str(case), warps) for case, warps in jobs] == [("Llama3-8B:64x527", 4), ("Llama2-7B:1x527", 4)]
    words = ncu.command("/opt/ncu", jobs, 7)
    driver = words.index("prefetch_compiler.bench.paper.profiled")
    assert words[driver - 1 : driver] == ["-m"]
    assert [profiled.parse_job(word) for word in words[driver + 3 :]] == jobs


# The command


def test_a_dry_run_needs_no_gpu() -> None:
    result = CliRunner().invoke(app, ["paper", "--dry-run", "--json"])
    assert result.exit_code == 0, result.output
    listed = json.loads(result.output)
    assert len(listed) == 60
    assert listed[0]["case"] == "Llama2-7B:64x527"
    table = CliRunner().invoke(app, ["paper", "--dry-run", "--quick", "--models", "qwen2.5-7b"])
    assert table.exit_code == 0
    assert "4 cases" in table.output and "28q/4kv" in table.output


def test_measuring_without_a_gpu_is_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    result = CliRunner().invoke(app, ["paper"])
    assert result.exit_code == 2
    assert "bench paper measures on a GPU" in result.output


@pytest.mark.parametrize("arguments", [["--models", "GPT-2"], ["--batches", "x"], ["--contexts", "0"]])
def test_bad_options_are_refused(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, ["paper", "--dry-run", *arguments])
    assert result.exit_code == 2
    assert arguments[1] in result.output


def test_a_kept_run_is_shown_and_drawn_again(run: PaperRun, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path, plots = tmp_path / "run.json", tmp_path / "plots"
    write_run(run, path)
    shown = CliRunner().invoke(app, ["paper", "--from", str(path), "--plots", str(plots)])
    assert shown.exit_code == 0, shown.output
    assert "Goal: at least 2×" in shown.output
    assert len(list(plots.glob("*.png"))) == 3
    as_json = CliRunner().invoke(app, ["paper", "--from", str(path), "--json"])
    assert json.loads(as_json.stdout)["summary"]["goal_met"] is True
    broken = CliRunner().invoke(app, ["paper", "--from", str(tmp_path / "none.json")])
    assert broken.exit_code == 2
