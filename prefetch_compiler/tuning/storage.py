"""Where studies live. A path or ``sqlite:///`` URL is an SQLite file (``optuna-dashboard FILE`` opens it as it is);
``postgresql://`` and ``mysql://`` URLs, journal files (``journal:PATH`` or a path ending in ``.log``) and gRPC proxies
(``grpc://HOST:PORT``) let several workers share a study, as an SQLite file does for the workers of one host."""

from __future__ import annotations

import sqlite3
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, get_storage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy import Connection, event
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from ..database.private_folder import make_folder
from .errors import InvalidStorageError, StudyStorageError

# Psycopg 3 is what we install; SQLAlchemy's own default for these URLs is the older psycopg2.
_DRIVERS = {"postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg", "mysql": "mysql+pymysql"}
_PACKAGES = {"postgresql+psycopg": "psycopg", "mysql+pymysql": "pymysql"}
# Writers of an SQLite file wait for one another.
_SQLITE_WAIT_S = 60
_OPEN_TRIES, _OPEN_PAUSE_S = 8, 0.25


def open_storage(where: str) -> BaseStorage:
    """The storage named by ``where``.

    Raises:
        InvalidStorageError: it cannot be opened, or a package that it needs is missing.
    """
    try:
        return _open(where)
    except InvalidStorageError:
        raise
    except Exception as error:
        raise InvalidStorageError(where, f"{type(error).__name__}: {error}") from error


@contextmanager
def storage_errors() -> Iterator[None]:
    """Inside, a storage that fails raises one error of ours, whichever storage it is.

    Raises:
        StudyStorageError: a storage failed.
    """
    try:
        yield
    except (SQLAlchemyError, StorageInternalError, OSError) as error:
        raise StudyStorageError(error) from error


def _open(where: str) -> BaseStorage:
    if where.startswith("grpc://"):
        return _grpc_proxy(where)
    if where.startswith("journal:") or ("://" not in where and where.endswith(".log")):
        path = Path(where.removeprefix("journal:").removeprefix("//"))
        make_folder(path.parent)
        return JournalStorage(JournalFileBackend(str(path)))
    if "://" not in where or where.startswith("sqlite:///"):
        return _sqlite(Path(where.removeprefix("sqlite:///")))
    scheme, rest = where.split("://", 1)
    scheme = _DRIVERS.get(scheme, scheme)
    package = _PACKAGES.get(scheme)
    if package is not None and find_spec(package) is None:
        raise InvalidStorageError(where, f"install the Python package {package}")
    return get_storage(_database(f"{scheme}://{rest}", {"pool_pre_ping": True}))


class _Connection(sqlite3.Connection):
    """A trial is a dozen small transactions. With a write-ahead log none of them waits for the disk, and what a killed
    process has committed stays; only a power cut may lose the last few trials."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.execute("PRAGMA journal_mode=WAL")
        self.execute("PRAGMA synchronous=NORMAL")


def _sqlite(path: Path) -> BaseStorage:
    make_folder(path.parent)
    options = {"connect_args": {"timeout": _SQLITE_WAIT_S, "factory": _Connection}}
    storage = _database(f"sqlite:///{path}", options)
    event.listen(storage.engine, "before_execute", _lock_before_reading)
    return get_storage(storage)


def _lock_before_reading(connection: Connection, statement: Any, *_: Any) -> None:
    """SQLite has no SELECT FOR UPDATE, and SQLAlchemy leaves the clause out: two workers would both read that an
    enqueued trial waits, and both take it. Whoever asks for the clause takes the write lock before reading."""
    wanted = getattr(statement, "_for_update_arg", None) is not None
    if wanted and not connection.connection.in_transaction:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _database(url: str, options: dict[str, Any]) -> RDBStorage:
    """Workers that start together may all find the tables missing; whoever comes second finds them at the next try."""
    for tries_left in reversed(range(_OPEN_TRIES)):
        try:
            return RDBStorage(url, engine_kwargs=options)
        except DBAPIError:
            if tries_left == 0:
                raise
            time.sleep(_OPEN_PAUSE_S)
    raise AssertionError("unreachable")


def _grpc_proxy(where: str) -> BaseStorage:
    if find_spec("grpc") is None:
        raise InvalidStorageError(where, "install the Python package grpcio")
    from optuna.storages import GrpcStorageProxy

    address = urlsplit(where)
    if address.hostname is None or address.port is None:
        raise InvalidStorageError(where, "write it as grpc://HOST:PORT")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return GrpcStorageProxy(host=address.hostname, port=address.port)
