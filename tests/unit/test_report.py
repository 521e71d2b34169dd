"""Report: sites go to every open report, and bytes come from the spec."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace

import pytest
import torch

from prefetch_compiler.config import KernelConfig
from prefetch_compiler.report import Report, SiteReport, Verdict, collect_reports, publish
from prefetch_compiler.spec import AttentionSpec, TensorLayout

SPEC = AttentionSpec(
    batch=2,
    query_heads=8,
    kv_heads=2,
    q_len=1,
    kv_len=1000,
    head_dim=64,
    value_dim=64,
    dtype=torch.float16,
    scale=0.125,
    key_layout=TensorLayout(128_000, 64_000, 64),
    value_layout=TensorLayout(128_000, 64_000, 64),
)
LOWERED = SiteReport(
    index=0,
    graph=0,
    layer="model.layers.0.self_attn",
    form="sdpa",
    verdict=Verdict.HEURISTIC,
    reason="no record",
    spec=SPEC,
    template="split_kv",
    config=KernelConfig(64, 4, 4, 2),
)
LEFT = SiteReport(index=1, graph=0, layer="", form="sdpa", reason="q_len 17 is over 16")


def test_only_sites_with_a_verdict_are_lowered() -> None:
    report = Report([LOWERED, LEFT], graphs=1)
    assert report.lowered == [LOWERED]
    assert not LEFT.lowered


@pytest.mark.parametrize("keys_read", [0.0, 1.0, 250.0, 1000.0])
def test_bytes_read_are_a_share_of_the_capacity(keys_read: float) -> None:
    site = dataclasses.replace(LOWERED, keys_read=keys_read)
    assert site.capacity_bytes == 2 * torch.empty(2, 2, 1000, 64, dtype=torch.float16).nbytes
    assert site.read_bytes == site.capacity_bytes * keys_read / 1000


def test_unknown_bytes_are_none_and_not_zero() -> None:
    assert LOWERED.read_bytes is None
    assert LEFT.capacity_bytes is None
    assert dataclasses.replace(LEFT, keys_read=10.0).read_bytes is None


def test_the_report_is_json() -> None:
    plain = json.loads(json.dumps(Report([LOWERED, LEFT], graphs=1).to_dict()))
    assert plain["graphs"] == 1
    lowered, left = plain["sites"]
    assert lowered["verdict"] == "heuristic"
    assert lowered["config"]["block_kv"] == 64
    assert lowered["kv_bytes_capacity"] == LOWERED.capacity_bytes
    assert left == left | {"verdict": "untouched", "reason": "q_len 17 is over 16", "spec": None, "config": None}


def test_the_text_counts_and_names_each_site() -> None:
    text = str(Report([LOWERED, LEFT], graphs=1))
    assert "1 of 2 attention sites lowered in 1 graph(s)" in text
    assert "model.layers.0.self_attn: heuristic" in text
    assert "q_len 17 is over 16" in text


def test_publish_reaches_every_open_report_and_no_closed_one() -> None:
    with collect_reports() as outer:
        publish([LOWERED])
        with collect_reports() as inner:
            publish([LEFT])
        publish([])
    publish([LOWERED])
    assert (outer.sites, outer.graphs) == ([replace(LOWERED, graph=0), replace(LEFT, graph=1)], 3)
    assert (inner.sites, inner.graphs) == ([replace(LEFT, graph=0)], 1)


def test_a_failure_inside_closes_the_report() -> None:
    with pytest.raises(RuntimeError), collect_reports() as report:
        raise RuntimeError
    publish([LOWERED])
    assert report.sites == []
