"""The time of a decode step on a GPU, this backend beside plain Inductor, as ``generate`` runs them.

Both compile the same model in the same mode and decode the same prompt into static caches of the same size. Whole
answers alternate between the two, so that a drifting clock meets both. The first steps of each answer are left out:
every answer has a new cache, for which CUDA graphs are recorded again.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch

from .agreement import Difference, first_difference
from .generation import INDUCTOR, KVPREFETCH, Answer, DecodeSettings, Prompt, answer

ROUNDS = 3
TOKENS_PER_ANSWER = 64
_UNSETTLED_STEPS = 8


@dataclass(frozen=True)
class StepTime:
    """What one backend's decode step took, over all timed steps.

    Attributes:
        step_ms: the compiled model call, median.
        step_p20_ms, step_p80_ms: its 20th and 80th percentiles.
        token_ms: from one call's start to the next one's, median: the call and what ``generate`` does around it.
        steps: how many were timed.
        difference: the first token at which the timed answer differs from eager's, if any.
    """

    backend: str
    step_ms: float
    step_p20_ms: float
    step_p80_ms: float
    token_ms: float
    steps: int
    difference: Difference | None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        difference = None if self.difference is None else self.difference.to_dict()
        return {**asdict(self), "difference": difference, "tokens_per_s": 1e3 / self.token_ms}


def measure_steps(
    model: Any, tokenizer: Any, prompt: Prompt, capacity: int, on_answer: Callable[[], None]
) -> list[StepTime]:
    """Time both backends, Inductor first in the list; ``on_answer`` is called ``answers_to_measure()`` times."""
    settings = DecodeSettings(TOKENS_PER_ANSWER, capacity, min_new_tokens=TOKENS_PER_ANSWER)
    eager = answer(model, tokenizer, prompt, settings, keep_logits=True)
    on_answer()
    clocks = {backend: _StepClock() for backend in (INDUCTOR, KVPREFETCH)}
    answers: dict[str, Answer] = {}
    for round_number in range(1 + ROUNDS):
        for backend, clock in clocks.items():
            with _clocked(model, clock if round_number > 0 else None):
                answers[backend] = answer(model, tokenizer, prompt, settings, backend)
            clock.end_answer()
            on_answer()
    return [
        clock.summary(backend, first_difference(eager, answers[backend], model.dtype))
        for backend, clock in clocks.items()
    ]


def answers_to_measure() -> int:
    """How many answers ``measure_steps`` decodes: eager's, and each backend's warm-up and timed ones."""
    return 1 + 2 * (1 + ROUNDS)


class _StepClock:
    """CUDA events around every compiled call: they are read after the answer, so that no step waits for them."""

    def __init__(self) -> None:
        self._pending: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._step_ms: list[float] = []
        self._token_ms: list[float] = []

    def wrap(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start, end = _event(), _event()
            start.record()
            output = call(*args, **kwargs)
            end.record()
            self._pending.append((start, end))
            return output

        return timed

    def end_answer(self) -> None:
        torch.cuda.synchronize()
        settled = self._pending[_UNSETTLED_STEPS:]
        self._pending = []
        self._step_ms += [start.elapsed_time(end) for start, end in settled]
        self._token_ms += [this.elapsed_time(following) for (this, _), (following, _) in pairwise(settled)]

    def summary(self, backend: str, difference: Difference | None) -> StepTime:
        quintiles = statistics.quantiles(self._step_ms, n=5)
        return StepTime(
            backend=backend,
            step_ms=statistics.median(self._step_ms),
            step_p20_ms=quintiles[0],
            step_p80_ms=quintiles[3],
            token_ms=statistics.median(self._token_ms),
            steps=len(self._step_ms),
            difference=difference,
        )


def _event() -> torch.cuda.Event:
    event: torch.cuda.Event = torch.cuda.Event(enable_timing=True)
    return event


@contextmanager
def _clocked(model: Any, clock: _StepClock | None) -> Iterator[None]:
    """Time what ``generate`` calls for each decode step: the model's compiled call."""
    if clock is None:
        yield
        return
    compiled_call = model.get_compiled_call
    model.get_compiled_call = lambda config: clock.wrap(compiled_call(config))
    try:
        yield
    finally:
        del model.get_compiled_call
