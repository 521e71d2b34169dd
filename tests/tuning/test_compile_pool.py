"""The compile pool: each kernel once, whatever is asked for, and an assembler that never ends costs bounded seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from prefetch_compiler.device import REFERENCE_DEVICES
from prefetch_compiler.tuning.compile_pool import CompilePool
from prefetch_compiler.tuning.errors import InterpretedCompileError


def run(tmp_path: Path, *arguments: str) -> Any:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path / "cache")
    script = Path(__file__).with_name("compile_pool_run.py")
    command = [sys.executable, str(script), *arguments]
    reply = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert reply.returncode == 0, reply.stderr
    return json.loads(reply.stdout.splitlines()[-1])


def test_configurations_and_keys_share_kernels(tmp_path: Path) -> None:
    found = run(tmp_path)
    decode, both = ["split_kv_decode"], ["split_kv_decode", "merge_splits"]
    assert found["outcomes"] == [both, both, both, both, decode, decode]
    # Decode with splits, in-place and without; merges of up to 4 and up to 8 splits.
    assert found["kernels"] == 5


def test_an_assembler_that_never_ends_costs_bounded_seconds_and_dies(tmp_path: Path) -> None:
    found = run(tmp_path, str(tmp_path))
    assert found["first"] == "compile_timeout"
    assert 15 <= found["seconds"] < 45
    assert not found["survived"]
    assert found["second"] == ["split_kv_decode"]


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="kernels are not interpreted here")
def test_an_interpreting_process_is_refused() -> None:
    with pytest.raises(InterpretedCompileError, match="TRITON_INTERPRET"):
        CompilePool(REFERENCE_DEVICES[90])
