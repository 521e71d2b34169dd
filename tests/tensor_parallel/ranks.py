"""Starts the ranks of a tensor-parallel decode, and says what has to be true of what they leave."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

REPOSITORY = Path(__file__).parents[2]
WORLD = 2


def run_ranks(folder: Path, device: str) -> list[dict[str, Any]]:
    """What each rank found."""
    command = [sys.executable, "-m", "tests.tensor_parallel.rank", str(folder)]
    ranks = [
        subprocess.Popen([*command, str(rank), str(WORLD), device], cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
        for rank in range(WORLD)
    ]
    try:
        errors = [rank.communicate(timeout=300)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0] * WORLD, "\n".join(errors)
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(WORLD)]


def assert_lowered_alike(found: list[dict[str, Any]], way: str) -> None:
    """Each rank's one site is lowered with its own share of the heads, and configured as the others'."""
    from .rank import example

    sites = [rank[way]["sites"] for rank in found]
    assert all(of_rank == sites[0] for of_rank in sites)
    (site,) = sites[0]
    assert site["verdict"] != "untouched"
    assert site["spec"].startswith(f"{example.HEADS // WORLD}q/{example.KV_HEADS // WORLD}kv ")


def assert_equal_to_unsharded(found: list[dict[str, Any]], way: str, device: str) -> None:
    """Outputs of every step on every rank, and all caches put together."""
    from .rank import empty_cache, step_inputs, whole_model

    model, cache = whole_model(device), empty_cache(device)
    with torch.no_grad():
        expected = [model(x, cache, position).cpu() for x, position in step_inputs(device)]
    for rank in found:
        torch.testing.assert_close(rank[way]["outputs"], expected)
    torch.testing.assert_close(torch.cat([rank[way]["cache"] for rank in found], dim=2), cache.cpu())
