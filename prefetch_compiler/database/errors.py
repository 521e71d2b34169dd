"""What can be wrong with a tuning database. Each message names the file, the value and the fix."""

from __future__ import annotations

from ..errors import KVPrefetchError
from .record import DeviceIdentity

_MAX_QUOTED = 400


class DatabaseError(KVPrefetchError):
    """Base of everything that reading, writing or combining tuning databases raises."""


class MissingDatabaseError(DatabaseError):
    """There is no such file."""

    def __init__(self, source: object) -> None:
        super().__init__(f"{source}: no such tuning database; `kvprefetch db path` lists the ones that are found.")


class UnreadableDatabaseError(DatabaseError):
    """The operating system does not let the file be read, or it is no regular file."""

    def __init__(self, source: object, cause: object) -> None:
        super().__init__(f"{source}: the tuning database cannot be read ({cause}); check the path and its permissions.")


class UntrustedFolderError(DatabaseError):
    """The user's own folder, which nobody named, holds what somebody else may have written."""

    def __init__(self, folder: object, problem: str) -> None:
        super().__init__(
            f"{folder}: the user's folder of tuning databases is not used: {problem}. Take it back (chown, chmod 700), "
            "or name it in KVPREFETCH_TUNING_DB if others may choose your kernels."
        )


class UntrustedLinkError(DatabaseError):
    """A database would be written through somebody else's link."""

    def __init__(self, path: object, problem: str) -> None:
        super().__init__(f"{path}: nothing is written through it: {problem}. Remove it, or name the file itself.")


class DatabaseTooLargeError(DatabaseError):
    """More bytes than any database has: refused before it is parsed, and never written."""

    def __init__(self, source: object, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(
            f"{source}: a tuning database of {size_bytes} bytes is over the limit of {limit_bytes}; "
            "split it with `kvprefetch db export`, or prune it with `kvprefetch db prune`."
        )


class CorruptDatabaseError(DatabaseError):
    """Bytes that are no tuning database: not JSON, not its schema, or values that no job records. What it quotes of
    them forges no line of a log and reaches no terminal's controls."""

    def __init__(self, source: object, problem: str) -> None:
        super().__init__(
            f"{source}: not a valid tuning database: {_quoted(problem)}. Restore the file, or delete it and tune again."
        )


def _quoted(text: str) -> str:
    """Printable ASCII alone, and not much of it."""
    printable = "".join(letter if " " <= letter <= "~" else ascii(letter)[1:-1] for letter in text[:_MAX_QUOTED])
    return printable if len(text) <= _MAX_QUOTED else f"{printable}..."


class ChecksumError(CorruptDatabaseError):
    """The bytes differ from those that were written."""

    def __init__(self, source: object, what: str, found: str, expected: str) -> None:
        super().__init__(source, f"{what} has checksum {expected} and its content gives {found}: it was changed")


class UnsupportedVersionError(DatabaseError):
    """A database of another schema version."""

    def __init__(self, source: object, version: object, supported: int) -> None:
        super().__init__(
            f"{source}: schema version {version!r} is not supported, only {supported}; "
            "use the version of kvprefetch that wrote the file, or tune again."
        )


class DeviceMismatchError(DatabaseError):
    """Databases of different GPU models have nothing to say to each other."""

    def __init__(self, one: DeviceIdentity, other: DeviceIdentity) -> None:
        super().__init__(
            f"databases of different devices cannot be combined: {describe(one)} and {describe(other)}; "
            "keep one file per GPU model."
        )


class InvalidRecordError(DatabaseError, ValueError):
    """A record that would be refused when the file is read, and so is not written."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"the tuning database cannot be written: {problem}; correct the record.")


class InadmissibleRecordError(DatabaseError, ValueError):
    """A record whose configuration cannot run everywhere in its bucket."""

    def __init__(self, record: str, reason: str) -> None:
        super().__init__(f"record {record} cannot be published: {reason}; tune this key again.")


class DatabaseWriteError(DatabaseError):
    """The operating system does not let the file be written. What was there before is intact, unless only the last
    flush to disk failed: then the new file is there, and may not survive a loss of power."""

    def __init__(self, path: object, cause: object) -> None:
        super().__init__(
            f"{path}: the tuning database cannot be written ({cause}); no file was left half written. "
            "Make room, or write to a folder with write permission."
        )


class DatabaseExistsError(DatabaseError):
    """A file would be overwritten, and nobody said that it may be."""

    def __init__(self, path: object) -> None:
        super().__init__(f"{path}: there is a file already; choose another name, or say --force to replace it.")


class DatabaseLockedError(DatabaseError):
    """Another writer has held the lock all the time."""

    def __init__(self, path: object, lock: object, seconds: float) -> None:
        super().__init__(
            f"{path}: another process has held the lock {lock} for {seconds:g} s; "
            "wait for it, or end it (the lock goes with its process)."
        )


def describe(device: DeviceIdentity) -> str:
    """One line for people: ``NVIDIA H200 (cuda, arch 90, 132 SMs)``."""
    return f"{device.name} ({device.backend}, arch {device.arch}, {device.sm_count} SMs)"


class TemplateSourceError(KVPrefetchError):
    """The sources of a template cannot be read as its manifest and their imports name them."""

    def __init__(self, path: object, problem: str) -> None:
        super().__init__(
            f"{path}: {problem}. Name kernels in templates/manifest.py as module.function, import helpers from the "
            "modules that define them, or install the package again."
        )
