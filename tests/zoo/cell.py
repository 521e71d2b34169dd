"""The cells of the coverage table: architecture, attention implementation, cache."""

from __future__ import annotations

from dataclasses import dataclass

from .models import ZOO
from .workload import PADDED, WORKLOADS, Workload
from .zoo_model import ZooModel

ATTENTIONS = ("sdpa", "eager", "flex_attention")
CACHES = ("static", "dynamic")
# One architecture for each way to write attention. A quantised cache, for one, is the same code before all of them.
EXEMPLARS = ("Llama", "Qwen2", "Phi3", "Gemma2", "GPT-2", "GPT-NeoX", "Falcon", "BLOOM", "Mixtral", "BART")


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
        """All of them; FlexAttention, which Dynamo compiles anew for many lengths, is judged by one in most cells."""
        if self.attention == "flex_attention" and not (self.model.name in EXEMPLARS and self.cache == "static"):
            return (PADDED,)
        return WORKLOADS

    def __str__(self) -> str:
        return self.key.replace(" / ", "-")


def all_cells() -> tuple[Cell, ...]:
    """Every cell, in the table's order."""
    return tuple(
        Cell(zoo_model, attention, cache)
        for zoo_model in ZOO
        for attention in ATTENTIONS
        for cache in (*CACHES, *(["fp8"] if zoo_model.name in EXEMPLARS else []))
    )
