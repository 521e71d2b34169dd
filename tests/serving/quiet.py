"""Listening to what a process does while it serves: audit events, log records and memory."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# What reads or writes files, loads code, compiles it, starts something or talks to somebody.
PREFIXES = (
    "open", "import", "compile", "os.", "subprocess.", "socket.", "shutil.", "tempfile.", "glob.", "pathlib.",
    "ctypes.dlopen", "ctypes.dlsym", "urllib.", "sqlite3.", "mmap.", "code.__new__", "marshal.", "pickle.",
)  # fmt: skip

_listeners: list[list[str]] = []
_hooked = False


def _hear(event: str, arguments: tuple[object, ...]) -> None:
    if _listeners and event.startswith(PREFIXES):
        for heard in _listeners:
            heard.append(f"{event} {arguments[:1]!r}"[:200])


@contextmanager
def audited() -> Iterator[list[str]]:
    """Events of all threads inside the ``with`` block. A hook cannot be taken off again: there is one, which mostly
    has nobody to tell."""
    global _hooked
    if not _hooked:
        sys.addaudithook(_hear)
        _hooked = True
    heard: list[str] = []
    _listeners.append(heard)
    try:
        yield heard
    finally:
        _listeners.remove(heard)


@contextmanager
def logged() -> Iterator[list[str]]:
    """Every log record of any logger that would reach somebody at INFO or above, and all of ours, DEBUG too."""
    records: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(f"{record.name}: {record.getMessage()}")

    collector = Collector()
    ours, root = logging.getLogger("prefetch_compiler"), logging.getLogger()
    levels = ours.level, root.level
    ours.setLevel(logging.DEBUG)
    root.setLevel(min(root.level, logging.INFO))
    root.addHandler(collector)
    try:
        yield records
    finally:
        root.removeHandler(collector)
        ours.setLevel(levels[0])
        root.setLevel(levels[1])
