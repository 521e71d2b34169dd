"""Where tuning records come from, and reading each file once a process.

Places are looked into in this order, and of records of one identity that of the earlier place counts:

1. the paths of the option ``kvprefetch.tuning_db``, as listed;
2. those of the environment variable ``KVPREFETCH_TUNING_DB``, separated as in ``PATH``;
3. the user's cache folder (:func:`user_folder`), where the tuning job publishes, unless others can write there
   (``private_folder``);
4. the shipped folder (:func:`shipped_folder`).

A place is a file, or a folder, of which every database is read (``store.database_files``); those of one folder are
equals. A file that cannot be used must not break a user's compile: it is left out with one warning a process, and is an
error under ``strict``. So is a path that was named and is not there.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from .document import Database
from .errors import DatabaseError, MissingDatabaseError, UnreadableDatabaseError, UntrustedFolderError
from .private_folder import user_folder, why_file_untrusted, why_untrusted
from .store import database_files, read

log = logging.getLogger("prefetch_compiler")

ENVIRONMENT_VARIABLE = "KVPREFETCH_TUNING_DB"
_SHIPPED_PACKAGE = "prefetch_compiler.tuning_db"
# Sets of files that one process has in use at a time: one for each value of the option.
_KEPT_OVERLAYS = 8

PathLike = str | os.PathLike[str]
# Path, modification time in ns, size, inode.
Fingerprint = tuple[str, int, int, int]


@dataclass(frozen=True)
class Place:
    """A file or folder to look into. One that was ``named`` by the user has to be there; in one that is ``private``
    nobody but the user may be able to write."""

    path: Path
    named: bool
    private: bool = False


@dataclass(frozen=True, eq=False)
class Overlays:
    """Databases in effect, those of the first layer before those of the second, and so on. Equal only to itself, so
    that what is computed from it can be kept beside it."""

    layers: tuple[tuple[Database, ...], ...] = ()


NO_DATABASES = Overlays()


def shipped_folder() -> Path | None:
    """Where the databases that come with this package are; None when it runs from an archive."""
    folder = resources.files(_SHIPPED_PACKAGE)
    return folder if isinstance(folder, Path) else None


def places(named: Sequence[PathLike] = ()) -> tuple[Place, ...]:
    """Every place once, the highest first. ``named`` are the option's paths; those of the environment follow."""
    environment = os.environ.get(ENVIRONMENT_VARIABLE, "").split(os.pathsep)
    # Not Path.expanduser: it raises for a user without a home.
    paths = [Path(os.path.expanduser(path)) for path in (*named, *filter(None, environment))]  # noqa: PTH111
    shipped = shipped_folder()
    found = [Place(path, named=True) for path in paths] + [Place(user_folder(), named=False, private=True)]
    found += [] if shipped is None else [Place(shipped, named=False)]
    return tuple(
        {place.path: place for place in reversed(found)}[path] for path in dict.fromkeys(p.path for p in found)
    )


def load(named: Sequence[PathLike] = (), *, strict: bool = False) -> Overlays:
    """What is in effect now. Files are read again only when they have changed.

    Raises:
        DatabaseError: under ``strict``, the first thing that is wrong with a file or a named path.
    """
    with _lock:
        return _load(places(named), strict)


def load_or_none(named: Sequence[PathLike] = (), *, strict: bool = False) -> Overlays:
    """As :func:`load`; whatever goes wrong costs the databases and a warning.

    Raises:
        DatabaseError: under ``strict``, as :func:`load`.
    """
    try:
        databases = load(named, strict=strict)
    except Exception as error:
        if strict:
            raise
        log.warning("no tuning database is used: %s: %s", type(error).__name__, error)
        return NO_DATABASES
    for number, layer in enumerate(databases.layers):
        for database in layer:
            log.debug("tuning database %d: %s, %d records", number, database.device.name, len(database.records))
    return databases


def forget() -> None:
    """Read every file again when it is next asked for. Warnings that were given are not given again."""
    with _lock:
        _read_files.clear()
        _loaded.clear()


_lock = threading.Lock()


def _unlock() -> None:
    """The thread that holds the lock does not exist in a forked child, which would wait for it for ever."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unlock)

_read_files: dict[tuple[Path, bool], tuple[Fingerprint, Database | DatabaseError]] = {}
_loaded: dict[tuple[tuple[Fingerprint, ...], ...], Overlays] = {}
_warned: set[str] = set()


def _load(wanted: Sequence[Place], strict: bool) -> Overlays:
    layers: list[tuple[Database, ...]] = []
    fingerprints: list[tuple[Fingerprint, ...]] = []
    for place in wanted:
        found = list(_databases(place, strict))
        layers.append(tuple(database for _, database in found))
        fingerprints.append(tuple(fingerprint for fingerprint, _ in found))
    key = tuple(fingerprints)
    overlays = _loaded.pop(key, None) or Overlays(tuple(layer for layer in layers if layer))
    _loaded[key] = overlays
    while len(_loaded) > _KEPT_OVERLAYS:
        del _loaded[next(iter(_loaded))]
    return overlays


def _databases(place: Place, strict: bool) -> Iterator[tuple[Fingerprint, Database]]:
    """The databases of one place that can be read."""
    try:
        files = _files_of(place)
    except DatabaseError as error:
        _complain(place.path, error, strict)
        return
    for path in files:
        fingerprint, found = _read_once(path, place.private)
        if isinstance(found, Database):
            yield fingerprint, found
        else:
            _complain(path, found, strict)


def _files_of(place: Place) -> tuple[Path, ...]:
    """Raises: MissingDatabaseError, UnreadableDatabaseError, UntrustedFolderError."""
    try:
        if not place.named and not place.path.exists():
            return ()
        if place.private and (reason := why_untrusted(place.path)) is not None:
            raise UntrustedFolderError(place.path, reason)
        place.path.stat()
        if not place.path.is_dir():
            return (place.path,)
        # It can be listed.
        with os.scandir(place.path) as entries:
            next(entries, None)
    except FileNotFoundError as error:
        raise MissingDatabaseError(place.path) from error
    except (OSError, ValueError) as error:
        # ValueError: a path with a null character.
        raise UnreadableDatabaseError(place.path, error) from error
    return database_files(place.path)


def _read_once(path: Path, private: bool) -> tuple[Fingerprint, Database | DatabaseError]:
    fingerprint = _fingerprint(path)
    known = _read_files.get((path, private))
    if known is None or known[0] != fingerprint:
        known = fingerprint, _read_or_error(path, private)
        _read_files[path, private] = known
    return known


def _fingerprint(path: Path) -> Fingerprint:
    try:
        status = path.stat()
    except OSError:
        return str(path), 0, -1, 0
    return str(path), status.st_mtime_ns, status.st_size, status.st_ino


def _read_or_error(path: Path, private: bool) -> Database | DatabaseError:
    try:
        if private and (reason := why_file_untrusted(path)) is not None:
            raise UntrustedFolderError(path.parent, reason)
        return read(path)
    except DatabaseError as error:
        # Kept for as long as the process runs: without the frames, its own and its cause's, that hold the file's bytes.
        error.__cause__ = error.__context__ = None
        return error.with_traceback(None)
    except Exception as error:
        # Nothing that a file may hold is to break a compile, not even by a mistake of ours.
        return UnreadableDatabaseError(path, f"{type(error).__name__}: {error}")


def _complain(path: Path, error: DatabaseError, strict: bool) -> None:
    """A log record and no Python warning, which a user may have turned into an exception."""
    if strict:
        raise error
    if str(path) not in _warned:
        _warned.add(str(path))
        log.warning("this tuning database is not used: %s", error)
