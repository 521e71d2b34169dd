"""``python -m tests.gpu.sanitize`` without a GPU: its commands, what it makes of what tools say, and its launches."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from prefetch_compiler.bench.numerics.group import GROUPS
from prefetch_compiler.lower import launch

from ..gpu import sanitize, sanitized_launches
from ..gpu.sanitize import (
    FOUND,
    NOTHING_RAN,
    TOOLS,
    Outcome,
    Part,
    command,
    environment,
    exit_code,
    kernel_names,
    outcome_of,
    parts_of,
    together,
)
from ..tuning.mutants import mutated_templates
from ..tuning.seeded_bugs import SEEDED_BUGS

# Triton's interpreter warns at every scalar that it converts.
pytestmark = pytest.mark.filterwarnings("ignore")

CLEAN = """========= COMPUTE-SANITIZER
case: split_kv_decode: pages
case: latent_decode: TMA
done: 2
========= ERROR SUMMARY: 0 errors
"""
INVALID = """========= COMPUTE-SANITIZER
case: split_kv_decode: pages
case: latent_decode: TMA
========= Invalid __global__ read of size 2 bytes
=========     at latent_decode+0x1d50
=========     by thread (12,0,0) in block (0,0,0)
=========     Address 0x7f0000 is out of bounds
=========     and is 13 bytes after the nearest allocation at 0x7e0000 of size 4096 bytes
=========
done: 2
========= ERROR SUMMARY: 1 error
"""
RACE = """========= COMPUTE-SANITIZER
case: split_kv_decode: pages
========= Error: Race reported between Write access at split_kv_decode+0x50 in attend.py:70
=========     and Read access at split_kv_decode+0x90 in attend.py:90 [64 hazards]
=========
done: 1
========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)
"""
UNWRITTEN = """========= COMPUTE-SANITIZER
case: split_kv_decode: splits
========= Uninitialized __global__ memory read of size 4 bytes
=========     at merge_splits+0x70 in merge_splits.py:20
=========     by thread (0,0,0) in block (0,0,0)
=========
========= Uninitialized __global__ memory read of size 4 bytes
=========     at merge_splits+0x70 in merge_splits.py:20
=========     by thread (1,0,0) in block (0,0,0)
done: 1
========= ERROR SUMMARY: 2 errors
"""
UNWATCHED = """========= COMPUTE-SANITIZER
========= Error: No attachable process found. compute-sanitizer timed-out.
========= Default timeout can be adjusted with --launch-timeout. Awaiting target completion.
case: split_kv_decode: pages
done: 1
========= ERROR SUMMARY: 0 errors
"""
CRASHED = """========= COMPUTE-SANITIZER
case: split_kv_decode: pages
========= Target application returned an error
"""


def test_nothing_found() -> None:
    outcome = outcome_of("memcheck", 0, CLEAN)
    assert (outcome.cases, outcome.count, outcome.findings, outcome.problem) == (2, 0, (), "")
    assert exit_code([outcome]) == 0
    quiet = CLEAN.replace("ERROR SUMMARY: 0 errors", "RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)")
    assert exit_code([outcome_of("racecheck", 0, quiet)]) == 0


@pytest.mark.parametrize(
    ("tool", "output", "case", "text", "count"),
    [
        (
            "memcheck", INVALID, "latent_decode: TMA",
            "Invalid __global__ read of size 2 bytes at latent_decode+0x1d50", 1,
        ),
        (
            "racecheck", RACE, "split_kv_decode: pages",
            "Error: Race reported between Write access at split_kv_decode+0x50 in attend.py:70"
            " and Read access at split_kv_decode+0x90 in attend.py:90 [64 hazards]", 1,
        ),
        (
            "initcheck", UNWRITTEN, "split_kv_decode: splits",
            "Uninitialized __global__ memory read of size 4 bytes at merge_splits+0x70 in merge_splits.py:20", 2,
        ),
    ],
)  # fmt: skip
def test_findings_are_told_once_by_their_case_and_place(
    tool: str, output: str, case: str, text: str, count: int
) -> None:
    outcome = outcome_of(tool, FOUND, output)
    assert outcome.findings == ((case, text),)
    assert (outcome.count, outcome.problem) == (count, "")
    assert exit_code([outcome_of("memcheck", 0, CLEAN), outcome]) == 1


@pytest.mark.parametrize(
    ("code", "output"),
    [
        (1, CRASHED),
        (0, CRASHED),
        (FOUND, CLEAN),
        (0, CLEAN.replace("done: 2", "done: 0")),
        (-11, INVALID),
        (0, ""),
        (0, UNWATCHED),
    ],
)
def test_what_did_not_run_to_the_end_is_no_success(code: int, output: str) -> None:
    outcome = outcome_of("memcheck", code, output)
    assert outcome.problem
    assert exit_code([outcome]) == 2


def test_only_our_kernels_are_watched_where_that_is_enough() -> None:
    assert {"split_kv_decode", "quantised_decode", "latent_decode", "latent_producer", "merge_splits"} == set(
        kernel_names()
    )
    for tool in TOOLS:
        line = command("compute-sanitizer", tool, Part("pages", 1, 3))
        assert line[1:5] == ["--tool", tool, "--error-exitcode", "9"]
        assert line[-6:] == [sys.executable, "-m", "tests.gpu.sanitized_launches", "pages", "1", "3"]
        assert ("--num-cuda-barriers" in line) is (tool == "racecheck")
        filtered = [argument for argument in line if argument.startswith("--kernel-name=kns=")]
        assert len(filtered) == (0 if tool == "initcheck" else len(kernel_names()))
        assert (environment(tool).get("PYTORCH_NO_CUDA_MEMORY_CACHING") == "1") is (tool != "racecheck")


def test_a_stand_in_is_run_to_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that reports as the tools do, one of them with a finding."""
    stand_in = tmp_path / "compute-sanitizer"
    stand_in.write_text(
        f"#!{sys.executable}\nimport sys\n"
        f"print({INVALID!r} if sys.argv[2] == 'memcheck' else {CLEAN!r})\n"
        f"sys.exit({FOUND} if sys.argv[2] == 'memcheck' else 0)\n"
    )
    stand_in.chmod(0o755)
    monkeypatch.setenv("COMPUTE_SANITIZER", str(stand_in))
    assert sanitize.find_sanitizer() == str(stand_in)
    outcomes = [sanitize.run_tool(str(stand_in), tool, parts_of("", 1), logs=tmp_path) for tool in TOOLS]
    assert (tmp_path / "memcheck-0.log").read_text().splitlines() == [*INVALID.splitlines(), ""]
    assert [(one.tool, one.count, one.problem) for one in outcomes] == [
        ("memcheck", 1, ""), ("racecheck", 0, ""), ("initcheck", 0, ""),
    ]  # fmt: skip
    assert sanitize.table_of(outcomes).rows[0][2:] == (
        "1", "latent_decode: TMA: Invalid __global__ read of size 2 bytes at latent_decode+0x1d50",
    )  # fmt: skip


def test_without_a_sanitizer_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COMPUTE_SANITIZER", str(tmp_path / "none"))
    monkeypatch.setattr(sys, "argv", ["sanitize"])
    assert sanitize.main() == 2
    assert "there is no compute-sanitizer" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="sizes are the interpreter's: hide the GPU")
def test_the_launches_run(capsys: pytest.CaptureFixture[str]) -> None:
    sanitized_launches.main("split_kv_decode: s")
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"done: {len(lines) - 1}"
    assert {line.rpartition(": ")[2] for line in lines[:-1]} == {
        "splits, merged after", "splits, merged in place", "streamed", "soft cap", "sinks",
    }  # fmt: skip


@pytest.mark.skipif(torch.cuda.is_available(), reason="sizes are the interpreter's: hide the GPU")
def test_a_merge_that_does_not_drop_what_was_not_written_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sequences of no keys and of one have fewer parts than there are splits."""
    with mutated_templates(SEEDED_BUGS["merge reads what nobody wrote"].bugs, tmp_path) as mutant:
        monkeypatch.setattr(launch, "launch_kernels", mutant)
        with pytest.raises(RuntimeError, match="splits, merged after: an output is not finite"):
            sanitized_launches.main("split_kv_decode: splits, merged after")


def test_each_case_is_in_one_share(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sanitized_launches, "run", lambda group, *_: print(group.name) or True)
    shares = []
    for part in parts_of("", 5):
        sanitized_launches.main(*part.command()[3:])
        shares.append(capsys.readouterr().out.splitlines()[:-1])
    assert [len(share) > 0 for share in shares] == [True] * 5
    assert sorted(name for share in shares for name in share) == sorted(group.name for group in GROUPS)


def test_shares_take_turns_on_the_gpus_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert [environment("memcheck", share)["CUDA_VISIBLE_DEVICES"] for share in range(4)] == ["2", "5", "2", "5"]


def test_shares_are_told_as_one() -> None:
    nothing = Outcome("memcheck", 0, 0, (), NOTHING_RAN)
    clean = Outcome("memcheck", 3, 0, ())
    found = Outcome("memcheck", 2, 1, (("pages", "Invalid __global__ read of size 4 bytes"),))
    broken = Outcome("memcheck", 0, 0, (), "exit code 1: no driver")
    assert together([clean, nothing]) == clean
    assert together([clean, found]) == Outcome("memcheck", 5, 1, found.findings)
    assert together([clean, broken]).problem == "exit code 1: no driver"
    assert together([nothing, nothing]).problem == NOTHING_RAN


def test_a_tool_that_takes_too_long_is_told_with_the_case_that_it_was_in(tmp_path: Path) -> None:
    """A stand-in for the tool: it begins two cases, finds something in the second, and never ends."""
    stand_in = tmp_path / "compute-sanitizer"
    stand_in.write_text(
        "#!/bin/sh\necho 'case: splits'\necho 'case: pages'\n"
        "echo '========= Invalid __global__ read of size 4 bytes'\nexec sleep 60\n"
    )
    stand_in.chmod(0o755)
    outcome = sanitize.run_tool(str(stand_in), "memcheck", parts_of("", 1), seconds=1.0)
    assert (outcome.cases, outcome.problem) == (2, "no end after 1 s: pages")
    assert outcome.findings == (("pages", "Invalid __global__ read of size 4 bytes"),)
    assert exit_code([outcome]) == 2
