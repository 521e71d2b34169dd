"""Suite-wide setup: without a GPU every kernel runs in Triton's interpreter, and GPU tests are skipped."""

from __future__ import annotations

import os

import pytest
import torch

# Triton reads the variable when a kernel is decorated, so it must be set before anything imports Triton.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked ``gpu`` where torch sees no GPU."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a GPU: torch.cuda.is_available() is False")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)
