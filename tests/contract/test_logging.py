"""Logging: silent unless asked for, a line a site at INFO, a compiler engineer's account at DEBUG, and nothing in
serving; by standard logging and by TORCH_LOGS."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from prefetch_compiler.config import KernelConfig
from prefetch_compiler.database.device_identity import identity_of
from prefetch_compiler.database.document import Database, encode
from prefetch_compiler.database.key import key_of
from prefetch_compiler.device import REFERENCE_DEVICES, profile
from prefetch_compiler.lower import precompile as precompile_module

from ..database.examples import measured
from .golden import static_cache
from .golden.run import run_compiled
from .uncompiled import graphs_run_uncompiled

GOLDEN = static_cache.LLAMA
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def _afresh() -> Iterator[None]:
    yield
    torch._dynamo.reset()


def messages(caplog: pytest.LogCaptureFixture, level: str, **options: Any) -> list[str]:
    """What one compile and its runs log."""
    caplog.clear()
    with graphs_run_uncompiled(), caplog.at_level(level, logger="prefetch_compiler"):
        run_compiled(GOLDEN, options=options or None)
    return [record.getMessage() for record in caplog.records if record.name.startswith("prefetch_compiler")]


def test_info_is_a_line_for_each_site(caplog: pytest.LogCaptureFixture) -> None:
    (line,) = messages(caplog, "INFO")
    assert "heuristic" in line
    assert GOLDEN.specs[0].describe() in line
    assert "\n" not in line


def test_debug_tells_decisions_records_and_times(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    with graphs_run_uncompiled():
        _, report = run_compiled(GOLDEN)
    spec = report.sites[0].spec
    assert spec is not None
    key, config = key_of(spec), KernelConfig(16, 2, 1, 2)
    path = tmp_path / "tuned.json"
    path.write_bytes(encode(Database(identity_of(profile(DEVICE)), (measured(key, config=config),))))
    text = "\n".join(messages(caplog, "DEBUG", **{"kvprefetch.tuning_db": str(path)}))
    for expected in (
        "marked",
        "through",  # the views that K is seen through
        f"looking up {key.name}",
        f"exact {key.name}",
        config.encode(),
        "used",
        "1 records",
        "pass: ",
    ):
        assert expected in text, text
    text = "\n".join(messages(caplog, "DEBUG"))
    assert "no record for" in text
    assert "heuristic for" in text


def test_precompiling_says_how_long_each_kernel_took(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = SimpleNamespace(__name__="_some_kernel")
    call = SimpleNamespace(kernel=kernel, precompile=lambda: None)
    monkeypatch.setattr(precompile_module, "kernel_calls", lambda *_: [call])
    monkeypatch.setattr(precompile_module, "profile_of", lambda device: REFERENCE_DEVICES[90])
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    with caplog.at_level("DEBUG", logger="prefetch_compiler"):
        precompile_module.precompile(GOLDEN.specs[0], KernelConfig(16, 2, 1, 2), torch.device("cuda"))
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("_some_kernel b16")
    assert line.endswith(" ms")


SCRIPT = """
import runpy, sys
{first}
import torch
from torch.nn.functional import scaled_dot_product_attention
uncompiled = runpy.run_path({uncompiled!r})["graphs_run_uncompiled"]
k = torch.randn(1, 2, 32, 16, device={device!r})
q = torch.randn(1, 2, 1, 16, device={device!r})
with uncompiled(), torch.no_grad():
    step = torch.compile(lambda q: scaled_dot_product_attention(q, k, k), backend="kvprefetch")
    step(q)
    sys.stderr.write("--- compiled\\n")
    for _ in range(20):
        step(q)
"""


@pytest.mark.parametrize(
    ("setting", "first", "lines"),
    [
        ("prefetch_compiler", "import prefetch_compiler", 1),
        ("+prefetch_compiler", "import torch", None),
    ],
)
def test_torch_logs_asks_for_it_and_serving_says_nothing(setting: str, first: str, lines: int | None) -> None:
    script = SCRIPT.format(first=first, uncompiled=str(Path(__file__).parent / "uncompiled.py"), device=str(DEVICE))
    environment = os.environ | {"TORCH_LOGS": setting}
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    compiling, serving = run.stderr.split("--- compiled\n")
    ours = [line for line in compiling.splitlines() if "prefetch_compiler/" in line]
    if lines is None:
        assert any("heuristic |" in line for line in ours), run.stderr
        assert any("looking up" in line or "no record" in line for line in ours), run.stderr
    else:
        assert len(ours) == lines, run.stderr
        assert all("heuristic |" in line for line in ours)
    assert "prefetch_compiler" not in serving, serving


@pytest.mark.skipif("TORCH_LOGS" in os.environ, reason="TORCH_LOGS asks for something")
def test_every_logger_is_below_the_packages_own_and_silent() -> None:
    """One name to turn on, or up, in standard logging; nothing but warnings until then."""
    ours = [name for name in logging.root.manager.loggerDict if "prefetch" in name]
    assert "prefetch_compiler" in ours
    assert all(name == "prefetch_compiler" or name.startswith("prefetch_compiler.") for name in ours)
    assert all(logging.getLogger(name).getEffectiveLevel() >= logging.WARNING for name in ours)
