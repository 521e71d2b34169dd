"""selection_digest(): equal for equal inputs in whatever process, different as soon as selection may be."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import prefetch_compiler
from prefetch_compiler import selection_digest
from prefetch_compiler.config import KernelConfig
from prefetch_compiler.database.device_identity import identity_of
from prefetch_compiler.database.document import Database, encode
from prefetch_compiler.database.errors import MissingDatabaseError
from prefetch_compiler.database.overlay import NO_DATABASES, Overlays
from prefetch_compiler.database.record import TuningRecord
from prefetch_compiler.device import INTERPRETER, REFERENCE_DEVICES, DeviceProfile
from prefetch_compiler.errors import InvalidOptionError
from prefetch_compiler.select import digest
from prefetch_compiler.select.digest import digest_of

from .examples import H100, H200, KEY, measured

ON_H200 = REFERENCE_DEVICES[90]
EMULATED = identity_of(INTERPRETER)
RECORDS = [
    measured(KEY.at(batch=batch, capacity=capacity), config=KernelConfig(64, splits, 4, 3), trials=splits)
    for batch, capacity, splits in [(1, 512, 2), (1, 1024, 3), (16, 4096, 4), (16, 4096, 5), (64, 4096, 6)]
]


SCRIPT = Path(__file__).with_name("print_digest.py")
# What a process may differ in without selecting otherwise: (hash seed, locale, time zone, UTF-8 mode).
PROCESSES = {
    "one": ("0", "C", "UTC", "0"),
    "other hashes, east": ("1", "tr_TR.UTF-8", "Asia/Kathmandu", "1"),
    "other hashes, west": ("4711", "de_DE.ISO-8859-1", "America/St_Johns", "0"),
}


def printed(python: str, folder: Path, name: str, by_environment: bool, order: random.Random) -> str:
    """What a process prints whose databases are in ``folder``, a record a file, in any order, of any name and age."""
    seed, locale, zone, utf8 = PROCESSES[name]
    folder.mkdir()
    for number, record in enumerate(order.sample(RECORDS, len(RECORDS))):
        path = folder / f"{order.randrange(10**9)}.json"
        path.write_bytes(encode(Database(EMULATED, (record,))))
        os.utime(path, (number, order.randrange(10**9)))
    environment = os.environ | {
        "PYTHONHASHSEED": seed, "LC_ALL": locale, "LANG": locale, "TZ": zone, "PYTHONUTF8": utf8,
        "TRITON_INTERPRET": "1", "XDG_CACHE_HOME": str(folder / "cache"),
    }  # fmt: skip
    if by_environment:
        environment["KVPREFETCH_TUNING_DB"] = str(folder)
    command = [python, str(SCRIPT), seed, *([] if by_environment else [str(folder)])]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=True).stdout


def test_fresh_processes_agree(tmp_path: Path) -> None:
    """On the digest, and byte by byte on what is selected for every site that something is on record for, on two
    devices: with other hash seeds, locales, time zones, paths, file names, times and orders."""
    order = random.Random(1)
    found = {printed(sys.executable, tmp_path / name, name, name == "other hashes, east", order) for name in PROCESSES}
    (agreed,) = found
    digest, *selected = agreed.splitlines()
    assert len(bytes.fromhex(digest)) == 32
    assert len(selected) > 400
    assert {f"| {verdict} |" in agreed for verdict in ("exact", "bucket", "heuristic")} == {True}
    everything = Overlays((tuple(Database(EMULATED, (record,)) for record in RECORDS),))
    assert digest == digest_of(INTERPRETER, everything)
    assert digest != digest_of(INTERPRETER, NO_DATABASES)


@pytest.mark.parametrize("minor", [minor for minor in range(10, 15) if minor != sys.version_info.minor])
def test_other_versions_of_python_agree(minor: int, tmp_path: Path) -> None:
    """Those that have this package. KVPREFETCH_OTHER_PYTHONS names them, separated by colons."""
    named = os.environ.get("KVPREFETCH_OTHER_PYTHONS", "").split(os.pathsep)
    pythons = [python for python in filter(None, named) if _version_of(python) == f"3.{minor}"]
    if not pythons:
        pytest.skip(f"no python3.{minor} with this package in KVPREFETCH_OTHER_PYTHONS")
    here = printed(sys.executable, tmp_path / "here", "one", False, random.Random(1))
    there = printed(pythons[0], tmp_path / "there", "other hashes, west", False, random.Random(2))
    assert there == here


def _version_of(python: str) -> str:
    command = [python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.strip()


def overlays(*layers: list[TuningRecord], device: Any = H200, family_fallback: bool = False) -> Overlays:
    return Overlays(tuple((Database(device, tuple(layer), family_fallback),) for layer in layers))


def test_how_the_records_are_divided_among_files_does_not_matter() -> None:
    one_file = overlays(RECORDS[:3])
    several = Overlays((tuple(Database(H200, (record,)) for record in reversed(RECORDS[:3])),))
    two_layers = overlays(RECORDS[2:3], RECORDS[:2])
    assert digest_of(ON_H200, one_file) == digest_of(ON_H200, several) == digest_of(ON_H200, two_layers)


def test_a_record_that_is_replaced_is_not_in_effect() -> None:
    winner, loser = RECORDS[2], RECORDS[3]
    assert digest_of(ON_H200, overlays([winner], [loser])) == digest_of(ON_H200, overlays([winner]))
    assert digest_of(ON_H200, overlays([winner], [loser])) != digest_of(ON_H200, overlays([loser], [winner]))


@pytest.mark.parametrize("missing", range(3))
def test_every_record_counts(missing: int) -> None:
    rest = [record for number, record in enumerate(RECORDS[:3]) if number != missing]
    assert digest_of(ON_H200, overlays(rest)) != digest_of(ON_H200, overlays(RECORDS[:3]))


def test_so_does_its_evidence() -> None:
    """The report names it, and ranks of one job print one report."""
    longer = measured(RECORDS[0].key, config=RECORDS[0].config, trials=1000)
    assert digest_of(ON_H200, overlays([longer])) != digest_of(ON_H200, overlays(RECORDS[:1]))


def test_only_this_devices_records_count() -> None:
    other = overlays(RECORDS, device=H100)
    assert digest_of(ON_H200, other) == digest_of(ON_H200, NO_DATABASES)
    declared = overlays(RECORDS, device=H100, family_fallback=True)
    assert digest_of(ON_H200, declared) != digest_of(ON_H200, NO_DATABASES)
    assert digest_of(ON_H200, declared) != digest_of(ON_H200, overlays(RECORDS))


@pytest.mark.parametrize("name", [field.name for field in fields(DeviceProfile)])
def test_every_field_of_the_device_counts(name: str) -> None:
    value = getattr(ON_H200, name)
    changed = replace(ON_H200, **{name: value + "x" if isinstance(value, str) else value + 1})
    assert digest_of(changed, NO_DATABASES) != digest_of(ON_H200, NO_DATABASES)


@pytest.mark.parametrize("option", ["allow_unmeasured", "deterministic", "strict"])
def test_options_count(option: str) -> None:
    assert digest_of(ON_H200, NO_DATABASES, **{option: True}) != digest_of(ON_H200, NO_DATABASES)
    assert selection_digest({f"kvprefetch.{option}": True}, "cpu") != selection_digest(device="cpu")


OTHER_VERSIONS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "this package": lambda patch: patch.setattr(prefetch_compiler, "__version__", "99.0"),
    "Triton": lambda patch: patch.setattr(digest, "triton_minor", lambda: "99.0"),
    "templates": lambda patch: patch.setattr(digest, "whole_hashes", lambda: {"split_kv_decode": "0" * 64}),
}


@pytest.mark.parametrize("name", OTHER_VERSIONS)
def test_versions_count(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = digest_of.__wrapped__(ON_H200, NO_DATABASES)
    OTHER_VERSIONS[name](monkeypatch)
    assert digest_of.__wrapped__(ON_H200, NO_DATABASES) != before


def test_inductors_options_do_not_count() -> None:
    assert selection_digest({"max_autotune": True, "kvprefetch.mode": "default"}) == selection_digest()


def test_the_interpreter_is_a_device_and_a_plain_cpu_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    interpreted = selection_digest(device="cpu")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert selection_digest(device=torch.device("cpu")) != interpreted


def test_wrong_options_are_errors(tmp_path: Path) -> None:
    with pytest.raises(InvalidOptionError, match="17"):
        selection_digest({"kvprefetch.tuning_db": 17})
    with pytest.raises(MissingDatabaseError):
        selection_digest({"kvprefetch.tuning_db": tmp_path / "nothing", "kvprefetch.strict": True})
