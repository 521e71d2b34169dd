"""Databases as files: whole-file reads, and publishing that loses nothing.

Publishing takes the file's lock, merges with what is there, and puts a complete new file in its place by rename, so
that a reader sees the old file or the new one and never a part. The lock belongs to its process: the kernel releases it
when the holder dies, so no lock outlives its holder. All of it holds on local file systems, and on network file systems
whose locks and renames work.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout

from .document import Database, decode, encode
from .errors import (
    CorruptDatabaseError,
    DatabaseExistsError,
    DatabaseLockedError,
    DatabaseTooLargeError,
    DatabaseWriteError,
    InadmissibleRecordError,
    MissingDatabaseError,
    UnreadableDatabaseError,
    UntrustedFolderError,
    UntrustedLinkError,
)
from .merge import merge
from .private_folder import make_folder, sync_folder, why_link_untrusted, why_own_untrusted
from .record import DeviceIdentity, TuningRecord
from .strict_json import MAX_BYTES

log = logging.getLogger("prefetch_compiler")

LOCK_TIMEOUT_S = 60.0
# The folder's own JSON file that is no database: the schema, which is published beside the databases.
SCHEMA_FILE = "schema.json"
_MAX_NAME_CHARACTERS = 64

Check = Callable[[TuningRecord], str | None]


def file_name(device: DeviceIdentity) -> str:
    """``nvidia_h200-132sm.json``: safe for any device name. Two devices that share a name, say two of one name and
    SM count with different architectures, are told apart by the file's content."""
    slug = re.sub(r"[^a-z0-9]+", "_", device.name.lower()).strip("_")
    ordinary = re.fullmatch(r"[A-Za-z0-9 ._()+/-]*", device.name) is not None
    if not slug or not ordinary or len(slug) > _MAX_NAME_CHARACTERS:
        digest = hashlib.sha256(device.name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
        slug = f"{slug[:_MAX_NAME_CHARACTERS]}_{digest}".lstrip("_")
    return f"{slug}-{device.sm_count}sm.json"


def database_files(folder: Path) -> tuple[Path, ...]:
    """What readers take for databases: every ``*.json`` whose name does not start with a dot, but for the schema.
    Nothing where there is no folder that can be read."""
    try:
        paths = sorted(folder.iterdir())
    except OSError:
        return ()
    return tuple(
        path for path in paths if path.suffix == ".json" and path.name != SCHEMA_FILE and not path.name.startswith(".")
    )


def read(path: Path | str) -> Database:
    """The database in ``path``.

    Raises:
        DatabaseError: there is none: MissingDatabaseError, UnreadableDatabaseError, DatabaseTooLargeError,
            CorruptDatabaseError, ChecksumError or UnsupportedVersionError.
    """
    return decode(_read_bytes(Path(path)), path)


def publish(
    path: Path | str, database: Database, check: Check | None = None, lock_timeout_s: float = LOCK_TIMEOUT_S
) -> Database:
    """Merge ``database`` into the file at ``path``, durably; returns what the file now holds.

    When this returns the file is on disk, and a later publish by any process keeps or betters each of its records.
    A corrupt file in the place is moved aside to ``NAME.corrupt-DIGEST``, with a warning; one of another schema
    version or another device is left alone, and raises.

    Args:
        check: says why a record may not be published, or None; the caller's admissibility.

    Raises:
        DatabaseError: the records are not published, and the file is whole: InvalidRecordError,
            InadmissibleRecordError, DeviceMismatchError, UnsupportedVersionError, DatabaseTooLargeError,
            UnreadableDatabaseError, UntrustedLinkError, UntrustedFolderError, DatabaseLockedError or
            DatabaseWriteError.
    """
    for record in database.records:
        reason = None if check is None else check(record)
        if reason is not None:
            raise InadmissibleRecordError(record.key.name, reason)
    encode(database)  # what is wrong with it is told before anything is locked or created
    with _locked(path, lock_timeout_s) as target:
        return _publish_locked(target, database)


def create(path: Path | str, database: Database, replace: bool = False) -> None:
    """Write ``database`` alone, durably; unlike :func:`publish` it is not merged with anything.

    Args:
        replace: whether a file that is there already may go, whatever it is.

    Raises:
        DatabaseError: InvalidRecordError, DatabaseTooLargeError, DatabaseExistsError, DatabaseLockedError or
            DatabaseWriteError. What was there is still there.
    """
    data = encode(database)
    with _locked(path, LOCK_TIMEOUT_S) as target:
        if target.exists() and not replace:
            raise DatabaseExistsError(path)
        _replace(target, data)


def rewrite(path: Path | str, change: Callable[[Database], Database]) -> Database:
    """Replace the database in ``path`` by what ``change`` makes of it, durably; no other writer comes in between.

    Raises:
        DatabaseError: whatever reading or writing raises. What was there is still there.
    """
    with _locked(path, LOCK_TIMEOUT_S) as target:
        changed = change(decode(_read_bytes(target), path))
        _replace(target, encode(changed))
        return changed


@contextmanager
def _locked(path: Path | str, timeout_s: float) -> Iterator[Path]:
    """Hold the lock of ``path``; gives the file that it names, behind all links.

    Raises:
        UntrustedLinkError, UntrustedFolderError: it is not to be written there.
        DatabaseLockedError, DatabaseWriteError: also of what is done under the lock.
    """
    # A link stays a link: what it points to is replaced.
    target = Path(os.path.realpath(path))
    lock_path = target.with_name(f".{target.name}.lock")
    try:
        _require_trusted(Path(path), target)
        with FileLock(lock_path, timeout=timeout_s, poll_interval=0.01, thread_local=False):
            yield target
    except Timeout as error:
        raise DatabaseLockedError(path, lock_path, timeout_s) from error
    except OSError as error:
        raise DatabaseWriteError(path, error) from error


def _require_trusted(path: Path, target: Path) -> None:
    """Make the folder; raises UntrustedLinkError, UntrustedFolderError."""
    link = why_link_untrusted(path)
    if link is not None:
        raise UntrustedLinkError(path, link)
    make_folder(target.parent)
    reason = why_own_untrusted(target.parent)
    if reason is not None:
        raise UntrustedFolderError(target.parent, reason)


def _publish_locked(target: Path, database: Database) -> Database:
    _remove_leftovers(target)
    merged = merge(database, *_present(target))
    data = encode(merged)
    if not _holds(target, data):
        _replace(target, data)
    return merged


def _present(target: Path) -> list[Database]:
    """What is there: nothing, one database, or a corrupt one, which is moved out of the way."""
    try:
        return [read(target)]
    except MissingDatabaseError:
        return []
    except CorruptDatabaseError as error:
        digest = hashlib.sha256(_read_bytes(target)).hexdigest()[:8]
        aside = target.with_name(f"{target.name}.corrupt-{digest}")
        target.replace(aside)
        log.warning("%s It was moved to %s.", error, aside)
        return []


def _holds(target: Path, data: bytes) -> bool:
    """Whether the file is ``data`` already. It may be another process's that died before it was sure of the disk."""
    if not target.exists() or _read_bytes(target) != data:
        return False
    with target.open("rb") as file:
        os.fsync(file.fileno())
    sync_folder(target.parent)
    return True


def _replace(target: Path, data: bytes) -> None:
    """Put ``data`` in the place of ``target``, on disk. The temporary name ends in ``.tmp`` and starts with a dot."""
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    try:
        with _created(temporary) as file:
            file.write(data)
            file.flush()
            if target.exists():
                os.fchmod(file.fileno(), stat.S_IMODE(target.stat().st_mode))
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(target.parent)


def _created(path: Path) -> IO[bytes]:
    """A new file with the modes that the user's umask leaves; a name that exists, even a link, is refused."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), "wb")


def _remove_leftovers(target: Path) -> None:
    """Temporary files of writers that died. Whoever holds the lock is the only writer, so they are nobody's."""
    prefix = f".{target.name}."
    for path in target.parent.iterdir():
        if path.name.startswith(prefix) and path.suffix == ".tmp":
            with suppress(OSError):
                path.unlink()


def _read_bytes(path: Path) -> bytes:
    """At most one byte more than a database may have.

    Raises:
        MissingDatabaseError, UnreadableDatabaseError, DatabaseTooLargeError.
    """
    try:
        # A pipe in the file's place must not make the reader wait.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise UnreadableDatabaseError(path, "it is no regular file")
            if status.st_size > MAX_BYTES:
                raise DatabaseTooLargeError(path, status.st_size, MAX_BYTES)
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise MissingDatabaseError(path) from error
    except (OSError, ValueError) as error:
        # ValueError: a path with a null character.
        raise UnreadableDatabaseError(path, error) from error
    if len(data) > MAX_BYTES:
        raise DatabaseTooLargeError(path, len(data), MAX_BYTES)
    return data
