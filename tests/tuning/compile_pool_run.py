"""Uses the compile pool as the search does. Run as a script, without TRITON_INTERPRET in its environment; prints JSON.

With an argument, a folder: the assembler is replaced by one that never ends when it is first used, and
notes its process id in that folder then.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from prefetch_compiler.config import KernelConfig, Merge
from prefetch_compiler.database.key import parse_key
from prefetch_compiler.device import REFERENCE_DEVICES
from prefetch_compiler.tuning.compile_pool import CompileOutcome, CompilePool
from prefetch_compiler.tuning.protocol import TrialFailure

DEADLINE_S = 15.0
KEY = parse_key("float16 8q/2kv d64 q1 b4 s1024 bhsd-tma bool")
CONFIG = KernelConfig(block_kv=64, num_splits=4, num_warps=4, num_stages=2)
H200 = REFERENCE_DEVICES[90]

HANGING = """#!/bin/sh
case "$*" in
    *--version*) exec {real} "$@" ;;
    *.ptx*) if [ ! -e {folder}/pid ]; then echo $$ > {folder}/pid; exec sleep 600; fi ;;
esac
exec {real} "$@"
"""


def shown(outcome: CompileOutcome) -> Any:
    return outcome.kind.value if isinstance(outcome, TrialFailure) else [kernel.name for kernel in outcome]


def shared_kernels() -> dict[str, Any]:
    pool = CompilePool(H200, processes=2)
    variants = [
        (KEY, CONFIG),
        (KEY, replace(CONFIG, num_splits=3)),
        (KEY, replace(CONFIG, num_splits=7)),
        (KEY.at(batch=64, capacity=8192), CONFIG),
        (KEY, replace(CONFIG, merge=Merge.INPLACE)),
        (KEY, replace(CONFIG, num_splits=1)),
    ]
    try:
        outcomes = [pool.submit(key, config) for key, config in variants]
        return {"kernels": pool.kernels, "outcomes": [shown(future.result(100)) for future in outcomes]}
    finally:
        pool.close()


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]


def hanging_assembler(folder: Path) -> dict[str, Any]:
    from triton import knobs

    hanging = folder / "ptxas"
    hanging.write_text(HANGING.format(real=knobs.nvidia.ptxas.path, folder=folder))
    hanging.chmod(hanging.stat().st_mode | stat.S_IEXEC)
    os.environ["TRITON_PTXAS_PATH"] = str(hanging)
    pool = CompilePool(H200, processes=1, timeout_s=DEADLINE_S)
    try:
        start = time.monotonic()
        first = pool.submit(KEY, replace(CONFIG, num_splits=1)).result(60)
        seconds = time.monotonic() - start
        pid = int((folder / "pid").read_text())
        survived = alive(pid)
        second = pool.submit(KEY, replace(CONFIG, num_splits=1, block_kv=32)).result(60)
        return {"first": shown(first), "seconds": seconds, "survived": survived, "second": shown(second)}
    finally:
        pool.close()


if __name__ == "__main__":
    assert shutil.which("sleep")
    print(json.dumps(hanging_assembler(Path(sys.argv[1])) if len(sys.argv) > 1 else shared_kernels()))
