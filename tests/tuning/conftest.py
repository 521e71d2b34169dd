"""Optuna reports only what is wrong, and Triton's interpreter does nothing in vain."""

from __future__ import annotations

from collections.abc import Iterator

import optuna
import pytest

from ..zoo.quicker_interpreter import quicker_interpreter


@pytest.fixture(autouse=True)
def _quiet_optuna() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture(autouse=True, scope="module")
def _quicker_interpreter() -> Iterator[None]:
    with quicker_interpreter():
        yield
