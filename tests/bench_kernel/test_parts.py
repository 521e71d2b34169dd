"""A run in parts: who has which case, and what becomes of the parts' files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from prefetch_compiler.bench.cli import app
from prefetch_compiler.bench.errors import InvalidResultError
from prefetch_compiler.bench.kernel.grid import QUICK, Sweep, declared, swept
from prefetch_compiler.bench.kernel.parts import read_parts
from prefetch_compiler.bench.kernel.result import NotRun
from prefetch_compiler.part import Part

from .synthetic import synthetic_run


@pytest.mark.parametrize("count", [1, 2, 3, 4, 200])
def test_every_case_is_in_one_part(count: int) -> None:
    parts = [Part(number, count).of(declared()) for number in range(1, count + 1)]
    assert sorted((case for part in parts for case in part), key=declared().index) == list(declared())
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def written(tmp_path: Path, count: int = 3) -> list[Path]:
    paths = []
    for number in range(1, count + 1):
        run = synthetic_run(Part(number, count).of(QUICK))
        run.settings["part"], run.settings["cases"] = f"{number}/{count}", len(run.cases)
        run.environment["command"] = f"part {number}"
        run.not_run = [NotRun(declared()[-number], "the budget was used up")]
        paths.append(tmp_path / f"{number}.json")
        run.write(paths[-1])
    return paths


def test_parts_make_one_run_in_the_grids_order(tmp_path: Path) -> None:
    run = read_parts(written(tmp_path)[::-1])
    assert [one.case for one in run.cases] == list(QUICK)
    assert [one.case for one in run.not_run] == [declared()[-number] for number in (3, 2, 1)]
    assert run.settings["cases"] == len(QUICK) + 3
    assert run.settings["part"] is None
    assert run.environment["command"] == "part 3; part 2; part 1"


def test_a_case_that_one_part_missed_and_another_has_was_run(tmp_path: Path) -> None:
    paths = written(tmp_path)
    run = json.loads(paths[0].read_text())
    run["not_run"] = [{"case": json.loads(paths[1].read_text())["cases"][0]["case"], "reason": "no memory"}]
    paths[0].write_text(json.dumps(run))
    assert [one.case for one in read_parts(paths).not_run] == [declared()[-2], declared()[-3]]


def test_one_file_is_left_as_it_is(tmp_path: Path) -> None:
    paths = written(tmp_path)
    assert read_parts(paths[:1]).to_dict() == json.loads(paths[0].read_text())


def test_sweeps_keep_their_order(tmp_path: Path) -> None:
    cases = swept(Sweep.BATCH)
    paths = []
    for number in (2, 1):
        paths.append(tmp_path / f"{number}.json")
        run = synthetic_run(Part(number, 2).of(cases), Sweep.BATCH)
        replace(run, not_run=[]).write(paths[-1])
    assert [one.case for one in read_parts(paths).cases] == list(cases)


@pytest.mark.parametrize(
    ("where", "name", "problem"),
    [
        ("settings", "rounds", "settings: rounds is 'other', and 9 in the first file"),
        ("settings", "new", "settings: new is 'other', and None in the first file"),
        ("environment", "device", "environment: device is 'other'"),
        ("environment", "templates_sha256", "environment: templates_sha256 is 'other'"),
    ],
)
def test_what_was_measured_otherwise_is_no_part(tmp_path: Path, where: str, name: str, problem: str) -> None:
    paths = written(tmp_path)
    run = json.loads(paths[1].read_text())
    run[where][name] = "other"
    paths[1].write_text(json.dumps(run))
    with pytest.raises(InvalidResultError, match=problem):
        read_parts(paths)


def test_other_peers_or_a_case_of_another_file_are_no_part(tmp_path: Path) -> None:
    paths = written(tmp_path)
    with pytest.raises(InvalidResultError, match="is in another file"):
        read_parts([*paths, paths[0]])
    run = json.loads(paths[1].read_text())
    run["availability"][0]["reason"] = "not installed"
    paths[1].write_text(json.dumps(run))
    with pytest.raises(InvalidResultError, match="other peers can be loaded"):
        read_parts(paths)


def test_the_command_shows_parts_as_one(tmp_path: Path) -> None:
    files = [word for path in written(tmp_path) for word in ("--from", str(path))]
    shown = CliRunner().invoke(app, ["kernel", *files, "--json"])
    assert shown.exit_code == 0, shown.output
    assert len(json.loads(shown.stdout)["cases"]) == len(QUICK)
    refused = CliRunner().invoke(app, ["kernel", *files, *files[:2]])
    assert refused.exit_code == 2
    assert "is in another file" in refused.output


def test_the_command_lists_the_cases_of_a_part() -> None:
    shown = CliRunner().invoke(app, ["kernel", "--quick", "--dry-run", "--json", "--part", "2/4"])
    assert [one["case"] for one in json.loads(shown.stdout)["cases"]] == [case.name for case in QUICK[1::4]]
    refused = CliRunner().invoke(app, ["kernel", "--dry-run", "--part", "3/2"])
    assert refused.exit_code == 2
    assert "option 'part' is '3/2'" in refused.output
