"""What a report is made of: a database, or Optuna studies, whichever the named source holds."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from ...database.document import Database
from ...database.store import database_files, read
from .errors import ReportSourceError

if TYPE_CHECKING:
    import optuna

_SQLITE_MAGIC = b"SQLite format 3\0"


@dataclass(frozen=True)
class RecordsSource:
    """``name`` is the path as it was given."""

    name: str
    database: Database


@dataclass(frozen=True)
class StudiesSource:
    """``name`` is the path or URL as it was given, without a password; ``studies`` in the order of their names."""

    name: str
    studies: list[optuna.Study]


def open_source(name: str) -> RecordsSource | StudiesSource:
    """Read ``name``; studies in it are read lazily.

    Raises:
        ReportSourceError: it is no source, or there are several databases in the folder.
        DatabaseError, InvalidStorageError: it is one that cannot be read.
    """
    if "://" in name or name.startswith("journal:"):
        return _studies(name)
    path = Path(name).expanduser()
    if path.is_dir():
        return _only_database(path)
    try:
        with path.open("rb") as file:
            head = file.read(len(_SQLITE_MAGIC))
    except OSError as error:
        raise ReportSourceError(name, error.strerror or str(error)) from error
    if head == _SQLITE_MAGIC:
        _require_studies(path)
        return _studies(str(path))
    if path.suffix == ".log":
        return _studies(str(path))
    return RecordsSource(name, read(path))


def _only_database(folder: Path) -> RecordsSource:
    files = database_files(folder)
    if len(files) != 1:
        found = ", ".join(file.name for file in files) or "none"
        raise ReportSourceError(str(folder), f"a report shows one database, and the folder's are: {found}")
    return RecordsSource(str(files[0]), read(files[0]))


def _require_studies(path: Path) -> None:
    """Optuna would make an SQLite file of anything else its own."""
    uri = f"file:{quote(str(path.absolute()))}?mode=ro"
    try:
        with closing(sqlite3.connect(uri, uri=True)) as connection:
            tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except sqlite3.Error as error:
        raise ReportSourceError(str(path), f"SQLite cannot read it ({error})") from error
    if "studies" not in tables or "trials" not in tables:
        raise ReportSourceError(str(path), "an SQLite file without Optuna's tables")


def _studies(name: str) -> StudiesSource:
    import optuna

    from ..errors import without_password
    from ..storage import open_storage

    storage = open_storage(name)
    names = sorted(optuna.get_all_study_names(storage))
    return StudiesSource(without_password(name), [optuna.load_study(study_name=n, storage=storage) for n in names])
