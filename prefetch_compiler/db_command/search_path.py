"""Where records come from on this machine, and what lies there now."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..database.document import Database
from ..database.errors import DatabaseError, UntrustedFolderError
from ..database.overlay import Place, places
from ..database.private_folder import why_file_untrusted, why_untrusted
from ..database.store import database_files, read


@dataclass(frozen=True)
class FoundFile:
    """A database file of a place: what it holds, or why it is not used."""

    path: Path
    database: Database | None
    problem: str | None


@dataclass(frozen=True)
class FoundPlace:
    """A place of the search path, the first of which counts most."""

    place: Place
    exists: bool
    files: tuple[FoundFile, ...]


def search_path() -> tuple[FoundPlace, ...]:
    """The places that a process started here, with no option set, looks into."""
    return tuple(FoundPlace(place, place.path.exists(), tuple(_files(place))) for place in places())


def _files(place: Place) -> Iterator[FoundFile]:
    path = place.path
    untrusted = why_untrusted(path) if place.private and path.exists() else None
    if untrusted is not None:
        yield FoundFile(path, None, str(UntrustedFolderError(path, untrusted)))
        return
    for file in database_files(path) if path.is_dir() else (path,) if path.exists() else ():
        try:
            if place.private and (reason := why_file_untrusted(file)) is not None:
                raise UntrustedFolderError(path, reason)
            yield FoundFile(file, read(file), None)
        except DatabaseError as error:
            yield FoundFile(file, None, str(error))
