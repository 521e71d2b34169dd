"""Kernels run in Triton's interpreter less what it does in vain; tests/interpret has it as users have it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ..zoo.quicker_interpreter import quicker_interpreter


@pytest.fixture(autouse=True, scope="module")
def _quicker_interpreter() -> Iterator[None]:
    with quicker_interpreter():
        yield
