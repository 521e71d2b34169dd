"""Files of sites: what is written is read, and nothing else is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefetch_compiler.database.key import parse_key
from prefetch_compiler.tuning.capture import CapturedSite
from prefetch_compiler.tuning.capture_errors import (
    CorruptSitesError,
    MissingSitesError,
    SitesError,
    SitesNotWrittenError,
    SitesVersionError,
)
from prefetch_compiler.tuning.presets import PRESETS, presets_keys
from prefetch_compiler.tuning.sites import read_captured, read_sites, write_sites

SMALL = "bfloat16 9q/3kv d64 q1 b1 s4096 bhsd-tma bool"
LARGE = "float16 32q/8kv d128/64 q4 b16 s32768 strided-none additive-float16 growing"
ENTRY = {"key": SMALL, "layers": 30, "model": "smollm2", "layer": "model.layers.0.self_attn"}
FILE: dict[str, Any] = {"format": "kvprefetch-sites", "version": 1, "sites": [ENTRY]}


def site(name: str, layers: int = 2, model: str = "a") -> CapturedSite:
    return CapturedSite(parse_key(name), layers, model, "model.layers.0.self_attn")


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "sites.json"
    sites = [site(SMALL), site(LARGE, 7), site(SMALL, 3, "b")]
    write_sites(path, sites)
    assert sorted(read_captured(path), key=lambda s: (s.key.name, s.model)) == [sites[0], sites[2], sites[1]]
    assert read_sites(path) == [parse_key(SMALL), parse_key(LARGE)]


def test_every_preset_can_be_written(tmp_path: Path) -> None:
    keys = presets_keys(PRESETS, [1, 16], [4096, 32768])
    write_sites(tmp_path / "all.json", [CapturedSite(key, 1, "all", "") for key in keys])
    assert set(read_sites(tmp_path / "all.json")) == set(keys)


def test_the_file_is_for_people(tmp_path: Path) -> None:
    write_sites(tmp_path / "sites.json", [CapturedSite(parse_key(SMALL), 30, "smollm2", ENTRY["layer"])])
    text = (tmp_path / "sites.json").read_text()
    assert json.loads(text) == FILE
    assert f'      "key": "{SMALL}",\n' in text
    assert text.endswith("}\n")


def test_no_file_and_no_folder(tmp_path: Path) -> None:
    with pytest.raises(MissingSitesError, match=r"No such file.*kvprefetch capture"):
        read_sites(tmp_path / "none.json")
    with pytest.raises(MissingSitesError, match="Is a directory"):
        read_sites(tmp_path)
    with pytest.raises(SitesNotWrittenError, match="No such file"):
        write_sites(tmp_path / "none" / "sites.json", [])


def test_another_version_is_not_corrupt(tmp_path: Path) -> None:
    path = tmp_path / "sites.json"
    for version in (2, True, "1", None):
        path.write_text(json.dumps({**FILE, "version": version, "news": []}))
        with pytest.raises(SitesVersionError, match="reads version 1"):
            read_sites(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "kvprefetch-database"}, "no JSON object with the format"),
        ({"sites": {}}, "Expected `array`"),
        ({"more": 1}, "unknown field `more`"),
        ({"sites": [{**ENTRY, "more": 1}]}, "unknown field `more`"),
        ({"sites": [{"key": SMALL}]}, "missing required field `layers`"),
        ({"sites": [{**ENTRY, "layers": 0}]}, ">= 1"),
        ({"sites": [{**ENTRY, "layers": 1.5}]}, "Expected `int`"),
        ({"sites": [{**ENTRY, "key": "float8 attention"}]}, "names no tuning key"),
        ({"sites": [{**ENTRY, "key": SMALL.replace("s4096", "s4000")}]}, "its bucket is"),
        ({"sites": [{**ENTRY, "model": "m" * 501}]}, "length <= 500"),
    ],
)
def test_what_is_no_file_of_sites(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "sites.json"
    path.write_text(json.dumps(FILE | change))
    with pytest.raises(CorruptSitesError, match=message):
        read_sites(path)


@pytest.mark.parametrize(
    "text", ["", "[]", '{"format": "kvprefetch-sites", "format": 1}', "nan", "{" * 99, json.dumps(FILE) + "{}", "\0"]
)
def test_what_is_no_json(tmp_path: Path, text: str) -> None:
    path = tmp_path / "sites.json"
    path.write_text(text)
    with pytest.raises(CorruptSitesError):
        read_sites(path)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(at=st.integers(0, 10_000), byte=st.integers(0, 255))
def test_a_changed_byte_is_read_or_refused(tmp_path: Path, at: int, byte: int) -> None:
    """Never any other exception, and never a key that is not written there."""
    data = bytearray(json.dumps(FILE).encode())
    data[at % len(data)] = byte
    path = tmp_path / "sites.json"
    path.write_bytes(bytes(data))
    try:
        keys = read_sites(path)
    except SitesError:
        return
    assert all(key.name in data.decode() for key in keys)
