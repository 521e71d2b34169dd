"""``python -m tests.gpu.soak``: SmolLM2, its real weights in float32, decodes for minutes on end and stays right.

Conversations of random length and batch size go into caches of two capacities, some until the cache is full; each
begins with a reset of the cache. Every so often a conversation is repeated by the eager model, without a cache and in
one go, and all of its tokens have to be the eager model's, unless that is near a tie itself. Memory has to stay as it
is, and nothing may be compiled, once every shape has come twice.

Prints a JSON summary. Exits with 1 where something is wrong."""

from __future__ import annotations

import argparse
import gc
import json
import random
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.utils import counters

from prefetch_compiler.bench.state import StepState
from prefetch_compiler.lower import ops
from prefetch_compiler.report import collect_reports

BATCHES, CAPACITIES = (1, 3, 8), (192, 448)
CHECKED_EVERY = 4
# Neighbouring numbers by which two ways to compute a logit in float32 may differ after many layers.
RESOLUTIONS = 2**10
# Of the allocator's blocks; a leak of one small tensor a step takes more within a minute.
KEPT_BYTES = 1 << 20
MODE = {"kvprefetch.mode": "reduce-overhead"}


@dataclass
class Summary:
    """What happened. ``allocated_bytes`` are those at the end of the warm-up and of the run, and the most in between;
    None without a GPU."""

    minutes: float = 0.0
    conversations: int = 0
    steps: int = 0
    filled_caches: int = 0
    checked_tokens: int = 0
    near_ties: int = 0
    graphs: int = 0
    sites: int = 0
    allocated_bytes: tuple[int, int, int] | None = None
    problems: list[str] = field(default_factory=list)


Decode = Callable[..., Any]


class Soak:
    """Conversations with one ``model``, float32. ``text`` gives real tokens (batch, length); ``compiled`` is the model
    as it decodes."""

    def __init__(
        self,
        model: Any,
        text: Callable[[int, int], Tensor],
        compiled: Decode,
        batches: tuple[int, ...] = BATCHES,
        capacities: tuple[int, ...] = CAPACITIES,
        seed: int = 0,
    ) -> None:
        self.model, self.text, self.compiled = model, text, compiled
        self.random = random.Random(seed)
        self.states = [StepState.create(model, batch, capacity) for batch in batches for capacity in capacities]
        self.summary = Summary()

    def run(self, seconds: float) -> Summary:
        began, compiled_before = time.monotonic(), _graphs()
        with collect_reports() as report, torch.no_grad():
            for state in self.states * 2:
                self._conversation(state, checked=True)
            graphs, allocated = _graphs(), _allocated()
            most = allocated
            # Whoever ends it early is told what was found until then; how long that was is part of the summary.
            with suppress(KeyboardInterrupt):
                while time.monotonic() - began < seconds:
                    checked = self.summary.conversations % CHECKED_EVERY == 0
                    self._conversation(self.random.choice(self.states), checked)
                    most = max(most, _allocated())
        left = [site.reason for site in report.sites if site.decode and not site.lowered]
        self.summary.problems += [f"a site was not lowered: {reason}" for reason in left]
        self.summary.problems += [f"kernel {config} failed to launch" for config in ops._failed_configs]
        self.summary.graphs = _graphs() - compiled_before
        self._finish(_graphs() - graphs, allocated, most)
        self.summary.sites = len(report.lowered)
        self.summary.minutes = (time.monotonic() - began) / 60
        return self.summary

    def _finish(self, compiled_late: int, allocated: int, most: int) -> None:
        summary = self.summary
        if not summary.filled_caches:
            summary.problems.append("no cache was filled")
        if compiled_late:
            summary.problems.append(f"{compiled_late} graphs were compiled after the warm-up")
        if self.model.device.type != "cuda":
            return
        summary.allocated_bytes = allocated, _allocated(), most
        if most > allocated + KEPT_BYTES:
            summary.problems.append(f"{most - allocated} bytes more than after the warm-up are allocated")

    def _conversation(self, state: StepState, checked: bool) -> None:
        batch = state.token.shape[0]
        length = self.random.randint(1, state.capacity - 2)
        room = state.capacity - length
        steps = room if self.random.random() < 0.5 else self.random.randint(1, room)
        state.cache.reset()
        state.prompt = self.text(batch, length + 1).to(self.model.device)
        state.fill(length, seed=self.random.randrange(2**31))
        fed = [state.prompt[:, :length], state.token.clone()]
        for _ in range(steps):
            torch.compiler.cudagraph_mark_step_begin()
            logits = self.compiled(**state.step_inputs()).logits
            state.token.copy_(logits[:, -1:].argmax(-1))
            fed.append(state.token.clone())
        self.summary.conversations += 1
        self.summary.steps += steps
        self.summary.filled_caches += steps == room
        if checked:
            self._check(torch.cat(fed, 1), steps, f"batch {batch}, {length} + {steps} of {state.capacity}")

    def _check(self, tokens: Tensor, steps: int, name: str) -> None:
        """The last ``steps`` tokens beside what the eager model says after those before them."""
        logits = self.model(tokens[:, :-1], use_cache=False).logits[:, -steps:].float()
        ours = tokens[:, -steps:]
        largest, best = logits.max(-1)
        gap = largest - logits.gather(-1, ours[..., None])[..., 0]
        allowed = RESOLUTIONS * torch.finfo(torch.float32).eps * logits.abs().amax(-1)
        self.summary.checked_tokens += ours.numel()
        self.summary.near_ties += int(((best != ours) & (gap <= allowed)).sum())
        wrong = int((~(gap <= allowed)).sum())
        if wrong:
            self.summary.problems.append(f"{wrong} of {ours.numel()} tokens are not eager's: {name}")


def _graphs() -> int:
    return int(counters["stats"]["unique_graphs"])


def _allocated() -> int:
    """Bytes, once garbage is collected."""
    gc.collect()
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else 0


def smollm2(device: torch.device) -> tuple[Any, Callable[[int, int], Tensor]]:
    """The model, and text for it."""
    from prefetch_compiler.bench.prompt import prompt_tokens
    from prefetch_compiler.demo.model_source import BUNDLED_MODEL, find_model, load_model, load_tokenizer

    source = find_model(BUNDLED_MODEL)
    tokenizer = load_tokenizer(source)
    return load_model(source, torch.float32, device), lambda batch, length: prompt_tokens(
        tokenizer, batch, length, device
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if not torch.cuda.is_available():
        print("error: the soak runs on a GPU, and torch sees none here", file=sys.stderr)
        return 2
    model, text = smollm2(torch.device("cuda"))
    compiled = torch.compile(model, backend="kvprefetch", dynamic=False, options=MODE)
    summary = Soak(model, text, compiled, seed=given.seed).run(60 * given.minutes)
    print(json.dumps(asdict(summary), indent=1))
    return 1 if summary.problems else 0


if __name__ == "__main__":
    sys.exit(main())
