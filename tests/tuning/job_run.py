"""A tuning job with a fake measurer, as a process: ``python job_run.py STORAGE OUT TRIALS LOG SLOW_MS WORKERS``.

Every trial appends a line to LOG and takes SLOW_MS. None begins before as many WORKERS with logs in the same folder are
ready to: on a busy machine one would be done before another has imported what it needs.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import optuna

sys.path.insert(0, str(Path(__file__).parents[1]))

from tuning.fakes import H200, KEY, TOOLCHAIN, FakeMeasurer

from prefetch_compiler.tuning.job import JobSettings, tune_keys
from prefetch_compiler.tuning.storage import open_storage

READY_WITHIN_S = 100


def begin_together(log: Path, workers: int) -> None:
    log.with_suffix(".ready").touch()
    until = time.monotonic() + READY_WITHIN_S
    while len(list(log.parent.glob("*.ready"))) < workers:
        assert time.monotonic() < until, f"fewer than {workers} workers after {READY_WITHIN_S} s"
        time.sleep(0.01)


def main(storage: str, out: str, trials: str, log: str, slow_ms: str, workers: str) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    begin_together(Path(log), int(workers))
    measurer = FakeMeasurer(log=Path(log), noise=0.001, pause=lambda: time.sleep(int(slow_ms) / 1000))
    result = tune_keys(
        [KEY],
        measurer,
        profile=H200,
        toolchain=lambda key, config: TOOLCHAIN,
        storage=open_storage(storage),
        out=Path(out),
        settings=JobSettings(trials=int(trials), sampler="tpe-group", shared=True, timeout_s=60),
    )
    print(result.keys[0].ending.value, len(measurer.trials))


if __name__ == "__main__":
    main(*sys.argv[1:])
