"""A PostgreSQL server of our own for a test: a folder that is thrown away, a Unix socket, no network."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def _binary(name: str) -> str | None:
    found = shutil.which(name)
    debian = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), reverse=True)
    return found or (str(debian[0]) if debian else None)


def _user() -> str | None:
    """Whom the server runs as: it refuses to run as root."""
    if os.getuid() != 0:
        return pwd.getpwuid(os.getuid()).pw_name
    names = {entry.pw_name for entry in pwd.getpwall()}
    return next((name for name in ("postgres", "nobody") if name in names), None)


@contextmanager
def server() -> Iterator[str]:
    """The URL of an empty database. Skips the test, with the reason, where there is no server to start."""
    initdb, pg_ctl, user = _binary("initdb"), _binary("pg_ctl"), _user()
    if initdb is None or pg_ctl is None:
        pytest.skip("no PostgreSQL server here: neither initdb nor pg_ctl is found (Debian: apt install postgresql)")
    if user is None:
        pytest.skip("PostgreSQL does not run as root, and there is neither a user postgres nor nobody")
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    # Unix sockets have short names, so the folder is not pytest's.
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    try:
        if os.getuid() == 0:
            shutil.chown(folder, user)
        _run([initdb, "-D", str(folder / "data"), "-U", "tester", "-A", "trust", "--no-sync"], user)
        options = f"-k {folder} -c listen_addresses='' -c fsync=off"
        _run([pg_ctl, "-D", str(folder / "data"), "-o", options, "-l", str(folder / "log"), "-w", "start"], user)
        try:
            yield f"postgresql://tester@/postgres?host={folder}"
        finally:
            _run([pg_ctl, "-D", str(folder / "data"), "-m", "immediate", "-w", "stop"], user)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(command: list[str], user: str) -> None:
    # Not the group and the environment of root either.
    extra = {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []} if os.getuid() == 0 else {}
    reply = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd="/", check=False, **extra)  # type: ignore[call-overload]
    if reply.returncode != 0:
        pytest.fail(f"{command[0]} failed: {reply.stderr or reply.stdout}")
