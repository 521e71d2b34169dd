"""The user's own folder: made for its owner alone, not read where others may have written, and no way out by links."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from prefetch_compiler.database import overlay, private_folder
from prefetch_compiler.database.document import encode
from prefetch_compiler.database.errors import DatabaseWriteError, UntrustedFolderError, UntrustedLinkError
from prefetch_compiler.database.store import publish, read
from prefetch_compiler.db_command.search_path import search_path
from prefetch_compiler.tuning.storage import open_storage

from .examples import database, measured

SOME = database(measured())
NOBODY = 65534

Foreign = Callable[[Path], None]


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The user's own folder, not made yet; nothing else is looked into."""
    folder = tmp_path / "cache" / "kvprefetch" / "tuning_db"
    monkeypatch.setattr(private_folder, "user_folder", lambda: folder)
    monkeypatch.setattr(overlay, "user_folder", lambda: folder)
    monkeypatch.setattr(overlay, "shipped_folder", lambda: None)
    monkeypatch.setattr(overlay, "_warned", set())
    overlay.forget()
    before = os.umask(0o002)
    yield folder
    os.umask(before)
    overlay.forget()


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> Foreign:
    """Give a path to another user; who may not give anything away becomes another user instead."""

    def give_away(path: Path) -> None:
        if os.geteuid() == 0:
            os.chown(path, NOBODY, -1, follow_symlinks=False)
        else:
            monkeypatch.setattr(os, "geteuid", lambda: NOBODY)

    return give_away


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_it_is_made_for_its_owner_alone(own: Path) -> None:
    publish(own / "h200.json", SOME)
    assert mode_of(own) == mode_of(own.parent) == 0o700
    assert mode_of(own.parent.parent) == 0o775
    (layer,) = overlay.load(strict=True).layers
    assert layer == (SOME,)


def test_whoever_comes_first_makes_it_so(own: Path) -> None:
    open_storage(str(own / "studies.db"))
    assert mode_of(own) == mode_of(own.parent) == 0o700


def test_other_folders_are_as_the_umask_says(tmp_path: Path) -> None:
    publish(tmp_path / "shared" / "h200.json", SOME)
    assert mode_of(tmp_path / "shared") == 0o775


def _by_anyone(own: Path, foreign: Foreign) -> None:
    own.chmod(0o777)


def _by_its_group(own: Path, foreign: Foreign) -> None:
    own.chmod(0o770)


def _of_somebody_else(own: Path, foreign: Foreign) -> None:
    foreign(own)


def _in_a_folder_of_somebody_else(own: Path, foreign: Foreign) -> None:
    foreign(own.parent)


def _in_a_folder_that_anyone_writes(own: Path, foreign: Foreign) -> None:
    own.parent.chmod(0o777)


def _a_link_of_somebody_else(own: Path, foreign: Foreign) -> None:
    own.rename(own.with_name("elsewhere"))
    own.symlink_to("elsewhere")
    foreign(own)


def _a_link_to_what_anyone_writes(own: Path, foreign: Foreign) -> None:
    own.rename(own.with_name("elsewhere"))
    own.symlink_to("elsewhere")
    own.chmod(0o777)


def _a_file_of_somebody_else(own: Path, foreign: Foreign) -> None:
    foreign(own / "h200.json")


def _a_file_that_anyone_writes(own: Path, foreign: Foreign) -> None:
    own.chmod(0o755)
    (own / "h200.json").chmod(0o666)


OPEN = [
    _by_anyone, _by_its_group, _of_somebody_else, _in_a_folder_of_somebody_else, _in_a_folder_that_anyone_writes,
    _a_link_of_somebody_else, _a_link_to_what_anyone_writes, _a_file_of_somebody_else, _a_file_that_anyone_writes,
]  # fmt: skip


@pytest.mark.parametrize("open_it", OPEN, ids=lambda way: way.__name__.strip("_"))
def test_where_others_may_have_written_nothing_is_read(
    open_it: Callable[[Path, Foreign], None], own: Path, foreign: Foreign, caplog: pytest.LogCaptureFixture
) -> None:
    publish(own / "h200.json", SOME)
    open_it(own, foreign)
    for _ in range(2):
        assert overlay.load().layers == ()
    (warning,) = caplog.messages
    assert str(own) in warning and "chmod 700" in warning
    with pytest.raises(UntrustedFolderError, match="is not used"):
        overlay.load(strict=True)
    (place,) = search_path()
    assert [file.database for file in place.files] == [None]
    assert "chmod 700" in str(place.files[0].problem)


@pytest.mark.parametrize("open_it", OPEN[:7], ids=lambda way: way.__name__.strip("_"))
def test_nor_is_anything_published_there(
    open_it: Callable[[Path, Foreign], None], own: Path, foreign: Foreign, tmp_path: Path
) -> None:
    publish(own / "h200.json", SOME)
    open_it(own, foreign)
    with pytest.raises((UntrustedFolderError, DatabaseWriteError)):
        publish(own / "new.json", SOME)
    assert not (own / "new.json").exists()


def test_a_link_of_ones_own_is_followed(own: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "disk" / "databases"
    elsewhere.mkdir(parents=True, mode=0o700)
    elsewhere.chmod(0o700)
    own.parent.mkdir(parents=True, mode=0o700)
    own.symlink_to(elsewhere)
    publish(own / "h200.json", SOME)
    assert overlay.load(strict=True).layers == ((SOME,),)


def test_what_is_open_and_named_is_read(own: Path) -> None:
    """Folders may be shared by those who say so."""
    publish(own / "h200.json", SOME)
    own.chmod(0o777)
    assert overlay.load([own], strict=True).layers == ((SOME,),)
    assert overlay.load([own / "h200.json"]).layers == ((SOME,),)


def test_a_file_that_the_umask_left_open_is_closed_by_its_folder(own: Path) -> None:
    publish(own / "h200.json", SOME)
    assert mode_of(own / "h200.json") == 0o664
    assert overlay.load(strict=True).layers == ((SOME,),)


# Links in folders that others may write, which are named


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "notes"
    path.write_bytes(b"the user's own notes")
    return path


def test_somebody_elses_link_in_a_databases_place_is_not_written_through(
    tmp_path: Path, victim: Path, foreign: Foreign
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "h200.json").symlink_to(victim)
    foreign(shared / "h200.json")
    with pytest.raises(UntrustedLinkError, match="belongs to user"):
        publish(shared / "h200.json", SOME)
    assert victim.read_bytes() == b"the user's own notes"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes", "shared"]


def test_a_link_in_the_locks_place_is_not_written_through(tmp_path: Path, victim: Path) -> None:
    """filelock before 3.20.1 emptied what it pointed to."""
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / ".h200.json.lock").symlink_to(victim)
    with pytest.raises(DatabaseWriteError):
        publish(shared / "h200.json", SOME)
    assert victim.read_bytes() == b"the user's own notes"
    assert not (shared / "h200.json").exists()


def test_a_link_in_the_place_of_a_temporary_file_is_not_written_through(
    tmp_path: Path, victim: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever guessed the 64 random bits of its name."""
    monkeypatch.setattr("secrets.token_hex", lambda size: "guessed")
    publish(tmp_path / "shared" / "h200.json", SOME)
    temporary = tmp_path / "shared" / ".other.json.guessed.tmp"
    temporary.symlink_to(victim)
    # What a dead writer left is removed before one's own is made; this comes between the two.
    monkeypatch.setattr("prefetch_compiler.database.store._remove_leftovers", lambda target: None)
    with pytest.raises(DatabaseWriteError, match="File exists"):
        publish(tmp_path / "shared" / "other.json", SOME)
    assert victim.read_bytes() == b"the user's own notes"


def test_a_link_among_files_left_over_is_removed_and_not_followed(tmp_path: Path, victim: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / ".h200.json.1234.tmp").symlink_to(victim)
    publish(shared / "h200.json", SOME)
    assert victim.read_bytes() == b"the user's own notes"
    assert not (shared / ".h200.json.1234.tmp").is_symlink()
    assert (shared / "h200.json").read_bytes() == encode(SOME)
    assert read(shared / "h200.json") == SOME
