"""Kernels compiled in Inductor's workers are found by the process that launches them; without workers nothing fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._inductor.async_compile import AsyncCompile

from prefetch_compiler.config import KernelConfig
from prefetch_compiler.lower.compile_workers import compile_in_workers, wake_workers
from prefetch_compiler.spec import AttentionSpec, TensorLayout

LAYOUT = TensorLayout(256 * 128, 256 * 128, 128)
SPEC = AttentionSpec(1, 1, 1, 1, 256, 128, 128, torch.bfloat16, 128**-0.5, LAYOUT, LAYOUT)
CONFIG = KernelConfig(32, 4, 4, 2)


@pytest.mark.parametrize("names_cache", [True, False], ids=["cache named by the user", "Inductor's cache"])
def test_the_launcher_finds_what_workers_compiled(names_cache: bool, tmp_path: Path) -> None:
    environment = {
        name: value for name, value in os.environ.items() if name not in ("TRITON_INTERPRET", "TRITON_CACHE_DIR")
    }
    environment |= {"TORCHINDUCTOR_COMPILE_THREADS": "2", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor")}
    if names_cache:
        environment["TRITON_CACHE_DIR"] = str(tmp_path / "triton")
    script = Path(__file__).with_name("worker_cache.py")
    reply = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    assert json.loads(reply.stdout.splitlines()[-1]) == [True, True]


class BrokenPool:
    def submit(self, *job: object) -> None:
        raise RuntimeError("Attempting to use a closed pool")


def test_a_pool_that_refuses_work_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tried = []
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(AsyncCompile, "use_process_pool", lambda: True)
    monkeypatch.setattr(AsyncCompile, "process_pool", lambda: tried.append(1) or BrokenPool())
    monkeypatch.setattr("triton.runtime.driver._active", Target())
    compile_in_workers(SPEC, CONFIG, torch.device("cuda", 0), 2)
    assert tried == [1]


def test_a_pool_that_does_not_start_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def refuse() -> bool:
        tried.append(1)
        raise RuntimeError("Inductor async compile process pools are disabled")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(AsyncCompile, "use_process_pool", refuse)
    wake_workers()
    assert tried == [1]


class Target:
    def get_current_target(self) -> str:
        return "a target"
