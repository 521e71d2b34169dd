"""A kernel compiled offline is the one that a launch asks for: the launcher finds it in Triton's cache on disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    script = Path(__file__).with_name("launcher_sources.py")
    reply = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    found: dict[str, Any] = json.loads(reply.stdout.splitlines()[-1])
    return found


def test_sources_and_options_are_the_launchers_own(comparison: dict[str, Any]) -> None:
    compared, different = comparison["sources"]
    assert different == []
    assert compared >= 80


def test_what_is_measured_is_what_was_compiled(comparison: dict[str, Any]) -> None:
    compared, different = comparison["measured"]
    assert different == []
    assert compared >= 50


def test_the_launcher_finds_what_was_compiled(comparison: dict[str, Any]) -> None:
    assert comparison["found_on_disk"] == [True, True]
