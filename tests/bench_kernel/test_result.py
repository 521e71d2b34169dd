"""Results: ratios, means, the way to JSON and back, tables, plots, and the command over a file."""

from __future__ import annotations

import copy
import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from prefetch_compiler.bench.ceiling import LAUNCH_SHAPES, ReadCeiling
from prefetch_compiler.bench.ceiling_cli import ceiling_table
from prefetch_compiler.bench.ceiling_sweep import (
    CeilingRun,
    byte_counts,
    measure_ceilings,
    parse_bytes,
    point_of,
    read_ceilings,
)
from prefetch_compiler.bench.cli import app
from prefetch_compiler.bench.errors import InvalidResultError
from prefetch_compiler.bench.kernel.grid import QUICK, Sweep, declared
from prefetch_compiler.bench.kernel.result import (
    BEST_BARE,
    BEST_PREFETCHING,
    DETERMINISTIC,
    HEURISTIC,
    SHIPPED,
    CaseResult,
    KernelRun,
    PeerResult,
    Status,
    read_run,
)
from prefetch_compiler.bench.kernel.summary import geomean, summaries
from prefetch_compiler.bench.kernel.table import (
    brief,
    everyone_table,
    left_out_table,
    ours_table,
    run_tables,
    summary_table,
)
from prefetch_compiler.bench.samples import Samples
from prefetch_compiler.bench.table import Table, plain_text, show
from prefetch_compiler.errors import InvalidOptionError

from .synthetic import sweep_run, synthetic_run

ENVIRONMENT: dict[str, str | None] = {"device": "NVIDIA H200", "torch": "2.11.0"}


@pytest.fixture(scope="module")
def run() -> KernelRun:
    return synthetic_run(declared())


@pytest.fixture(scope="module")
def ceilings() -> CeilingRun:
    found = CeilingRun(dict(ENVIRONMENT))
    for count in byte_counts(1 << 20, 4 << 30):
        time_us = 1.0 + count / 4.7e6
        ceiling = ReadCeiling(count, 3, LAUNCH_SHAPES[0], count / time_us, Samples([time_us, time_us * 1.02]))
        found.points.append(point_of(ceiling, count))
    return found


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_a_run_survives_its_file(run: KernelRun, tmp_path: Path) -> None:
    path = tmp_path / "kernel.json"
    run.write(path)
    assert read_run(path) == run
    plain = json.loads(path.read_text())
    first = plain["cases"][0]
    assert first["name"] == "32q/8kv d128 b1 s8192 full bhsd"
    assert first["best_peer"] == run.cases[0].best_peer.name  # type: ignore[union-attr]
    shipped = next(peer for peer in first["peers"] if peer["name"] == SHIPPED)
    assert shipped["samples"]["median_us"] == run.cases[0].time_us(SHIPPED)
    assert shipped["ceiling_share"] == run.cases[0].ceiling_share(SHIPPED)
    assert len(shipped["samples"]["samples_us"]) == 9


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1}', "no JSON"])
def test_other_files_are_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(InvalidResultError, match="bench kernel"):
        read_run(path)
    with pytest.raises(InvalidResultError, match="bench ceiling"):
        read_ceilings(path)
    with pytest.raises(InvalidResultError):
        read_run(tmp_path / "absent.json")


def test_another_format_is_refused(run: KernelRun, tmp_path: Path) -> None:
    path = tmp_path / "kernel.json"
    path.write_text(json.dumps({**run.to_dict(), "format": 99}))
    with pytest.raises(InvalidResultError, match="format 99"):
        read_run(path)


def test_what_is_wrong_is_never_best(run: KernelRun) -> None:
    """Of head_dim 80 the made-up FlexAttention takes a microsecond, and is wrong."""
    wrong = [case for case in run.cases for peer in case.peers if peer.status is Status.WRONG]
    assert wrong
    for case in wrong:
        best = case.best_peer
        assert best is not None
        assert best.family != "FlexAttention"
        assert case.time_us("flex") is None


def test_geometric_means(run: KernelRun) -> None:
    assert geomean([2.0, 8.0]) == pytest.approx(4.0)
    assert geomean([]) is None
    groups = {group.group: group for group in summaries(run)}
    compared = [ratio for case in run.cases if (ratio := case.faster_than_best_peer(SHIPPED)) is not None]
    assert groups["all"].faster == pytest.approx(math.prod(ratio ** (1 / len(compared)) for ratio in compared))
    assert groups["all"].worst == min(compared)
    assert {"heads: MHA", "heads: GQA 7", "head_dim: 80", "cache: ragged", "layout: bshd"} <= groups.keys()
    assert "layout: page16" in groups
    assert groups["heads: MHA"].cases == sum(
        case.case.heads_kind == "MHA" and case.time_us(SHIPPED) is not None for case in run.cases
    )


def test_nothing_to_average_is_no_error() -> None:
    empty = KernelRun({}, {}, [])
    assert summaries(empty) == []
    for table in run_tables(empty):
        assert plain_text(table)


def test_tables_hold_every_case_and_every_reason(run: KernelRun) -> None:
    ours, everyone, left_out = (plain_text(table(run)) for table in (ours_table, everyone_table, left_out_table))
    for case in run.cases:
        assert case.case.name in ours
        assert case.case.name in everyone
    assert "not run: " in ours
    assert "the budget was used up" in ours
    assert "takes no paged caches" in left_out
    assert "SDPA's flash backend takes no mask" in left_out
    assert "WRONG" in everyone
    assert "all" in plain_text(summary_table(run))


def test_everyone_is_sorted_by_time_and_the_wrong_come_last(run: KernelRun) -> None:
    rows = rows_of(everyone_table(run), "32q/8kv d80 b16 s4096 full bhsd")
    times = [float(row[2].split(" ")[0]) for row in rows]
    assert times[:-1] == sorted(times[:-1])
    assert rows[-1][1] == "flex"
    assert rows[-1][-1] == "WRONG"


def rows_of(table: Table, case: str) -> list[tuple[str, ...]]:
    """A case is named in its first row only."""
    first = next(place for place, row in enumerate(table.rows) if row[0] == case)
    rest = list(itertools.takewhile(lambda row: row[0] == "", table.rows[first + 1 :]))
    return [table.rows[first], *rest]


def test_the_fastest_three_peers_ours_and_the_wrong_are_shown_by_themselves(run: KernelRun) -> None:
    name = "32q/8kv d80 b16 s4096 full bhsd"
    case = next(case for case in run.cases if case.case.name == name)
    ranked = [(peer.ranked_us, peer.name) for peer in case.peers if not peer.is_ours and peer.ranked_us is not None]
    whom = [row[1] for row in rows_of(everyone_table(run, everyone=False), name)]
    assert [peer for peer in whom if not peer.startswith("ours")] == [who for _, who in sorted(ranked)[:3]] + ["flex"]
    # All of ours have one made-up configuration: it is one row.
    assert [peer for peer in whom if peer.startswith("ours")] == ["ours: " + who for who in _our_order(case)]
    assert len(rows_of(everyone_table(run), name)) > len(whom)


def _our_order(case: CaseResult) -> list[str]:
    words = {
        SHIPPED: "shipped",
        HEURISTIC: "heuristic",
        DETERMINISTIC: "deterministic",
        BEST_BARE: "depth 0",
        BEST_PREFETCHING: "depth > 0",
    }
    ordered = sorted((case.time_us(name) or 0.0, word) for name, word in words.items())
    return [", ".join(word for _, word in ordered)]


@pytest.mark.parametrize(
    ("reason", "shown"),
    [
        ("RuntimeError: no kernel image\n  File x.py, line 3", "RuntimeError: no kernel image"),
        ("SDPA: both need the same num_heads. Query.sizes(): [1, 32]", "SDPA: both need the same num_heads"),
        ("not installed: no module 'flash_attn'", "not installed: no module 'flash_attn'"),
        ("needs sm_10.0 or later", "needs sm_10.0 or later"),
        ("", ""),
        ("long " * 100, ("long " * 100)[:149] + "…"),
    ],
)
def test_a_reason_is_told_in_one_line(reason: str, shown: str) -> None:
    assert brief(reason) == shown


def test_reasons_that_differ_in_sizes_are_one_line(run: KernelRun) -> None:
    cases = copy.deepcopy(run.cases[:2])
    for size, case in enumerate(cases):
        case.peers = [PeerResult("sdpa", "SDPA", Status.FAILED, f"SDPA: other heads. Sizes: [{size}]\nat line {size}")]
    (row,) = left_out_table(KernelRun({}, {}, [], cases)).rows
    assert row == ("failed", "sdpa", "2", "SDPA: other heads")


@pytest.mark.parametrize("columns", [100, 160])
def test_tables_keep_to_the_width_and_cut_no_figure(
    run: KernelRun, columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("rich")
    monkeypatch.setenv("COLUMNS", str(columns))
    short = KernelRun({}, dict(ENVIRONMENT), [], run.cases[:3])
    for table in (left_out_table(short), everyone_table(short, everyone=False), ours_table(short)):
        show(replace(table, notes=[]))
    shown = capsys.readouterr().out
    assert max(len(line) for line in shown.splitlines()) <= columns
    for row in ours_table(short).rows:
        assert all(figure in shown for figure in row[1:6])


def test_a_beaten_ceiling_is_told_of_and_has_no_shares(run: KernelRun) -> None:
    case = copy.deepcopy(run.cases[0])
    fastest = case.fastest
    assert fastest is not None
    assert case.ceiling_beaten_by is None
    case.ceiling.samples = Samples([fastest.samples.median_us * 1.2])
    case.ceiling.time_us = case.ceiling.samples.median_us
    table = ours_table(KernelRun({}, {}, [], [case]))
    assert table.rows[0][table.columns.index("of ceiling")] == "-"
    assert f"{fastest.name} took" in table.notes[1]
    case.ceiling.samples, case.ceiling.first_us = Samples([1.0]), 9.0
    case.ceiling.first_beaten_by = "somebody"
    assert "9.0 µs at first, which somebody beat" in ours_table(KernelRun({}, {}, [], [case])).notes[1]


def test_plots_are_drawn_from_a_file(run: KernelRun, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "kernel.json"
    run.write(path)
    result = invoke("kernel", "--from", str(path), "--plots", str(tmp_path / "plots"))
    assert result.exit_code == 0, result.output
    assert _images(tmp_path / "plots") == ["best-peer-ratio.png", "ceiling-share.png"]


@pytest.mark.parametrize("sweep", Sweep)
def test_a_sweep_has_a_plot_of_its_own(sweep: Sweep, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from prefetch_compiler.bench.kernel.plots import draw

    names = [path.name for path in draw(sweep_run(sweep), tmp_path)]
    assert names == ["ceiling-share.png", "best-peer-ratio.png", f"sweep-{sweep.value}.png"]
    assert _images(tmp_path) == sorted(names)


def test_plots_of_little_or_nothing(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from prefetch_compiler.bench.kernel.plots import draw

    assert draw(KernelRun({"sweep": "batch"}, {}, []), tmp_path) == []
    lone = synthetic_run(QUICK[:1], Sweep.LENGTH)
    assert len(draw(lone, tmp_path)) == 3
    without_us = synthetic_run(QUICK[:1])
    without_us.cases[0].peers = [peer for peer in without_us.cases[0].peers if not peer.is_ours]
    assert draw(without_us, tmp_path) == []
    alone = synthetic_run(QUICK[:1])
    alone.cases[0].peers = [peer for peer in alone.cases[0].peers if peer.is_ours]
    assert [path.name for path in draw(alone, tmp_path)] == ["ceiling-share.png"]


def _images(folder: Path) -> list[str]:
    found = sorted(folder.iterdir())
    for path in found:
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size > 10_000
    return [path.name for path in found]


def test_a_file_is_shown_as_json_and_as_tables(run: KernelRun, tmp_path: Path) -> None:
    path = tmp_path / "kernel.json"
    run.write(path)
    shown = invoke("kernel", "--from", str(path), "--json")
    assert json.loads(shown.stdout) == json.loads(path.read_text())
    assert "Geometric means" in invoke("kernel", "--from", str(path)).stdout
    refused = invoke("kernel", "--from", str(tmp_path / "absent.json"))
    assert refused.exit_code == 2
    assert "no results of bench kernel" in refused.output


def test_a_dry_run_lists_cases_bytes_and_peers() -> None:
    shown = invoke("kernel", "--quick", "--dry-run")
    assert shown.exit_code == 0
    assert "32q/8kv d128 b1 s8192 full bhsd" in shown.stdout
    assert "33.6" in shown.stdout
    assert "sdpa cudnn" in shown.stdout
    plain = json.loads(invoke("kernel", "--dry-run", "--json", "--peers", "sdpa math,flex").stdout)
    assert len(plain["cases"]) == len(declared())
    assert {peer["family"] for peer in plain["peers"]} == {"SDPA", "FlexAttention"}
    assert plain["cases"][0]["valid_bytes"] == 8192 * 8 * 2 * 128 * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--cases", "nonsense"), "cases"),
        (("--peers", "nobody", "--dry-run"), "peers"),
        (("--cases", "32q/5kv b1 s64", "--dry-run"), "KV heads that divide"),
    ],
)
def test_what_means_nothing_is_refused(arguments: tuple[str, ...], message: str) -> None:
    result = invoke("kernel", *arguments)
    assert result.exit_code == 2
    assert message in result.output


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize("command", ["kernel", "ceiling"])
def test_without_a_gpu_the_command_says_so(command: str) -> None:
    result = invoke(command)
    assert result.exit_code == 2
    assert f"bench {command} measures on a GPU" in result.output


def test_ceilings_survive_their_file(ceilings: CeilingRun, tmp_path: Path) -> None:
    path = tmp_path / "ceiling.json"
    ceilings.write(path)
    assert read_ceilings(path) == ceilings
    text = plain_text(ceiling_table(ceilings))
    assert "4,295.0" in text
    shown = invoke("ceiling", "--from", str(path), "--json")
    assert json.loads(shown.stdout)["points"][0]["tb_per_s"] == ceilings.points[0].tb_per_s


def test_the_ceiling_is_drawn_from_a_file(ceilings: CeilingRun, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "ceiling.json"
    ceilings.write(path)
    result = invoke("ceiling", "--from", str(path), "--plots", str(tmp_path / "plots"))
    assert result.exit_code == 0, result.output
    assert _images(tmp_path / "plots") == ["ceiling.png"]


def test_byte_counts_double() -> None:
    assert list(byte_counts(1 << 20, 4 << 20)) == [1 << 20, 2 << 20, 4 << 20]
    assert list(byte_counts(3, 10)) == [3, 6]
    with pytest.raises(InvalidOptionError):
        list(byte_counts(2, 1))
    assert (parse_bytes("least", "1MB"), parse_bytes("most", "4gb")) == (1 << 20, 4 << 30)
    for text in ("1", "MB", "1TB", "-1MB", "1KB", "1.5GB"):
        with pytest.raises(InvalidOptionError, match="least"):
            parse_bytes("least", text)


def test_ceilings_end_where_memory_does(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefetch_compiler.bench import ceiling_sweep

    def fits_two_megabytes(count: int, device: torch.device) -> ReadCeiling:
        region = min(count, 2 << 20)
        return ReadCeiling(region, 1, LAUNCH_SHAPES[0], 1000.0, Samples([region / 1000]))

    monkeypatch.setattr(ceiling_sweep, "measure_ceiling", fits_two_megabytes)
    said: list[str] = []
    found = measure_ceilings(byte_counts(1 << 20, 64 << 20), torch.device("cpu"), said.append)
    assert [point.asked_bytes for point in found.points] == [1 << 20, 2 << 20, 4 << 20]
    assert len(said) == 3
