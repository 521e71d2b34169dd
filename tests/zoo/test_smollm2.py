"""A real model says, word for word, what it says eagerly: with every attention implementation and cache."""

from __future__ import annotations

from functools import partial

import pytest

from .caches import KINDS
from .cell import ATTENTIONS, Cell
from .judge import compiled_run
from .smollm2 import PROMPTS, SMOLLM2, continuation, texts

# Triton's interpreter warns at every scalar that it converts: recording them takes longer than computing.
pytestmark = pytest.mark.filterwarnings("ignore")

SPOKEN = Cell(SMOLLM2, "sdpa", "static")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """``cell``, ``prompts`` and ``tokens``: one prompt in the usual suite, five in every cell under --whole-zoo."""
    if "cell" not in metafunc.fixturenames:
        return
    cells = [Cell(SMOLLM2, attention, cache) for attention in ATTENTIONS for cache in KINDS]
    whole = [(cell, PROMPTS, 6) for cell in cells]
    quick = [(SPOKEN, PROMPTS[:1], 3)]
    runs = whole if metafunc.config.getoption("whole_zoo") else quick
    metafunc.parametrize(("cell", "prompts", "tokens"), runs, ids=[str(cell) for cell, *_ in runs])


def test_the_text_is_eagers(cell: Cell, prompts: tuple[str, ...], tokens: int) -> None:
    eager = texts(continuation(cell, prompts, tokens))
    ours = compiled_run(partial(continuation, cell, prompts, tokens))
    assert eager[0].startswith(" Paris")
    assert texts(ours.run) == eager
    assert ours.report.graphs > 0
    assert len(ours.report.lowered) == len(ours.report.sites) == SMOLLM2.sites * ours.report.graphs, str(ours.report)
