"""Overlays: where databases are looked for, what is no database, and what a bad one costs."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from prefetch_compiler.config import KernelConfig
from prefetch_compiler.database import overlay
from prefetch_compiler.database.document import Database, encode
from prefetch_compiler.database.errors import (
    CorruptDatabaseError,
    DatabaseError,
    DatabaseTooLargeError,
    MissingDatabaseError,
    UnreadableDatabaseError,
    UnsupportedVersionError,
)
from prefetch_compiler.database.strict_json import MAX_BYTES

from .examples import H200, KEY, database, measured

SOME = database(measured())
OTHERS = [database(measured(config=KernelConfig(64, splits, 4, 3))) for splits in (5, 6, 7, 8)]


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No databases but those of the test, nothing read and nothing warned of before."""
    monkeypatch.setattr(overlay, "user_folder", lambda: tmp_path / "user")
    monkeypatch.setattr(overlay, "shipped_folder", lambda: tmp_path / "shipped")
    monkeypatch.setattr(overlay, "_warned", set())
    overlay.forget()
    yield
    overlay.forget()


def put(path: Path, content: Database | bytes = SOME) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else encode(content))
    return path


def loaded(*named: Path, strict: bool = False) -> list[list[Database]]:
    return [list(layer) for layer in overlay.load(named, strict=strict).layers]


def test_nothing_anywhere_is_nothing() -> None:
    assert loaded() == []


def test_the_places_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named, second = put(tmp_path / "named.json", OTHERS[0]), put(tmp_path / "second" / "a.json", OTHERS[1])
    by_environment = put(tmp_path / "environment.json", OTHERS[2])
    put(tmp_path / "user" / "a.json", OTHERS[3])
    put(tmp_path / "shipped" / "a.json", SOME)
    monkeypatch.setenv("KVPREFETCH_TUNING_DB", os.pathsep.join(["", str(by_environment), str(second.parent)]))
    assert loaded(named) == [[OTHERS[0]], [OTHERS[2]], [OTHERS[1]], [OTHERS[3]], [SOME]]
    assert loaded(second.parent, named) == [[OTHERS[1]], [OTHERS[0]], [OTHERS[2]], [OTHERS[3]], [SOME]]


def test_the_real_folders_are_the_users_cache_and_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    spec = importlib.util.find_spec(overlay.__name__)
    assert spec is not None
    assert spec.loader is not None
    afresh = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(afresh)
    assert afresh.user_folder() == Path("/somewhere/kvprefetch/tuning_db")
    assert afresh.shipped_folder().samefile(Path(__file__).parents[2] / "tuning_db")


def test_what_is_shipped_can_be_read() -> None:
    folder = Path(__file__).parents[2] / "tuning_db"
    overlay.load([folder], strict=True)


def test_a_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    put(tmp_path / "mine.json")
    assert loaded(Path("~/mine.json")) == [[SOME]]


def test_hidden_files_and_the_schema_are_no_databases(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in (".hidden.json", "schema.json", "notes.txt", "h200.json.corrupt-1234", ".h200.json.abc.tmp"):
        put(tmp_path / "user" / name, b"no database")
    put(tmp_path / "user" / "h200.json")
    assert loaded() == [[SOME]]
    assert not caplog.records


def test_a_file_is_read_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []

    def counted(path: Path) -> Database:
        read.append(path)
        return original(path)

    original = overlay.read
    monkeypatch.setattr(overlay, "read", counted)
    path = put(tmp_path / "user" / "a.json")
    first = overlay.load()
    assert overlay.load() is first
    assert read == [path]
    put(tmp_path / "new", OTHERS[0]).replace(path)
    assert loaded() == [[OTHERS[0]]]
    assert read == [path, path]
    overlay.forget()
    overlay.load()
    assert read == [path] * 3


def test_threads_get_the_same(tmp_path: Path) -> None:
    put(tmp_path / "user" / "a.json")
    start, found = threading.Barrier(8), []

    def load() -> None:
        start.wait()
        found.append(overlay.load())

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(map(id, found))) == 1


# Files that cannot be used

GOOD = encode(SOME)


def _other_version() -> bytes:
    plain = json.loads(GOOD)
    plain["schema_version"] = 3
    return json.dumps(plain).encode()


BAD: dict[str, tuple[bytes, type[DatabaseError]]] = {
    "empty": (b"", CorruptDatabaseError),
    "truncated": (GOOD[: len(GOOD) // 2], CorruptDatabaseError),
    "changed": (GOOD.replace(b'"num_splits": 4', b'"num_splits": 5'), CorruptDatabaseError),
    "another version": (_other_version(), UnsupportedVersionError),
    "nested without end": (b"[" * 1_000_000, CorruptDatabaseError),
    "binary": (bytes(range(256)) * 100, CorruptDatabaseError),
    "huge": (b" " * (MAX_BYTES + 1), DatabaseTooLargeError),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_a_miss_with_one_warning(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content, error = BAD[name]
    bad = put(tmp_path / "user" / "bad.json", content)
    put(tmp_path / "user" / "good.json")
    put(tmp_path / "shipped" / "good.json", OTHERS[0])
    for _ in range(3):
        assert loaded() == [[SOME], [OTHERS[0]]]
    overlay.forget()
    assert loaded() == [[SOME], [OTHERS[0]]]
    (warning,) = caplog.records
    assert warning.levelno == logging.WARNING
    assert str(bad) in warning.getMessage()
    with pytest.raises(error, match=r"bad\.json"):
        loaded(strict=True)


def test_each_bad_file_has_its_own_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bad = [put(tmp_path / "user" / f"{name}.json", b"{") for name in "abc"]
    loaded()
    assert [path.name in record.getMessage() for path, record in zip(bad, caplog.records, strict=True)] == [True] * 3


def _missing(path: Path) -> None:
    """Nothing is made."""


def _loop(path: Path) -> None:
    path.symlink_to(path)


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _below_a_file(path: Path) -> None:
    path.parent.rmdir()
    path.parent.write_text("a file")


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (_missing, MissingDatabaseError),
        (_loop, UnreadableDatabaseError),
        (_pipe, UnreadableDatabaseError),
        (_below_a_file, UnreadableDatabaseError),
    ],
)
def test_a_named_path_has_to_be_there(
    make: Callable[[Path], None], error: type[DatabaseError], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "folder").mkdir()
    path = tmp_path / "folder" / "named.json"
    make(path)
    assert loaded(path) == loaded(path) == []
    (warning,) = caplog.records
    assert str(path) in warning.getMessage()
    with pytest.raises(error, match=r"named\.json"):
        loaded(path, strict=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_without_permission(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = put(tmp_path / "closed" / "a.json").parent
    folder.chmod(0)
    try:
        assert loaded(folder) == []
        assert len(caplog.records) == 1
    finally:
        folder.chmod(0o700)


def test_a_null_character_is_no_path(caplog: pytest.LogCaptureFixture) -> None:
    assert loaded(Path("a\0b")) == []
    assert len(caplog.records) == 1


def test_an_empty_named_folder_is_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert loaded(tmp_path, strict=True) == []
    assert not caplog.records


def test_a_mistake_of_ours_is_no_ones_exception(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(path: Path) -> Database:
        raise RecursionError("on purpose")

    put(tmp_path / "user" / "a.json")
    monkeypatch.setattr(overlay, "read", broken)
    assert loaded() == []
    assert "on purpose" in caplog.text
    with pytest.raises(UnreadableDatabaseError, match="on purpose"):
        loaded(strict=True)


def test_a_repaired_file_is_used(tmp_path: Path) -> None:
    path = put(tmp_path / "user" / "a.json", b"{")
    assert loaded() == []
    put(path)
    assert loaded() == [[SOME]]
    shutil.rmtree(path.parent)
    assert loaded() == []


def test_many_sets_of_files_are_not_all_kept(tmp_path: Path) -> None:
    for number in range(20):
        put(tmp_path / f"{number}.json", replace(SOME, records=(measured(KEY.at(batch=1 << number, capacity=64)),)))
        overlay.load([tmp_path / f"{number}.json"])
    assert len(overlay._loaded) <= 8


def test_a_device_may_have_several_files(tmp_path: Path) -> None:
    for number, one in enumerate(OTHERS):
        put(tmp_path / "user" / f"{number}.json", one)
    (layer,) = loaded()
    assert layer == OTHERS
    assert {one.device for one in layer} == {H200}
