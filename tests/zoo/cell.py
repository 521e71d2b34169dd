"""The cells of the coverage table: architecture, attention implementation, cache."""

from __future__ import annotations

from dataclasses import dataclass

from .models import ZOO
from .workload import PADDED, WORKLOADS, Workload
from .zoo_model import ZooModel

ATTENTIONS = ("sdpa", "eager", "flex_attention")
CACHES = ("static", "dynamic")
# A quantised cache is the same code in all; the attention after it is not: one architecture for each way to write it.
QUANTISED = ("Llama", "Qwen2", "Phi3", "Gemma2", "GPT-2", "GPT-NeoX", "Falcon", "BLOOM", "Mixtral", "BART")


@dataclass(frozen=True)
class Cell:
    """One cell of the table."""

    model: ZooModel
    attention: str = "sdpa"
    cache: str = "static"

    @property
    def key(self) -> str:
        """What the record calls it."""
        return f"{self.model} / {self.attention} / {self.cache}"

    @property
    def workloads(self) -> tuple[Workload, ...]:
        """All of them, but where every length that a cache grows to compiles FlexAttention anew, which takes long."""
        compiled_often = self.attention == "flex_attention" and self.cache != "static"
        return (PADDED,) if compiled_often else WORKLOADS

    def __str__(self) -> str:
        return self.key.replace(" / ", "-")


def all_cells() -> tuple[Cell, ...]:
    """Every cell, in the table's order."""
    return tuple(
        Cell(zoo_model, attention, cache)
        for zoo_model in ZOO
        for attention in ATTENTIONS
        for cache in (*CACHES, *(["fp8"] if zoo_model.name in QUANTISED else []))
    )
