"""The compile pool: each kernel once, whatever is asked for; what becomes of it when an assembler never ends, when one
of its processes is killed, and when the job is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from prefetch_compiler.device import REFERENCE_DEVICES
from prefetch_compiler.tuning.compile_pool import CompilePool
from prefetch_compiler.tuning.errors import InterpretedCompileError
from prefetch_compiler.tuning.measurer import KILL_S

from .compile_pool_run import DEADLINE_S, gone


def started(tmp_path: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """What it prints goes to a file: a process that it leaves behind would hold a pipe open."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path / "cache")
    command = [sys.executable, str(Path(__file__).with_name("compile_pool_run.py")), *arguments]
    with (tmp_path / "printed").open("wb") as printed:
        return subprocess.Popen(command, env=environment, stdout=printed, stderr=subprocess.STDOUT)


def run(tmp_path: Path) -> Any:
    returned = started(tmp_path).wait(timeout=200)
    printed = (tmp_path / "printed").read_text()
    assert returned == 0, printed
    return json.loads(printed.splitlines()[-1])


def test_configurations_and_keys_share_kernels(tmp_path: Path) -> None:
    found = run(tmp_path)
    decode, both = ["split_kv_decode"], ["split_kv_decode", "merge_splits"]
    assert found["outcomes"] == [both, both, both, both, decode, decode]
    # Decode with splits, in-place and without; merges of 4, of up to 4 and of up to 8 splits.
    assert found["kernels"] == 6


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What became of each fault, and of the processes that were at work when the job itself was killed."""
    folder = tmp_path_factory.mktemp("faults")
    process = started(folder, str(folder))
    try:
        until = time.monotonic() + 300
        while not (folder / "reply").exists():
            assert process.poll() is None and time.monotonic() < until, (folder / "printed").read_text()
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    found = json.loads((folder / "reply").read_text())
    return found | {"left": [name for name in ("worker", "assembler") if not gone(found[name])]}


def test_an_assembler_that_never_ends_costs_bounded_seconds_and_dies(faults: Any) -> None:
    assert faults["first"] == ["split_kv_decode"]
    assert faults["hang"]["outcome"] == "compile_timeout"
    assert faults["hang"]["seconds"] < DEADLINE_S + KILL_S
    assert faults["hang"]["assembler_gone"]


def test_a_compiler_that_is_killed_costs_one_trial_and_its_assembler_dies(faults: Any) -> None:
    assert faults["killed"] == {"outcome": "compile_error", "assembler_gone": True}


def test_a_compiler_that_dies_with_nothing_to_do_costs_none(faults: Any) -> None:
    """Asked a moment later the pool may not know yet: then the measurer compiles."""
    at_once, later = faults["idle"]
    assert at_once in ([], ["split_kv_decode"])
    assert later == faults["last"] == ["split_kv_decode"]


def test_compilers_and_assemblers_die_with_the_job(faults: Any) -> None:
    assert faults["left"] == []


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="kernels are not interpreted here")
def test_an_interpreting_process_is_refused() -> None:
    with pytest.raises(InterpretedCompileError, match="TRITON_INTERPRET"):
        CompilePool(REFERENCE_DEVICES[90])
