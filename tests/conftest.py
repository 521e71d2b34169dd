"""Suite-wide setup: without a GPU every kernel runs in Triton's interpreter, and GPU tests are skipped."""

from __future__ import annotations

import os
from collections.abc import Iterator

import hypothesis
import pytest
import torch

# On a busy machine drawing examples is slow, and an example may take any time: neither says anything of the code.
hypothesis.settings.register_profile(
    "busy machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("busy machine")

# Triton reads the variable when a kernel is decorated, so it must be set before anything imports Triton.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Nor may the databases of whoever runs the tests have a say in them.
os.environ.pop("KVPREFETCH_TUNING_DB", None)


@pytest.fixture(autouse=True, scope="session")
def _no_databases_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    from prefetch_compiler.database import overlay

    nowhere = tmp_path_factory.mktemp("no databases of the user") / "tuning_db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overlay, "user_folder", lambda: nowhere)
        yield


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--whole-zoo", action="store_true", help="judge every cell of docs/coverage.md, not only the particular ones"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked ``gpu`` where torch sees no GPU."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a GPU: torch.cuda.is_available() is False")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)
