"""The report's table: alike sites of consecutive layers share a row, different ones do not."""

from __future__ import annotations

import io
from dataclasses import replace

import torch
from rich.console import Console

from prefetch_compiler.config import KernelConfig
from prefetch_compiler.report import Report, SiteReport, Verdict
from prefetch_compiler.site_table import group_sites, site_table, summary_line
from prefetch_compiler.spec import AttentionSpec, TensorLayout

LAYOUT = TensorLayout(batch_stride=3 * 512 * 64, head_stride=512 * 64, row_stride=64)
SPEC = AttentionSpec(1, 9, 3, 1, 512, 64, 64, torch.float32, 0.125, LAYOUT, LAYOUT)
SITE = SiteReport(
    index=0,
    graph=0,
    layer="model.layers.0.self_attn",
    form="sdpa",
    verdict=Verdict.HEURISTIC,
    spec=SPEC,
    template="split_kv_decode",
    config=KernelConfig(64, 1, 4, 2),
    keys_read=45.0,
)
BYTES_PER_KEY = 3 * (64 + 64) * 4


def layer(number: int, **changes: object) -> SiteReport:
    return replace(SITE, index=number, layer=f"model.layers.{number}.self_attn", **changes)


def test_alike_layers_share_a_row() -> None:
    (group,) = group_sites(Report([layer(number) for number in range(30)], graphs=1))
    assert (group.layers, group.count) == ("model.layers.0-29.self_attn", 30)
    assert group.read_bytes == 30 * 45 * BYTES_PER_KEY
    assert group.capacity_bytes == 30 * 512 * BYTES_PER_KEY


def test_a_gap_in_the_layers_shows() -> None:
    (group,) = group_sites(Report([layer(number) for number in (0, 1, 3, 5, 6)], graphs=1))
    assert group.layers == "model.layers.0-1,3,5-6.self_attn"


def test_what_differs_has_its_own_row() -> None:
    sites = [layer(0), layer(1, reason="another"), layer(2, graph=1), layer(3, spec=replace(SPEC, batch=2)), layer(4)]
    assert [group.count for group in group_sites(Report(sites, graphs=2))] == [2, 1, 1, 1]


def test_two_sites_of_one_layer_with_different_paths_are_apart() -> None:
    sites = [replace(SITE, layer="decoder.0.self_attn"), replace(SITE, layer="decoder.0.cross_attn")]
    assert [group.layers for group in group_sites(Report(sites))] == ["decoder.0.self_attn", "decoder.0.cross_attn"]


def test_the_same_layer_met_twice_is_counted_twice() -> None:
    (group,) = group_sites(Report([layer(0), layer(0)]))
    assert (group.layers, group.count) == ("model.layers.0.self_attn", 2)


def test_a_site_without_a_layer_has_its_number() -> None:
    (group,) = group_sites(Report([replace(SITE, layer="", index=7)]))
    assert group.layers == "site 7"


def test_bytes_that_one_site_does_not_know_are_not_summed() -> None:
    (group,) = group_sites(Report([layer(0), layer(1, keys_read=None)]))
    assert group.read_bytes is None
    assert group.capacity_bytes == 2 * 512 * BYTES_PER_KEY


def test_the_table_shows_verdict_config_bytes_and_reason() -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    refused = layer(9, verdict=Verdict.UNTOUCHED, config=None, spec=None, reason="dropout is on")
    console.print(site_table(Report([layer(0), refused], graphs=1)))
    text = console.export_text()
    for expected in ("heuristic", "b64 s1 w4 st2", "67.5 KiB of 768.0 KiB", "untouched", "dropout is on"):
        assert expected in text


def test_the_table_names_the_record_and_how_many_layers_share_it() -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    tuned = [layer(number, verdict=Verdict.EXACT, record="some key") for number in range(80)]
    console.print(site_table(Report([*tuned, layer(80, reason="another")], graphs=1)))
    text = console.export_text()
    for expected in ("layers 0–79: 80 sites, model.layers.0-79.self_attn", "some key", "layer 80: 1 site, "):
        assert expected in text, text


def test_a_list_of_layers_is_shown_once() -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(site_table(Report([layer(number) for number in (0, 1, 3, 5, 6)], graphs=1)))
    assert "layers 0–1,3,5–6: 5 sites, model.layers.*.self_attn" in console.export_text()


def test_no_column_is_lost_in_a_narrow_terminal() -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(site_table(Report([layer(number) for number in range(30)], graphs=1)))
    text = console.export_text()
    assert max(len(line) for line in text.splitlines()) <= 80
    for expected in ("model.layers.0-29.self_attn", "heuristic", "float32", "separate", "2.0 MiB", "22.5 MiB"):
        assert expected in text, text


def test_the_summary_counts_sites_and_graphs() -> None:
    report = Report([layer(0), layer(1, verdict=Verdict.UNTOUCHED)], graphs=1)
    assert summary_line(report) == "1 of 2 attention sites lowered, in 1 compiled graph"
    assert summary_line(Report(graphs=2)) == "0 of 0 attention sites lowered, in 2 compiled graphs"
