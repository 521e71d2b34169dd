"""Two ranks on two GPUs: compiled by Inductor, sums by NCCL."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ..tensor_parallel.ranks import WORLD, assert_equal_to_unsharded, assert_lowered_alike, run_ranks

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < WORLD, reason=f"needs {WORLD} GPUs"),
]


def test_ranks_lower_alike_and_agree_with_the_unsharded_model(tmp_path: Path) -> None:
    found = run_ranks(tmp_path, "cuda")
    assert len({rank["digest"] for rank in found}) == 1
    assert [rank["alike"] for rank in found] == [""] * WORLD
    assert all("would select different kernels" in rank["not alike"] for rank in found)
    for way in ("dtensor", "by hand"):
        assert_lowered_alike(found, way)
        assert_equal_to_unsharded(found, way, "cuda")
