"""Decode steps of a Hugging Face model that has no data: parameters, cache and tokens are shapes only.

Fake tensors claim to lie on the CPU. Neither transformers nor the graph passes up to recognition ask for the device in
a way that changes a site.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ..demo.decode_state import CacheKind
from ..demo.errors import ModelNotLoadedError
from .traced_sites import SiteTracer, TracedSite

# After one step a dynamic cache has another length, which makes the length symbolic, as it stays from then on.
_STEPS = {CacheKind.STATIC: 1, CacheKind.DYNAMIC: 2}


@dataclass(frozen=True)
class FakeDecode:
    """One decode step to trace: ``held`` keys are in the cache before it; ``capacity`` is a static cache's."""

    batch: int
    capacity: int
    held: int
    dtype: torch.dtype
    cache: CacheKind
    attention: str


def trace_decode(config: Any, name: str, step: FakeDecode) -> list[TracedSite]:
    """The attention sites of the graphs that serve decode steps from then on.

    Raises:
        ModelNotLoadedError: ``config`` is not a causal language model's.
    """
    tracer = SiteTracer()
    with without_data():
        model = _build(config, name, step)
        cache = _new_cache(model.config, step)
        tokens = torch.zeros((step.batch, step.held), dtype=torch.long)
        model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
        compiled: Callable[..., Any] = torch.compile(model, backend=tracer)
        for _ in range(_STEPS[step.cache]):
            before = len(tracer.graphs)
            compiled(input_ids=tokens[:, :1], past_key_values=cache, use_cache=True)
            last = tracer.graphs[before:]
    return [site for graph in last for site in graph]


@contextmanager
def without_data() -> Iterator[FakeTensorMode]:
    """Tensors are shapes only, gradients off, and what torch.compile remembers is forgotten before and after."""
    torch._dynamo.reset()
    try:
        with warnings.catch_warnings(), FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
            warnings.simplefilter("ignore")  # about numerics and speed, of which there are none here
            yield mode
    finally:
        torch._dynamo.reset()


def _build(config: Any, name: str, step: FakeDecode) -> Any:
    from transformers import AutoModelForCausalLM

    build: Callable[..., Any] = AutoModelForCausalLM.from_config
    try:
        return build(config, dtype=step.dtype, attn_implementation=step.attention).eval()
    except (ValueError, ImportError) as error:
        raise ModelNotLoadedError(name, error) from error


def _new_cache(config: Any, step: FakeDecode) -> Any:
    from transformers import DynamicCache, StaticCache

    if step.cache is CacheKind.STATIC:
        return StaticCache(config=config, max_cache_len=step.capacity)
    return DynamicCache(config=config)
