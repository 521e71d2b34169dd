"""Writers that are killed while they publish, and readers beside them. Run as a script; prints JSON.

Arguments: the folder, seconds, a seed. All processes are forked from this one, which has imported everything: what is
tried is publishing, not importing. A writer publishes a new record, and then notes it in its own log: the note is the
acknowledgement. Half of the kills are aimed at whoever holds the lock.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

from prefetch_compiler.config import KernelConfig
from prefetch_compiler.database import store
from prefetch_compiler.database.document import Database
from prefetch_compiler.database.errors import MissingDatabaseError
from prefetch_compiler.database.key import Alignment, Layout, MaskClass, TuningKey
from prefetch_compiler.database.record import DeviceIdentity, Evidence, Toolchain, TuningRecord

WRITERS, READERS = 32, 2
DEVICE = DeviceIdentity("NVIDIA H200", "cuda", 90, 132)
KEY = TuningKey("float16", "float16", 1, 1, 64, 64, 1, 1, 1024, Layout.BHSD, Alignment.TMA, MaskClass.NONE)
TOOLCHAIN = Toolchain("split_kv_decode", "0123abcd", "2.11.0", "3.6.0", "580")
FORK = multiprocessing.get_context("fork")


def record_of(writer: int, number: int) -> TuningRecord:
    key = replace(KEY, group=writer + 1, kv_heads=number + 1)
    return TuningRecord(key, KernelConfig(64, 1, 4, 2), Evidence(TOOLCHAIN, 1, 0, "2026-01-31", None, 1.0))


def write(folder: Path, writer: int, holder: Synchronized[int]) -> None:
    """Publish record after record, beginning after those that an earlier life of this writer acknowledged."""
    real = store._publish_locked

    def publish_locked(target: Path, database: Database) -> Database:
        holder.value = os.getpid()
        try:
            return real(target, database)
        finally:
            holder.value = 0

    store._publish_locked = publish_locked
    log = os.open(folder / f"writer-{writer}.log", os.O_RDWR | os.O_CREAT | os.O_APPEND)
    number = os.fstat(log).st_size // 2
    while True:
        store.publish(folder / "db" / store.file_name(DEVICE), Database(DEVICE, (record_of(writer, number),)))
        os.write(log, b"x\n")
        number += 1


def watch(folder: Path, found: Any) -> None:
    """Read until told otherwise: every file that readers take for a database is whole, and none loses a record."""
    reads, seen = 0, 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    while True:
        for path in store.database_files(folder / "db"):
            try:
                records = len(store.read(path).records)
            except MissingDatabaseError:
                continue
            except BaseException as error:
                if not isinstance(error, SystemExit):
                    found.put(f"{type(error).__name__}: {error}")
                raise
            if path.name != store.file_name(DEVICE) or records < seen:
                found.put(f"{path.name} with {records} records after {seen}")
            reads, seen = reads + 1, records
            found.put(reads)


def start(target: Callable[..., None], *arguments: Any) -> Any:
    process = FORK.Process(target=target, args=arguments, daemon=True)
    process.start()
    return process


def run(folder: Path, seconds: float, seed: int) -> dict[str, Any]:
    chance = random.Random(seed)
    holder = FORK.Value("i", 0, lock=False)
    found: Any = FORK.SimpleQueue()
    writers = [start(write, folder, number, holder) for number in range(WRITERS)]
    readers = [start(watch, folder, found) for _ in range(READERS)]
    kills = aimed = reads = 0
    complaints: list[str] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(chance.uniform(0, 0.02))
        number = chance.randrange(WRITERS)
        if chance.random() < 0.5:
            pid = holder.value
            number = next((n for n, process in enumerate(writers) if process.pid == pid), number)
            aimed += writers[number].pid == pid
            time.sleep(chance.uniform(0, 0.002))
        writers[number].kill()
        writers[number].join()
        writers[number] = start(write, folder, number, holder)
        kills += 1
        while not found.empty():
            item = found.get()
            reads += isinstance(item, int)
            complaints += [item] if isinstance(item, str) else []
    for process in writers:
        process.kill()
        process.join()
    for process in readers:
        process.terminate()
        process.join()
    # Nobody is left: the lock must be free at once.
    last = store.publish(folder / "db" / store.file_name(DEVICE), Database(DEVICE), lock_timeout_s=1.0)
    present = {(record.key.group - 1, record.key.kv_heads - 1) for record in last.records}
    logs = {number: folder / f"writer-{number}.log" for number in range(WRITERS)}
    acknowledged = {(n, i) for n, log in logs.items() if log.exists() for i in range(log.stat().st_size // 2)}
    return {
        "acknowledged": len(acknowledged),
        "writers_that_acknowledged": len({writer for writer, _ in acknowledged}),
        "lost": sorted(acknowledged - present),
        "kills": kills,
        "kills_of_the_holder": aimed,
        "reads": reads,
        "complaints": complaints[:5],
        "files": sorted(path.name for path in (folder / "db").iterdir()),
    }


if __name__ == "__main__":
    print(json.dumps(run(Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))))
