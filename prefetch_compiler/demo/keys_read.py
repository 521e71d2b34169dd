"""How many keys each site of the demonstration's model read: observed, not computed from the prompt's length."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..explainer import explain
from ..lower.ops import observe_keys_read
from ..report import Report
from .generation import DecodeSettings, Prompt


@contextmanager
def observed_reads(report: Report, device: torch.device) -> Iterator[None]:
    """Note in ``report`` what the last step inside the ``with`` block read.

    Only in the interpreter: on a GPU the steps are CUDA graphs, in which nothing can be read back.
    """
    if device.type == "cuda":
        yield
        return
    with observe_keys_read() as keys_read:
        yield
    if report.graphs == 1:  # sites are numbered within their graph
        for site in report.lowered:
            site.keys_read = keys_read.get(site.index)


def explain_reads(report: Report, model: Any, prompt: Prompt, settings: DecodeSettings) -> None:
    """Note in ``report`` what one decode step after the prompt reads, compiled once more without CUDA graphs."""
    from transformers import StaticCache

    cache = StaticCache(config=model.config, max_cache_len=settings.capacity)
    tokens = prompt.inputs["input_ids"]
    with torch.no_grad():
        logits = model(input_ids=tokens, past_key_values=cache, use_cache=True).logits
    token = logits[:, -1:].argmax(-1)
    explained = explain(model, input_ids=token, past_key_values=cache, use_cache=True)
    keys_read = {site.layer: site.keys_read for site in explained.lowered}
    for site in report.lowered:
        site.keys_read = keys_read.get(site.layer)
