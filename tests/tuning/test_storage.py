"""Storages: what URLs mean, and two worker processes that share one study in each of them."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from sqlalchemy import event

from prefetch_compiler.database.store import read
from prefetch_compiler.tuning.errors import InvalidStorageError
from prefetch_compiler.tuning.job import database_path
from prefetch_compiler.tuning.remembered import remember_all
from prefetch_compiler.tuning.storage import open_storage
from prefetch_compiler.tuning.worker_name import known_dead, worker_name

from .fakes import H200
from .postgresql import server
from .test_job import job, lines

TRIALS = 24


@pytest.mark.parametrize(
    ("where", "why"),
    [
        ("nosql://host/name", "nosql"),
        ("postgresql://nobody:secret@127.0.0.1:1/none", "127.0.0.1"),
        ("grpc://localhost", "grpc"),
    ],
)
def test_what_cannot_be_opened_is_one_line_without_the_password(where: str, why: str) -> None:
    with pytest.raises(InvalidStorageError, match=why) as caught:
        open_storage(where)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("prefix", ["", "sqlite:///"])
def test_a_path_is_an_sqlite_file(tmp_path: Path, prefix: str) -> None:
    path = tmp_path / "new" / "studies.db"
    storage = open_storage(f"{prefix}{path}")
    optuna.create_study(storage=storage, study_name="one")
    with sqlite3.connect(path) as connection:
        assert connection.execute("select study_name from studies").fetchall() == [("one",)]
        assert connection.execute("pragma journal_mode").fetchone() == ("wal",)


def test_workers_are_told_apart() -> None:
    host, pid, start = worker_name().rsplit(":", 2)
    assert not known_dead(worker_name())
    assert known_dead(f"{host}:{pid}:{int(start) + 1}")
    assert known_dead(f"{host}:{2**22 + 1}:1")
    assert not known_dead(f"another-{host}:{2**22 + 1}:1")
    assert not known_dead("")


def test_an_enqueued_trial_goes_to_one_worker(tmp_path: Path) -> None:
    """One worker has read that the trial waits and has not taken it yet, when another asks."""
    path = str(tmp_path / "studies.db")
    slow, fast = (optuna.create_study(storage=open_storage(path), study_name="one", load_if_exists=True) for _ in "ab")
    slow.enqueue_trial({})
    has_read, other_asked = threading.Event(), threading.Event()

    def dawdle(connection: sqlalchemy.Connection, statement: object, *_: object) -> None:
        if not has_read.is_set() and getattr(statement, "_for_update_arg", None) is not None:
            has_read.set()
            other_asked.wait(0.5)

    event.listen(slow._storage._backend.engine, "after_execute", dawdle)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(slow.ask)
        assert has_read.wait(10), "the trial was not read for taking it"
        second = fast.ask()
        other_asked.set()
        assert {first.result().number, second.number} == {0, 1}


@contextmanager
def grpc_proxy(path: Path) -> Iterator[str]:
    pytest.importorskip("grpc", reason="grpcio is not installed")
    import socket

    from optuna.storages._grpc.server import make_server

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    proxy = make_server(open_storage(str(path)), "127.0.0.1", port)
    thread = threading.Thread(target=proxy.start)
    thread.start()
    try:
        yield f"grpc://127.0.0.1:{port}"
    finally:
        proxy.stop(None)
        thread.join()


@contextmanager
def shared_storage(kind: str, tmp_path: Path) -> Iterator[str]:
    if kind == "postgresql":
        with server() as url:
            yield url
    elif kind == "grpc":
        with grpc_proxy(tmp_path / "studies.db") as url:
            yield url
    else:
        yield {"sqlite": str(tmp_path / "studies.db"), "journal": f"journal:{tmp_path / 'studies.journal'}"}[kind]


@pytest.mark.parametrize("kind", ["postgresql", "sqlite", "journal", "grpc"])
def test_two_workers_share_one_study(kind: str, tmp_path: Path) -> None:
    with shared_storage(kind, tmp_path) as url:
        workers = [job(url, tmp_path, TRIALS, f"log{number}", slow_ms=60, workers=2) for number in range(2)]
        for worker in workers:
            _, errors = worker.communicate(timeout=120)
            assert worker.returncode == 0, errors
        storage = open_storage(url)
        (name,) = optuna.get_all_study_names(storage)
        trials = optuna.load_study(study_name=name, storage=storage).trials
    remembered = [trial for trial in remember_all(trials) if trial.counts]
    measured = [lines(tmp_path / f"log{number}") for number in range(2)]
    assert all(measured), "one worker did it all"
    # Each asks for no more than is missing as far as it knows, with up to an eighth of the trials under way.
    distinct = set().union(*measured)
    assert TRIALS <= len(distinct) <= TRIALS + 2 * TRIALS // 8
    assert sum(map(len, measured)) == len(distinct), "a configuration was measured twice"
    assert len({trial.config for trial in remembered}) >= TRIALS
    owners = {trial.user_attrs["worker"] for trial in trials if "worker" in trial.user_attrs}
    assert len(owners) == 2
    (record,) = read(database_path(tmp_path / "database", H200)).records
    assert record.evidence.trials >= TRIALS
