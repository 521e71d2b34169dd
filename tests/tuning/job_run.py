"""A tuning job with a fake measurer, as a process of its own: ``python job_run.py STORAGE OUT TRIALS LOG [SLOW_MS]``.

Every trial appends a line to LOG. With SLOW_MS each takes that long.
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


def main(storage: str, out: str, trials: str, log: str, slow_ms: str = "0") -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
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
