"""The demonstration: load, answer eagerly, answer through the backend, compare, and on a GPU time both compilers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..device import interpreting
from ..report import collect_reports
from .agreement import first_difference
from .device_choice import choose_device, choose_dtype
from .errors import CapacityError
from .generation import KVPREFETCH, DecodeSettings, Prompt, answer, encode_prompt
from .keys_read import explain_reads, observed_reads
from .model_source import find_model, load_model, load_tokenizer, quiet_transformers
from .progress import StageProgress
from .result import DemoResult
from .step_time import TOKENS_PER_ANSWER, StepTime, answers_to_measure, measure_steps

# The interpreter runs each kernel program as Python, so it is given little to do; the cache is still mostly empty.
_DEFAULT_NEW_TOKENS = {"cpu": 8, "cuda": 64}
_DEFAULT_CAPACITY = {"cpu": 256, "cuda": 4096}


@dataclass(frozen=True)
class DemoRequest:
    """What the command line asks for; None means the default of the device that is chosen.

    Attributes:
        capacity: keys that the static cache has room for.
    """

    model: str
    prompt: str
    max_new_tokens: int | None = None
    capacity: int | None = None
    dtype: str | None = None
    device: str | None = None


def run_demo(request: DemoRequest, progress: StageProgress) -> DemoResult:
    """Run the whole demonstration.

    Raises:
        KVPrefetchError: something that the request names is missing, unknown or too small.
    """
    source = find_model(request.model)
    device = choose_device(request.device)
    dtype = choose_dtype(request.dtype, device)
    quiet_transformers()
    with progress.stage(f"load {source.name}"):
        tokenizer, model = load_tokenizer(source), load_model(source, dtype, device)
    prompt = encode_prompt(tokenizer, request.prompt, device)
    settings = _settings(request, prompt, device)
    with progress.stage("answer eagerly", settings.max_new_tokens) as on_token:
        eager = answer(model, tokenizer, prompt, settings, on_token=on_token, keep_logits=True)
    compiling = progress.stage("compile and answer with kvprefetch", settings.max_new_tokens)
    with compiling as on_token, collect_reports() as report, observed_reads(report, device):
        compiled = answer(model, tokenizer, prompt, settings, KVPREFETCH, on_token)
    steps = _step_times(model, tokenizer, prompt, settings, device, progress)
    if device.type == "cuda":
        with progress.stage("count the KV bytes of one more step"):
            explain_reads(report, model, prompt, settings)
    return DemoResult(
        model=source.name,
        device=device,
        dtype=dtype,
        interpreted=interpreting(),
        prompt=prompt,
        settings=settings,
        eager=eager,
        compiled=compiled,
        difference=first_difference(eager, compiled, dtype),
        report=report,
        steps=steps,
        seconds=progress.seconds,
    )


def _settings(request: DemoRequest, prompt: Prompt, device: torch.device) -> DecodeSettings:
    new_tokens = request.max_new_tokens or _DEFAULT_NEW_TOKENS[device.type]
    needed = prompt.length + new_tokens
    capacity = request.capacity or max(_DEFAULT_CAPACITY[device.type], needed)
    if capacity < needed:
        raise CapacityError(capacity, needed)
    return DecodeSettings(new_tokens, capacity)


def _step_times(
    model: Any, tokenizer: Any, prompt: Prompt, settings: DecodeSettings, device: torch.device, progress: StageProgress
) -> list[StepTime]:
    if device.type != "cuda":
        return []
    capacity = max(settings.capacity, prompt.length + TOKENS_PER_ANSWER)
    with progress.stage("time decode steps: Inductor, kvprefetch", answers_to_measure()) as on_answer:
        return measure_steps(model, tokenizer, prompt, capacity, on_answer)
