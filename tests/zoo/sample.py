"""What the usual suite judges: the most particular cell of each architecture that has one, so that every way to write
attention, implementation, cache, workload and outcome is among them; and what transformers refuses, which costs
nothing.

Compiling takes most of the time: a step without a mask into a static cache is one graph, a growing cache, a padding
mask and FlexAttention's masks are two or three. Architectures that are to the compiler what another is are for
--whole-zoo.
"""

from __future__ import annotations

from .cell import Cell, all_cells
from .models import named
from .outcome import Kind
from .record import Record
from .workload import CHUNKS, PADDED, SINGLE, Workload

Run = tuple[Cell, Workload]

# What no other architecture shows as well.
PARTICULAR = (
    ("Llama", "sdpa", "static", SINGLE),
    ("Qwen2", "eager", "fp8", CHUNKS),  # keys and values dequantised before they are repeated
    ("Qwen2", "flex_attention", "fp8", PADDED),
    ("Phi3", "sdpa", "fp8", SINGLE),  # one projection for queries, keys and values
    ("OLMo", "flex_attention", "dynamic", PADDED),
    ("Mistral", "sdpa", "dynamic", CHUNKS),  # a window that the cache slides with
    ("Gemma2", "eager", "dynamic", CHUNKS),  # a soft cap, and windows in every other layer
    ("gpt-oss", "eager", "static", CHUNKS),  # sinks
    ("Qwen3-Next", "eager", "static", SINGLE),  # layers with a state and no keys
    ("Mixtral", "sdpa", "static", SINGLE),
    ("DeepSeek-V3", "eager", "static", SINGLE),  # keys wider than values, expanded from what is latent
    ("GPT-Neo", "eager", "static", CHUNKS),  # masks from a buffer, filled in; windows in every other layer
    ("GPT-NeoX", "flex_attention", "static", SINGLE),
    ("GPT-J", "eager", "static", SINGLE),  # widened to float32 for the product alone
    ("GPT-BigCode", "eager", "static", SINGLE),  # one KV head
    ("BLOOM", "eager", "static", PADDED),  # ALiBi in a baddbmm
    ("MPT", "eager", "static", SINGLE),  # a graph that breaks inside attention
    ("MPT", "eager", "dynamic", SINGLE),  # ALiBi added, a mask filled in
    ("T5", "eager", "static", SINGLE),  # relative positions
    ("Whisper", "sdpa", "static", SINGLE),
    ("BART", "sdpa", "dynamic", CHUNKS),  # an encoder's output, masked, beside a growing cache
)


def all_runs() -> tuple[Run, ...]:
    """Every cell under each of its workloads."""
    return tuple((cell, workload) for cell in all_cells() for workload in cell.workloads)


def representative(record: Record) -> tuple[Run, ...]:
    """In the table's order."""
    chosen = {(Cell(named(name), attention, cache), workload) for name, attention, cache, workload in PARTICULAR}
    refused = {(cell, cell.workloads[0]) for cell in all_cells() if _refused(cell, record)}
    return tuple(run for run in all_runs() if run in chosen | refused)


def _refused(cell: Cell, record: Record) -> bool:
    """By transformers."""
    kinds = {outcome.kind for outcome in record.of(cell).values()}
    return kinds == {Kind.UNSUPPORTED}
