"""Faults at the system calls of publishing: each call in turn fails, or ends the process.

Calls are counted from the first to the last of one ``publish``; ``failing(n, ...)`` strikes at the n-th.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

from prefetch_compiler.database import store

# Whatever publishing asks of the operating system, by the module that it is asked through.
CALLS: list[tuple[Any, str]] = [
    (os, "open"), (os, "fsync"), (os, "fchmod"), (os, "stat"), (os, "lstat"), (os, "fstat"), (os, "unlink"),
    (os, "mkdir"), (os, "listdir"), (os, "scandir"), (Path, "replace"), (fcntl, "flock"),
]  # fmt: skip

Strike = Callable[[], object]


class _File:
    """A new file whose writes are calls too, and which a fault cuts in half."""

    def __init__(self, file: IO[bytes], called: Callable[[str], Strike | None]) -> None:
        self._file, self._called = file, called

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, data: bytes) -> None:
        strike = self._called("write")
        if strike is not None:
            self._file.write(data[: len(data) // 2])
            self._file.flush()
            strike()
        self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def fileno(self) -> int:
        return self._file.fileno()


@contextmanager
def failing(at: int, strike: Strike) -> Iterator[list[str]]:
    """Strike at call number ``at``, counted from 0. Gives the names of the calls that were made."""
    made: list[str] = []

    def called(name: str) -> Strike | None:
        made.append(name)
        return strike if len(made) - 1 == at else None

    def wrapped(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            struck = called(name)
            if struck is not None:
                struck()
            return real(*arguments, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        created = store._created
        for owner, name in CALLS:
            patch.setattr(owner, name, wrapped(name, getattr(owner, name)))
        patch.setattr(store, "_created", lambda path: _File(created(path), called))
        yield made


def raising(number: int) -> Strike:
    """The error that the operating system gives."""

    def strike() -> None:
        raise OSError(number, os.strerror(number))

    return strike


def dying() -> None:
    """As SIGKILL: nothing is cleaned up."""
    os._exit(9)


FULL, GONE, DENIED = errno.ENOSPC, errno.EIO, errno.EACCES
