"""``bench cache``: its arithmetic, and what it says where there is nothing to measure on."""

from __future__ import annotations

import pytest
import torch
from typer.testing import CliRunner

from prefetch_compiler.bench.cache import CacheComparison, CacheTime
from prefetch_compiler.bench.cache_cli import table_of
from prefetch_compiler.bench.cli import app


def time_of(key: str, median_us: float, kv_bytes: int) -> CacheTime:
    return CacheTime(key, "b64", "heuristic", kv_bytes, median_us, median_us / 2, 0.25)


def test_speedups_are_over_the_mean_of_both_turns_of_the_plain_cache() -> None:
    found = CacheComparison(time_of("plain", 90, 400), (time_of("int8", 50, 200),), time_of("plain", 110, 400))
    assert found.plain_us == 100
    assert found.to_dict()["quantised"][0]["speedup"] == 2
    table = table_of(found)
    assert [row[0] for row in table.rows] == ["plain", "int8", "plain"]
    assert table.rows[1][2:] == ("50.0", "0.00", "50%", "2.00x", "0.25")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_it_says_so_and_exits_with_2() -> None:
    result = CliRunner().invoke(app, ["cache"])
    assert result.exit_code == 2
    assert "torch sees none here" in result.output


def test_an_unknown_format_is_named() -> None:
    result = CliRunner().invoke(app, ["cache", "--kv-dtype", "e3m4"])
    assert result.exit_code == 2
    assert "--kv-dtype 'e3m4' is not one of e4m3, e5m2, int8" in result.output
