"""Where something that compiling a kernel takes is missing or fails, PyTorch serves and the report says what it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import prefetch_compiler
from prefetch_compiler.lower import ops

from .test_stage_boundaries import attend, operands
from .uncompiled import graphs_run_uncompiled

REASONS = {
    "no Triton": "ModuleNotFoundError: import of triton halted",
    "caches cannot be written": "NotADirectoryError",
    "no C compiler": "Failed to find C compiler",
    "the kernel does not compile": "CompilationError",
    "out of resources": "OutOfResources: out of resource: shared memory",
    "the driver refuses to load it": "Triton Error [CUDA]: device kernel image is invalid",
}


@pytest.fixture(scope="module")
def outcomes() -> dict[str, dict[str, Any]]:
    """Of every fault."""
    script = Path(__file__).with_name("broken_toolchain_run.py")
    found: dict[str, dict[str, Any]] = {}
    for what in ("no-triton", "toolchain"):
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        if what == "no-triton":
            environment["TRITON_INTERPRET"] = "1"
        run = subprocess.run(
            [sys.executable, str(script), what], env=environment, capture_output=True, text=True, timeout=300,
            check=False,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        found |= json.loads(run.stdout.splitlines()[-1])
    return found


@pytest.mark.skipif(torch.cuda.is_available(), reason="stands in for a GPU on the CPU: hide the GPU")
@pytest.mark.parametrize("fault", REASONS)
def test_pytorch_serves_and_the_report_says_why(fault: str, outcomes: dict[str, dict[str, Any]]) -> None:
    found = outcomes[fault]
    assert found["error"] < 1e-6
    assert REASONS[fault] in found["reason"]
    assert "LoweringError" in found["strict"]
    assert REASONS[fault] in found["says"]


def test_an_explained_report_says_what_a_launch_failed_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver's word at the first launch comes after the compile's."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise RuntimeError("Triton Error [CUDA]: invalid argument")

    monkeypatch.setattr(ops, "_failed_configs", {})
    with graphs_run_uncompiled():
        assert prefetch_compiler.explain(attend, *operands()).lowered
        monkeypatch.setattr(ops, "launch_decode", refuse)
        report = prefetch_compiler.explain(attend, *operands())
    (site,) = report.sites
    assert not site.lowered
    assert "failed to launch" in site.reason
    assert "Triton Error [CUDA]: invalid argument" in site.reason


def test_a_reset_tries_failed_launches_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "_failed_configs", {"a configuration": "RuntimeError: of the day before"})
    torch._dynamo.reset()
    assert ops._failed_configs == {}
