"""Kernels as launches in the exported graph: as far as that can be shown without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.export import Dim
from torch.fx import Graph, Node

from prefetch_compiler.config import KernelConfig, LoadPath, Merge
from prefetch_compiler.errors import Refused
from prefetch_compiler.lower import embedded
from prefetch_compiler.recognize.bounds import mask_bounds

from ..contract.cases import DEVICE, Case, build
from ..contract.error_bounds import assert_within_bound

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of a step with two sites, lowered for an H200 that is not there."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.export.embedded_run", str(tmp_path_factory.mktemp("sources"))]
    finished = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert finished.returncode == 0, finished.stderr
    result: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return result


def test_sites_are_lowered_without_what_launches_in_a_graph_cannot_have(found: dict[str, Any]) -> None:
    assert [site["layer"] for site in found["sites"]] == ["cached", "over_memory"]
    for site in found["sites"]:
        assert site["verdict"] == "heuristic"
        assert "because the kernels are embedded" in site["reason"]
        config = site["config"]
        assert (config["load_path"], config["prefetch_depth"], config["prologue_prefetch"]) == ("pointer", 0, False)
        assert not config["launch_overlap"]
        assert (config["num_splits"], config["merge"]) == (2, "separate")


def test_nothing_of_ours_is_left_to_call(found: dict[str, Any]) -> None:
    assert "triton_kernel_wrapper_functional" in found["operators"]
    assert not [name for name in found["operators"] if "kvprefetch" in name]


def test_only_results_are_written_to(found: dict[str, Any]) -> None:
    """What PyTorch believes a launch to write to it copies first: a cache must not be among it."""
    written = [(launch["kernel"], launch["written"]) for launch in found["launches"]]
    assert written == [("split_kv_decode", ["partial_ptr", "stats_ptr"]), ("merge_splits", ["out_ptr"])] * 2


def test_strides_stay_what_the_arguments_say(found: dict[str, Any]) -> None:
    for launch in found["launches"]:
        assert launch["strides kept"] == launch["tensors"]
    assert {"q_ptr", "k_ptr", "v_ptr", "mask_ptr", "bounds_ptr"} <= set(found["launches"][0]["tensors"])


def test_what_inductor_writes_of_the_kernels_compiles(found: dict[str, Any]) -> None:
    assert all(launch["registers"] > 0 for launch in found["launches"])


@pytest.mark.parametrize("merge", Merge)
@pytest.mark.parametrize("mask", ["ragged", "none"])
def test_the_launches_compute_the_attention(mask: str, merge: Merge, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same launches, run where they would be traced."""
    monkeypatch.setattr(embedded, "_trace", lambda call: call.launch())
    case = Case(
        batch=2, kv_heads=2, head_dim=16, value_dim=16, dtype=torch.float32, tiles=3, block_kv=16, num_splits=2,
        mask=mask,
    )  # fmt: skip
    operands = build(case)
    bounds = None if operands.mask is None else mask_bounds(operands.mask, case.capacity)
    config = embedded.embeddable(KernelConfig(16, 2, 1, 2, merge=merge, load_path=LoadPath.TMA, launch_overlap=True))
    out = embedded._launch(
        operands.q, operands.stale_k, operands.stale_v, operands.mask, bounds, None, is_causal=False,
        scale=operands.scale, softcap=None, heads_first=False, config=config,
    )  # fmt: skip
    assert_within_bound(out, operands)


def operand(value: Tensor) -> Node:
    node = Graph().placeholder("operand")
    node.meta["val"] = value
    return node


@pytest.mark.skipif(DEVICE.type == "cuda", reason="kernels compile here")
def test_the_interpreter_embeds_nothing() -> None:
    with pytest.raises(Refused, match="interpreter"):
        embedded.require_embeddable([operand(torch.empty(1))])


def test_dynamic_sizes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "interpreting", lambda: False)
    embedded.require_embeddable([operand(torch.empty(2, 3))])

    class Double(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2

    program = torch.export.export(Double(), (torch.empty(2, 3),), dynamic_shapes=({0: Dim("size")},))
    (given,) = (node for node in program.graph.nodes if node.op == "placeholder")
    with pytest.raises(Refused, match="without dynamic shapes"):
        embedded.require_embeddable([given])
