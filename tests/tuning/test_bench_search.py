"""Comparing samplers on tables: the tables, the grid, recording through a measurer, and replays."""

from __future__ import annotations

import json
import math
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from prefetch_compiler.bench.errors import InvalidTableError
from prefetch_compiler.bench.search_grid import GridSpace, grid_points, grid_values
from prefetch_compiler.bench.search_record import DEFAULT_KEYS, record_tables
from prefetch_compiler.bench.search_replay import Replay, budget_trials, replay, replay_all, score
from prefetch_compiler.bench.search_table import (
    FAILED,
    INFEASIBLE,
    TOO_LARGE,
    UNMEASURED,
    SearchTable,
    read_tables,
    time_code,
    time_us,
    write_tables,
)
from prefetch_compiler.cli import app
from prefetch_compiler.config import KernelConfig, LoadPath
from prefetch_compiler.database.key import TuningKey, parse_key
from prefetch_compiler.lower.precompile import CompiledKernel
from prefetch_compiler.tuning.compile_pool import CompileOutcome
from prefetch_compiler.tuning.feasible import why_infeasible
from prefetch_compiler.tuning.protocol import FailureKind, TrialFailure

from .fakes import H200, KEY, FakeMeasurer, rugged_us

MANY = KEY.at(batch=32, capacity=1024)


def table_of(key: TuningKey) -> SearchTable:
    values = grid_values(key, H200)
    times = [
        INFEASIBLE if why_infeasible(key, config, H200) else time_code(rugged_us(key, config))
        for config in grid_points(values)
    ]
    return SearchTable(key, H200, values, tuple(times), {"made": "up"})


@pytest.fixture(scope="module")
def tables() -> list[SearchTable]:
    return [table_of(KEY), table_of(MANY)]


@pytest.mark.parametrize("name", DEFAULT_KEYS)
def test_grids_are_large_enough_to_be_searched_and_small_enough_to_be_measured(name: str) -> None:
    key = parse_key(name)
    points = grid_points(grid_values(key, H200))
    feasible = [config for config in points if why_infeasible(key, config, H200) is None]
    assert len(set(points)) == len(points)
    assert 700 <= len(feasible) <= 2500
    kernels = {replace(config, num_splits=min(2, config.num_splits)) for config in feasible}
    assert len(kernels) <= 900


def test_snapping_goes_to_the_grid_and_leaves_its_points_alone() -> None:
    values = grid_values(KEY, H200)
    space, points = GridSpace(KEY, H200, values), grid_points(values)
    assert all(space.snap(config) == config for config in points[::17])
    odd = KernelConfig(256, 9, 1, 6, prefetch_depth=8, launch_overlap=False, load_path=LoadPath.TMA)
    snapped = space.snap(odd)
    assert snapped in points
    assert (snapped.block_kv, snapped.num_warps, snapped.num_stages, snapped.prefetch_depth) == (128, 2, 4, 2)
    assert snapped.num_splits in (8, 12) and snapped.launch_overlap and snapped.load_path is LoadPath.TMA


def test_tables_are_read_back_and_stay_small(tmp_path: Path, tables: list[SearchTable]) -> None:
    path = tmp_path / "tables.json"
    write_tables(path, tables)
    assert read_tables(path) == tables
    assert path.stat().st_size < 50_000 * len(tables)
    assert tables[0].optimum_us == pytest.approx(
        min(rugged_us(KEY, c) for c in tables[0].by_config() if why_infeasible(KEY, c, H200) is None), abs=0.006
    )
    assert time_us(time_code(12.345)) == pytest.approx(12.345, abs=0.0051)


@pytest.mark.parametrize("content", ["", "{}", '{"format": 2, "tables": []}', '{"format": 1, "tables": [{}]}'])
def test_what_is_no_table_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "tables.json"
    path.write_text(content)
    with pytest.raises(InvalidTableError, match=r"tables\.json"):
        read_tables(path)


def test_a_table_that_does_not_fit_its_grid_is_refused(tmp_path: Path, tables: list[SearchTable]) -> None:
    path = tmp_path / "tables.json"
    write_tables(path, [replace(tables[0], times=tables[0].times[1:])])
    with pytest.raises(InvalidTableError, match="do not fit"):
        read_tables(path)


class FakeCompiler:
    """With 8 warps everything spills, and with 4 stages the compiler fails."""

    def submit(self, key: TuningKey, config: KernelConfig) -> Future[CompileOutcome]:
        future: Future[CompileOutcome] = Future()
        if config.num_stages == 4 and config.num_warps == 2:
            future.set_result(TrialFailure(FailureKind.COMPILE_ERROR, "no", 0.0))
        else:
            future.set_result((CompiledKernel("kernel", 0, 64, 512 if config.num_warps == 8 else 0),))
        return future

    def close(self) -> None:
        return


def record(seconds: float, measurer: FakeMeasurer) -> SearchTable:
    (table,) = record_tables(
        [MANY], measurer, FakeCompiler(), H200,
        seconds_per_key=seconds, seed=3, origin=lambda key: {"of": key.name}, progress=lambda line: None,
    )  # fmt: skip
    return table


def test_recording_measures_every_point_that_is_worth_it_once() -> None:
    measurer = FakeMeasurer(rugged_us)
    found = record(60, measurer).by_config()
    for config, code in found.items():
        if why_infeasible(MANY, config, H200) is not None:
            assert code == INFEASIBLE
        elif config.num_stages == 4 and config.num_warps == 2:
            assert code == FAILED
        elif config.num_warps == 8:
            assert code == TOO_LARGE
        else:
            assert time_us(code) == pytest.approx(rugged_us(MANY, config), abs=0.006)
    assert len({request.config for request in measurer.trials}) == len(measurer.trials)
    assert len(measurer.trials) == sum(code >= 0 for code in found.values())


def test_recording_keeps_to_its_time() -> None:
    import time

    measurer = FakeMeasurer(pause=lambda: time.sleep(0.01))
    table = record(0.5, measurer)
    assert table.origin == {"of": MANY.name}
    assert 5 < len(measurer.trials) < 60
    assert sum(code == UNMEASURED for code in table.times) > 100


@pytest.mark.parametrize("sampler", ["tpe-group+local", "random"])
def test_a_replay_pays_for_five_percent_and_only_gets_better(sampler: str, tables: list[SearchTable]) -> None:
    found = replay(tables[0], sampler, seed=1)
    assert len(found.regrets) == budget_trials(tables[0], 0.05) == math.floor(0.05 * tables[0].feasible)
    assert list(found.regrets) == sorted(found.regrets, reverse=True)
    assert found.regrets[-1] >= 0
    assert found == replay(tables[0], sampler, seed=1)
    assert found.regrets != replay(tables[0], sampler, seed=2).regrets


def test_a_searcher_beats_chance(tables: list[SearchTable]) -> None:
    """On average over two rugged tables and three seeds, over the second half of the trials."""
    replays = replay_all(tables, ["tpe-group+local", "random"], range(3))

    def late_regret(sampler: str) -> float:
        curves = [one.regrets[len(one.regrets) // 2 :] for one in replays if one.sampler == sampler]
        assert len(curves) == 6
        return sum(sum(curve) / len(curve) for curve in curves)

    assert late_regret("tpe-group+local") < late_regret("random")


def test_scores_are_medians_and_shares(tables: list[SearchTable]) -> None:
    trials = budget_trials(tables[0], 0.05)

    def made(final: float, key: str = KEY.name) -> Replay:
        return Replay(key, "tpe", 0, (0.5,) * (trials - 1) + (final,))

    found = score("tpe", [made(0.0), made(0.02), made(0.1), made(0.3, MANY.name)], tables)
    assert found.found == pytest.approx((2 / 3 + 0) / 2)
    assert found.found_worst_key == 0
    assert found.regret[0.01] == (0.5, 0.5)


def test_the_command_prints_a_table_and_json(tmp_path: Path, tables: list[SearchTable]) -> None:
    path = tmp_path / "tables.json"
    write_tables(path, tables[:1])
    options = ["bench", "search", str(path), "--samplers", "random", "--seeds", "2", "--jobs", "1"]
    shown = CliRunner().invoke(app, options)
    assert shown.exit_code == 0 and "random" in shown.stdout and "within 2 %" in shown.stdout
    plain = json.loads(CliRunner().invoke(app, [*options, "--json"]).stdout)
    assert plain["samplers"][0]["searches"] == 2
    assert plain["tables"][0]["feasible"] == tables[0].feasible


@pytest.mark.parametrize(
    ("options", "why"),
    [([], "--record"), (["none.json"], "none.json"), (["none.json", "--samplers", "simplex"], "simplex")],
)
def test_what_cannot_be_replayed_is_one_line(options: list[str], why: str) -> None:
    result = CliRunner().invoke(app, ["bench", "search", *options])
    assert result.exit_code == 2
    assert why in result.stderr and "Traceback" not in result.stderr
