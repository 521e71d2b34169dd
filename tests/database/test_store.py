"""Files: published whole or not at all, whatever the disk, the folder and other processes do."""

from __future__ import annotations

import os
import resource
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st

from prefetch_compiler.database import store
from prefetch_compiler.database.document import Database, encode
from prefetch_compiler.database.errors import (
    CorruptDatabaseError,
    DatabaseError,
    DatabaseExistsError,
    DatabaseLockedError,
    DatabaseTooLargeError,
    DatabaseWriteError,
    DeviceMismatchError,
    InadmissibleRecordError,
    InvalidRecordError,
    MissingDatabaseError,
    UnreadableDatabaseError,
    UnsupportedVersionError,
)
from prefetch_compiler.database.merge import export
from prefetch_compiler.database.record import DeviceIdentity
from prefetch_compiler.database.store import create, database_files, file_name, publish, read, rewrite

from .examples import H100, H200, KEY, database, measured, modelled
from .faults import DENIED, FULL, GONE, dying, failing, raising

FIRST = database(measured())
SECOND = database(measured(KEY.at(batch=1, capacity=512)))
BOTH = database(*FIRST.records, *SECOND.records)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / file_name(H200)


def others_in(folder: Path, path: Path) -> list[str]:
    """Everything in the folder but the database and its lock."""
    return sorted({entry.name for entry in folder.iterdir()} - {path.name, f".{path.name}.lock"})


# Publishing


def test_what_is_published_is_read(path: Path) -> None:
    assert publish(path, FIRST) == FIRST
    assert read(path) == FIRST
    assert path.read_bytes() == encode(FIRST)
    assert others_in(path.parent, path) == []


def test_publishing_merges_with_what_is_there(path: Path) -> None:
    publish(path, FIRST)
    assert publish(path, SECOND) == BOTH == read(path)
    assert publish(path, database(modelled())) == BOTH == read(path)
    assert others_in(path.parent, path) == []


def test_publishing_again_changes_nothing(path: Path) -> None:
    publish(path, BOTH)
    before = path.stat()
    publish(path, FIRST)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_folders_are_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "h200.json"
    publish(str(path), FIRST)
    assert read(str(path)) == FIRST


def test_a_file_is_as_readable_as_the_umask_says_and_stays_as_it_was_set(path: Path) -> None:
    before = os.umask(0o027)
    try:
        publish(path, FIRST)
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        path.chmod(0o604)
        publish(path, SECOND)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o604


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    target, link = tmp_path / "store" / "h200.json", tmp_path / "link.json"
    publish(target, FIRST)
    link.symlink_to(target)
    publish(link, SECOND)
    assert link.is_symlink()
    assert read(target) == read(link) == BOTH
    assert others_in(tmp_path, link) == ["store"]


def test_a_record_that_the_caller_finds_inadmissible_is_not_published(path: Path) -> None:
    publish(path, FIRST)
    with pytest.raises(InadmissibleRecordError, match=r"s512 .* too much shared memory"):
        publish(path, BOTH, check=lambda record: "too much shared memory" if record.key.batch_bucket == 1 else None)
    assert read(path) == FIRST
    assert publish(path, BOTH, check=lambda record: None) == BOTH


def test_what_is_there_is_not_checked_again(path: Path) -> None:
    """Another version's idea of admissibility must not keep new records out."""
    publish(path, FIRST)
    publish(path, SECOND, check=lambda record: "no" if record == FIRST.records[0] else None)
    assert read(path) == BOTH


def test_an_invalid_record_leaves_no_trace(path: Path) -> None:
    with pytest.raises(InvalidRecordError):
        publish(path, database(measured(trials=-1)))
    assert list(path.parent.iterdir()) == []


def test_another_device_is_left_alone(path: Path) -> None:
    publish(path, FIRST)
    with pytest.raises(DeviceMismatchError):
        publish(path, Database(H100, FIRST.records))
    assert read(path) == FIRST


def test_another_version_is_left_alone(path: Path) -> None:
    path.write_text('{"schema_version": 3}')
    with pytest.raises(UnsupportedVersionError, match=path.name):
        publish(path, FIRST)
    assert path.read_text() == '{"schema_version": 3}'


def test_a_corrupt_file_is_moved_aside_with_a_warning(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    damaged = encode(FIRST)[:-100]
    path.write_bytes(damaged)
    assert publish(path, SECOND) == SECOND
    (aside,) = others_in(path.parent, path)
    assert aside.startswith(f"{path.name}.corrupt-")
    (warning,) = caplog.messages
    assert warning.startswith(str(path)) and aside in warning
    assert (path.parent / aside).read_bytes() == damaged
    assert database_files(path.parent) == (path,)
    assert publish(path, FIRST) == BOTH
    assert caplog.messages == [warning]


# Reading


def test_reading_names_what_is_wrong_and_where(tmp_path: Path) -> None:
    missing, folder, pipe, large = (tmp_path / name for name in ("missing.json", "f.json", "pipe.json", "large.json"))
    folder.mkdir()
    os.mkfifo(pipe)
    with large.open("wb") as file:
        file.truncate(store.MAX_BYTES + 1)
    for wrong, error in (
        (missing, MissingDatabaseError),
        (folder, UnreadableDatabaseError),
        (pipe, UnreadableDatabaseError),
        (large, DatabaseTooLargeError),
        (tmp_path / "missing" / "x.json", MissingDatabaseError),
        (Path(os.devnull), UnreadableDatabaseError),
        (tmp_path / ("n" * 300), UnreadableDatabaseError),
        (Path("nul\0l"), UnreadableDatabaseError),
    ):
        with pytest.raises(error, match="database") as caught:
            read(wrong)
        assert str(caught.value).startswith(str(wrong))


def test_a_file_is_not_read_to_learn_that_it_is_too_large(path: Path) -> None:
    """A tebibyte, of which the disk holds nothing."""
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(DatabaseTooLargeError, match=str(1 << 40)):
        read(path)


def test_an_empty_file_is_corrupt(path: Path) -> None:
    path.touch()
    with pytest.raises(CorruptDatabaseError, match=path.name):
        read(path)


def test_only_complete_databases_are_taken_for_databases(path: Path, tmp_path: Path) -> None:
    publish(path, FIRST)
    for name in (
        ".hidden.json",
        "schema.json",
        "notes.md",
        f"{path.name}.corrupt-01",
        f".{path.name}.12.tmp",
        "x.JSON",
    ):
        (tmp_path / name).write_bytes(path.read_bytes())
    assert database_files(tmp_path) == (path,)
    assert database_files(tmp_path / "nowhere") == ()


# Names


@pytest.mark.parametrize(
    ("device", "name"),
    [
        (H200, "nvidia_h200-132sm.json"),
        (H100, "nvidia_h100_80gb_hbm3-132sm.json"),
        (replace(H200, sm_count=66), "nvidia_h200-66sm.json"),
        (DeviceIdentity("AMD Instinct MI300X", "hip", 0, 304), "amd_instinct_mi300x-304sm.json"),
    ],
)
def test_a_file_is_named_for_its_device(device: DeviceIdentity, name: str) -> None:
    assert file_name(device) == name


@given(st.text(max_size=300), st.integers(1, 1000))
def test_no_device_name_gives_an_unsafe_file_name(name: str, sm_count: int) -> None:
    found = file_name(DeviceIdentity(name, "cuda", 90, sm_count))
    assert len(found) < 100
    assert set(found) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-.")
    assert found[0].isalnum()
    assert found.endswith(f"-{sm_count}sm.json")
    assert found.count(".") == 1


@pytest.mark.parametrize("pair", [("..", "../.."), ("", "/"), ("Ж", "И"), ("a" * 100, "a" * 101), ("x\0", "x\n")])
def test_names_that_lose_their_letters_stay_apart(pair: tuple[str, str]) -> None:
    assert len({file_name(DeviceIdentity(name, "cuda", 90, 1)) for name in pair}) == 2


# Disks and folders that refuse


@pytest.fixture
def limited_file_size() -> Iterator[None]:
    """The kernel cuts a write off at 1000 bytes, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_old_file_and_nothing_else(path: Path, request: pytest.FixtureRequest) -> None:
    publish(path, FIRST)
    request.getfixturevalue("limited_file_size")
    with pytest.raises(DatabaseWriteError, match="File too large"):
        publish(path, SECOND)
    assert read(path) == FIRST
    assert others_in(path.parent, path) == []


def test_a_full_disk_leaves_no_file_where_there_was_none(path: Path, limited_file_size: None) -> None:
    with pytest.raises(DatabaseWriteError):
        publish(path, FIRST)
    assert others_in(path.parent, path) == []
    assert not path.exists()


def test_a_full_file_system_leaves_the_old_file() -> None:
    folder = Path(tempfile.mkdtemp())
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(folder)]
    try:
        if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
            pytest.skip("needs the right to mount a file system; the tests above limit the file size instead")
        path = folder / "h200.json"
        publish(path, FIRST)
        stored, number = FIRST, 0
        with pytest.raises(DatabaseWriteError, match="No space left"):
            for number in range(1, 100):
                stored = publish(path, database(measured(KEY.at(batch=16, capacity=1 << number % 20))))
        assert 1 < number < 20
        assert read(path) == stored
        assert others_in(folder, path) == []
    finally:
        subprocess.run(["umount", str(folder)], capture_output=True, check=False)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def read_only_folder() -> Iterator[Path]:
    """A folder with a database, in which whoever we are now may not write."""
    folder = Path(tempfile.mkdtemp())  # no parent of it may be closed to others, as pytest's folders are
    publish(folder / "h200.json", FIRST)
    (folder / "h200.json").chmod(0o644)
    folder.chmod(0o555)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    yield folder
    if root:
        os.seteuid(0)
    folder.chmod(0o755)
    shutil.rmtree(folder)


def test_a_read_only_folder_is_read_and_not_written(read_only_folder: Path) -> None:
    path = read_only_folder / "h200.json"
    before = sorted(entry.name for entry in read_only_folder.iterdir())
    assert read(path) == FIRST
    for target in (path, read_only_folder / "new.json", read_only_folder / "sub" / "new.json"):
        with pytest.raises(DatabaseWriteError, match="Permission denied"):
            publish(target, SECOND)
    assert read(path) == FIRST
    assert sorted(entry.name for entry in read_only_folder.iterdir()) == before


def test_a_file_that_may_not_be_read_is_not_replaced(path: Path) -> None:
    path.mkdir()
    with pytest.raises(UnreadableDatabaseError):
        publish(path, FIRST)
    assert path.is_dir()


def test_a_path_that_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DatabaseWriteError, match="file"):
        publish(tmp_path / "file" / "h200.json", FIRST)


# Beside a database, and in a folder that is made for it.
PLACES = {"beside": "h200.json", "new": "a/b/h200.json"}


def _calls(folder: Path, place: str) -> int:
    path = folder / PLACES[place]
    if place == "beside":
        publish(path, FIRST)
    with failing(-1, dying) as made:
        publish(path, SECOND)
    assert {"open", "write", "fsync", "replace", "flock"} <= set(made)
    return len(made)


@pytest.mark.parametrize("error", [FULL, GONE, DENIED], ids=os.strerror)
@pytest.mark.parametrize("place", PLACES)
def test_an_error_at_any_system_call_leaves_a_whole_file(tmp_path: Path, place: str, error: int) -> None:
    """A full disk, one that goes away, or a folder that is closed meanwhile, at each call that publishing makes."""
    calls = _calls(tmp_path / "counted", place)
    for failed in range(calls):
        path = tmp_path / str(failed) / PLACES[place]
        before = publish(path, FIRST) if place == "beside" else None
        published = None
        try:
            with failing(failed, raising(error)):
                published = publish(path, SECOND)
        except DatabaseError as problem:
            assert str(path) in str(problem)
        allowed = [BOTH] if before else [SECOND]
        if published is None:
            allowed += [before] if before else [None]  # type: ignore[list-item]
        assert (read(path) if path.exists() else None) in allowed, failed
        assert database_files(path.parent) in ((), (path,))
        assert publish(path, SECOND, lock_timeout_s=1.0) == (BOTH if before else SECOND)
        assert others_in(path.parent, path) == []
    assert calls > 15


@pytest.mark.parametrize("place", PLACES)
def test_a_writer_that_dies_at_any_system_call_leaves_a_whole_file_and_no_lock(tmp_path: Path, place: str) -> None:
    calls, died = _calls(tmp_path / "counted", place), 0
    for number in range(calls):
        path = tmp_path / str(number) / PLACES[place]
        before = publish(path, FIRST) if place == "beside" else None
        child = os.fork()
        if child == 0:
            try:
                with failing(number, dying):
                    publish(path, SECOND)
                os._exit(0)
            finally:
                os._exit(1)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, 9)
        died += code == 9
        assert (read(path) if path.exists() else None) in (before, BOTH if before else SECOND)
        assert database_files(path.parent) in ((), (path,))
        assert publish(path, SECOND, lock_timeout_s=1.0) == (BOTH if before else SECOND)
        assert others_in(path.parent, path) == []
    assert died > 15


def test_a_record_is_on_disk_before_it_is_acknowledged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """New folders, the whole content, then the name, each flushed before the next: what a loss of power leaves is the
    old file or the new one, and after the acknowledgement the new one."""
    steps: list[str] = []
    fsync, replace_file, mkdir = os.fsync, Path.replace, os.mkdir

    def recorded_fsync(descriptor: int) -> None:
        status = os.fstat(descriptor)
        named = Path(f"/proc/self/fd/{descriptor}").readlink()
        size = "" if stat.S_ISDIR(status.st_mode) else f" of {status.st_size} bytes"
        steps.append(f"flushed {named.suffix or named.name}{size}")
        fsync(descriptor)

    def recorded_replace(source: Path, target: Path) -> Path:
        steps.append(f"renamed to {target.name}")
        return replace_file(source, target)

    def recorded_mkdir(path: Any, *arguments: Any) -> None:
        mkdir(path, *arguments)  # of what is there already, it fails
        steps.append(f"made {Path(path).name}")

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "mkdir", recorded_mkdir)
    monkeypatch.setattr(Path, "replace", recorded_replace)
    path = tmp_path / "upper" / "lower" / "h200.json"
    publish(path, FIRST)
    written = ["flushed .tmp of {} bytes", "renamed to h200.json", "flushed lower"]
    made = ["made upper", f"flushed {tmp_path.name}", "made lower", "flushed upper"]
    assert steps == made + [step.format(len(encode(FIRST))) for step in written]
    steps.clear()
    publish(path, SECOND)
    assert steps == [step.format(len(encode(BOTH))) for step in written]
    steps.clear()
    # Another process wrote it and may have died before it was sure of the disk: it is not acknowledged on its word.
    publish(path, SECOND)
    assert steps == [f"flushed .json of {len(encode(BOTH))} bytes", "flushed lower"]
    steps.clear()
    create(tmp_path / "alone.json", FIRST)
    rewrite(tmp_path / "alone.json", lambda stored: export(stored, []))
    assert [step.split()[0] for step in steps] == ["flushed", "renamed", "flushed"] * 2


# Locks


def test_a_held_lock_is_waited_for_and_named(path: Path) -> None:
    publish(path, FIRST)
    lock = path.with_name(f".{path.name}.lock")
    with FileLock(lock), pytest.raises(DatabaseLockedError, match=r"for 0\.05 s") as error:
        publish(path, SECOND, lock_timeout_s=0.05)
    assert lock.name in str(error.value)
    assert publish(path, SECOND, lock_timeout_s=0.05) == BOTH


HOLD = """
import sys, time
from filelock import FileLock
lock = FileLock(sys.argv[1])
lock.acquire()
print("held", flush=True)
time.sleep(60)
"""


def test_a_lock_goes_with_its_process(path: Path) -> None:
    lock = path.with_name(f".{path.name}.lock")
    with subprocess.Popen([sys.executable, "-c", HOLD, str(lock)], stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
            with pytest.raises(DatabaseLockedError):
                publish(path, FIRST, lock_timeout_s=0.05)
        finally:
            holder.kill()
    assert publish(path, FIRST, lock_timeout_s=1.0) == FIRST


def test_threads_of_one_process_lose_nothing(path: Path) -> None:
    stored = [database(measured(KEY.at(batch=1 << number, capacity=512))) for number in range(12)]
    threads = [threading.Thread(target=publish, args=(path, one)) for one in stored]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read(path).records) == 12
    assert others_in(path.parent, path) == []


# Writing without merging


def test_creating_does_not_merge_and_does_not_overwrite(path: Path) -> None:
    create(path, FIRST)
    assert read(path) == FIRST
    with pytest.raises(DatabaseExistsError, match="--force"):
        create(path, SECOND)
    assert read(path) == FIRST
    create(path, SECOND, replace=True)
    assert read(path) == SECOND
    assert others_in(path.parent, path) == []


def test_rewriting_replaces_what_is_there(path: Path) -> None:
    publish(path, BOTH)
    assert rewrite(path, lambda stored: export(stored, [KEY])) == FIRST == read(path)
    path.write_bytes(b"{}")
    with pytest.raises(CorruptDatabaseError, match=path.name):
        rewrite(path, lambda stored: stored)
    assert path.read_bytes() == b"{}"
    with pytest.raises(MissingDatabaseError):
        rewrite(path.with_name("none.json"), lambda stored: stored)
