"""Two ranks on the CPU: kernels in the interpreter, sums by gloo."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from .ranks import REPOSITORY, assert_equal_to_unsharded, assert_lowered_alike, run_ranks

pytestmark = [
    pytest.mark.skipif(not (REPOSITORY / "docs").exists(), reason="the documents, and the example, are not here"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="where there are GPUs, tests/gpu runs the ranks on them"),
]
WAYS = ("dtensor", "by hand")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_ranks(tmp_path_factory.mktemp("ranks"), "cpu")


@pytest.mark.parametrize("way", WAYS)
def test_every_rank_lowers_its_own_heads(found: list[dict[str, Any]], way: str) -> None:
    assert_lowered_alike(found, way)


@pytest.mark.parametrize("way", WAYS)
def test_results_are_the_unsharded_models(found: list[dict[str, Any]], way: str) -> None:
    assert_equal_to_unsharded(found, way, "cpu")


def test_ranks_that_select_alike_go_on_and_others_stop(found: list[dict[str, Any]]) -> None:
    assert len({rank["digest"] for rank in found}) == 1
    assert [rank["alike"] for rank in found] == ["", ""]
    for rank in found:
        assert rank["digest"] in rank["not alike"]
        assert "would select different kernels" in rank["not alike"]
