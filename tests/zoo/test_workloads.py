"""The zoo decodes what it says that it does, and knows how many attentions a step has without asking our backend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from .cell import Cell, all_cells
from .decode import decode, prompt
from .models import LLAMA, ZOO
from .workload import CHUNKS, PADDED, SINGLE, Workload
from .zoo_model import VOCABULARY, ZooModel


@pytest.mark.parametrize(
    ("workload", "steps", "batch", "q_len"), [(PADDED, 24, 4, 1), (SINGLE, 24, 1, 1), (CHUNKS, 6, 2, 4)], ids=str
)
def test_a_workload_is_24_tokens_of_each_sequence(workload: Workload, steps: int, batch: int, q_len: int) -> None:
    decoded = decode(Cell(LLAMA), workload)
    assert decoded.logits.shape == (steps, batch, q_len, VOCABULARY)
    assert decoded.fed.shape == (steps, batch, q_len)
    if q_len == 1:
        assert torch.equal(decoded.fed[1:], decoded.tokens[:-1])  # greedy


def test_prompts_are_left_padded_where_a_batch_is_ragged() -> None:
    _, mask = prompt(PADDED)
    assert torch.equal(mask, mask.sort(dim=-1).values)
    assert len(set(mask.sum(-1).tolist())) > 1


def test_every_cell_has_the_ragged_batch_and_those_of_sdpa_and_eager_all_workloads() -> None:
    for cell in all_cells():
        assert PADDED in cell.workloads
        assert set(cell.workloads) == {PADDED, SINGLE, CHUNKS} or cell.attention == "flex_attention"


class _Softmaxes(TorchDispatchMode):
    """Counts those over keys: of experts' scores there are fewer dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.count += function is torch.ops.aten._softmax.default and args[0].ndim > 2
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("zoo_model", ZOO, ids=str)
def test_sites_are_the_softmaxes_of_one_eager_step(zoo_model: ZooModel) -> None:
    softmaxes = _Softmaxes()

    def counted(model: Any) -> Callable[..., Any]:
        def step(**arguments: Any) -> Any:
            with softmaxes:
                return model(**arguments)

        return step

    decode(Cell(zoo_model, "eager", "dynamic"), replace(SINGLE, tokens=1), counted)
    assert softmaxes.count == zoo_model.sites
