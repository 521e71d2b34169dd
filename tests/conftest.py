"""Suite-wide setup: without a GPU every kernel runs in Triton's interpreter, and GPU tests are skipped."""

from __future__ import annotations

import functools
import gc
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import pytest
import torch

# On a busy machine drawing examples is slow, and an example may take any time: neither says anything of the code.
hypothesis.settings.register_profile(
    "other examples each time",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    derandomize=False,
)
# A change is judged by what it does, and not by which examples it happens to meet: those are the same each time, until
# the test itself changes. Examples that nobody has met are looked for on purpose, under the other profile.
hypothesis.settings.register_profile(
    "the same examples", hypothesis.settings.get_profile("other examples each time"), derandomize=True, database=None
)
hypothesis.settings.load_profile("the same examples")

# Triton reads the variable when a kernel is decorated, so it must be set before anything imports Triton.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
    # Tensors this small have nothing for a second thread to do, and threads that wait for each other take long.
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # in processes that tests start

# Pytest listens to every logger that does not propagate, and whenever someone listens to this one PyTorch writes out
# every graph that it compiles, several times, as text.
if "TORCH_TRACE" not in os.environ:
    trace = logging.getLogger("torch.__trace")
    trace.handlers.clear()
    trace.propagate = True

# Tables are as wide wherever the tests run.
os.environ["COLUMNS"] = "120"

# Nor may the databases of whoever runs the tests have a say in them.
os.environ.pop("KVPREFETCH_TUNING_DB", None)


@pytest.fixture(scope="session")
def printed_apart() -> Callable[[str, float], Any]:
    """The JSON that a test module prints last, as a script within so many seconds. Triton compiles there: where it was
    imported under TRITON_INTERPRET, it does not."""

    def run(script: str, seconds: float) -> Any:
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        done = subprocess.run(
            [sys.executable, script], env=environment, capture_output=True, text=True, check=False, timeout=seconds
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


@pytest.fixture(autouse=True, scope="session")
def _no_databases_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    from prefetch_compiler.database import overlay

    nowhere = tmp_path_factory.mktemp("no databases of the user") / "tuning_db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overlay, "user_folder", lambda: nowhere)
        yield


@pytest.fixture(autouse=True, scope="session")
def _shipped_databases_are_read_once() -> Iterator[None]:
    """torch.compiler.reset() has every file read anew, and tests reset before almost every compile."""
    from prefetch_compiler.database import overlay

    folder, read = overlay.shipped_folder(), overlay.read
    remembered = functools.cache(read)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overlay, "read", lambda path: (remembered if path.parent == folder else read)(path))
        yield


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--whole-zoo", action="store_true", help="judge every cell of docs/coverage.md, not only the particular ones"
    )


def pytest_collection_finish() -> None:
    """What is imported by now stays. Looking through it for garbage, as every compile makes Python do, takes longer
    than many a test."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked ``gpu`` where torch sees no GPU."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a GPU: torch.cuda.is_available() is False")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)
