"""A damaged file is a miss and one warning, seen from where it matters: what is selected for a site.

Three sizes of the same question. Of a small complete file every byte is cut off at and every bit is flipped. Of the
shipped file, of which every read takes milliseconds, it is a sample: KVPREFETCH_CORRUPTIONS says how many of each.
KVPREFETCH_EVERY_BIT=3/64 is for every cut and flip in the fourth of 64 parts of the shipped file's bytes (0/1 for all).
"""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from prefetch_compiler.database import overlay
from prefetch_compiler.database.document import Database, encode
from prefetch_compiler.database.overlay import NO_DATABASES
from prefetch_compiler.database.record import TuningRecord
from prefetch_compiler.database.store import database_files, read
from prefetch_compiler.device import REFERENCE_DEVICES
from prefetch_compiler.report import Verdict
from prefetch_compiler.select.heuristic import choose
from prefetch_compiler.select.selection import select

ON_H200 = REFERENCE_DEVICES[90]
SAMPLE = int(os.environ.get("KVPREFETCH_CORRUPTIONS", "40"))
EVERY_BIT = os.environ.get("KVPREFETCH_EVERY_BIT", "")
(SHIPPED,) = database_files(Path(__file__).parents[2] / "tuning_db")
STORED = read(SHIPPED)
# One that selection without records would not come to.
RECORD = next(one for one in STORED.records if one.config != choose(one.key.spec(), ON_H200))


class Warnings(logging.Handler):
    """Counts; formatting thousands of records is what caplog takes its time for."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


class Site:
    """A site with a record in the one file there is."""

    def __init__(self, path: Path, warnings: Warnings) -> None:
        self.path, self._warnings = path, warnings
        self.spec = RECORD.key.spec()
        without = select(self.spec, ON_H200, NO_DATABASES)
        assert (without.verdict, without.config) == (Verdict.HEURISTIC, choose(self.spec, ON_H200))

    def hits(self) -> bool:
        """Whether a fresh process would find the record. Where not, nothing is on record for any site, and one warning
        names the file."""
        overlay.forget()
        overlay._warned.clear()
        self._warnings.messages.clear()
        loaded = overlay.load([self.path])
        if loaded.layers:
            found = select(self.spec, ON_H200, loaded)
            assert (found.verdict, found.config, self._warnings.messages) == (Verdict.EXACT, RECORD.config, [])
            return True
        (message,) = self._warnings.messages
        assert str(self.path) in message
        return False


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(overlay, "user_folder", lambda: tmp_path / "none")
    monkeypatch.setattr(overlay, "shipped_folder", lambda: None)
    monkeypatch.setattr(overlay, "_warned", set())
    handler = Warnings()
    logger = logging.getLogger("prefetch_compiler")
    propagated, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    yield Site(tmp_path / "h200.json", handler)
    logger.removeHandler(handler)
    logger.propagate = propagated
    overlay.forget()


@pytest.fixture(scope="module")
def small() -> bytes:
    """A shipped record in a file of its own."""
    return encode(Database(STORED.device, (RECORD,)))


@pytest.fixture(scope="module")
def whole() -> bytes:
    return SHIPPED.read_bytes()


def test_the_site_has_its_record_while_nothing_is_damaged(site: Site, small: bytes, whole: bytes) -> None:
    for data in (small, whole):
        site.path.write_bytes(data)
        assert site.hits()


def test_a_file_cut_off_at_any_byte_is_a_miss(site: Site, small: bytes) -> None:
    site.path.write_bytes(small)
    for length in range(len(small) - 1, -1, -1):
        os.truncate(site.path, length)
        assert not site.hits()


def test_any_flipped_bit_is_a_miss(site: Site, small: bytes) -> None:
    site.path.write_bytes(small)
    for place in range(len(small)):
        _flips(site, small, place)
    assert site.hits()


def test_damage_anywhere_in_the_shipped_file_is_a_miss(site: Site, whole: bytes) -> None:
    chance = random.Random(len(whole))
    for place in chance.sample(range(len(whole)), SAMPLE):
        site.path.write_bytes(whole[:place])
        assert not site.hits()
        damaged = bytearray(whole)
        damaged[place] ^= 1 << chance.randrange(8)
        site.path.write_bytes(damaged)
        assert not site.hits()


@pytest.mark.skipif(not EVERY_BIT, reason="hours: KVPREFETCH_EVERY_BIT=PART/PARTS")
def test_damage_at_every_bit_of_the_shipped_file_is_a_miss(site: Site, whole: bytes) -> None:
    part, parts = map(int, EVERY_BIT.split("/"))
    for place in range(part, len(whole), parts):
        site.path.write_bytes(whole[:place])
        assert not site.hits()
        site.path.write_bytes(whole)
        _flips(site, whole, place)


def _flips(site: Site, data: bytes, place: int) -> None:
    with site.path.open("r+b", buffering=0) as file:
        for bit in range(8):
            os.pwrite(file.fileno(), bytes([data[place] ^ 1 << bit]), place)
            assert not site.hits()
        os.pwrite(file.fileno(), data[place : place + 1], place)


def _with_configs_of(records: tuple[TuningRecord, ...], others: tuple[TuningRecord, ...]) -> bytes:
    swapped = tuple(replace(one, config=other.config) for one, other in zip(records, others, strict=True))
    return encode(Database(STORED.device, swapped))


def test_parts_of_one_file_in_another_are_a_miss(site: Site) -> None:
    """As after a torn write: both files are good, and what is between the cuts is a whole record."""
    records = STORED.records[:12]
    one = encode(Database(STORED.device, records))
    other = _with_configs_of(records, STORED.records[12:24])
    lines, other_lines = one.splitlines(keepends=True), other.splitlines(keepends=True)
    assert len(lines) == len(other_lines)
    for cut in range(1, len(lines)):
        torn = b"".join(lines[:cut] + other_lines[cut:])
        if torn not in (one, other):
            site.path.write_bytes(torn)
            overlay.forget()
            assert overlay.load([site.path]).layers == ()
