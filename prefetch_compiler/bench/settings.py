"""Settings: everything that one end-to-end run is asked to do."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from .case import RANDOM_LLAMA, RANDOM_MODEL_CASES, REAL_MODEL_CASES, Case
from .errors import NoRoomError
from .rounds import Rounds
from .variant import VARIANTS, Variant


@dataclass(frozen=True)
class Settings:
    """What to run. ``cases`` None takes the defaults for a random or a real model.

    Attributes:
        layers: of the random model; a real one keeps its own.
        mode: torch.compile's mode, of every variant.
        generated: tokens per sequence that a real model decodes for its tokens per second.
        oracle: also compute each case in float64.
        compile_repeats: cold compiles of Inductor and of ours to time; 0 leaves that out.
    """

    model: str = RANDOM_LLAMA
    layers: int = 8
    cases: tuple[Case, ...] | None = None
    variants: tuple[Variant, ...] = VARIANTS
    mode: str = "reduce-overhead"
    dtype: torch.dtype = torch.bfloat16
    rounds: Rounds = field(default_factory=Rounds)
    generated: int = 128
    profile: bool = False
    oracle: bool = True
    compile_repeats: int = 0
    seed: int = 0

    @property
    def has_random_model(self) -> bool:
        return self.model == RANDOM_LLAMA

    def chosen_cases(self) -> tuple[Case, ...]:
        """The cases to run.

        Raises:
            NoRoomError: the steps of a round, or the tokens to generate, outgrow a case's cache.
        """
        cases = self.cases or (RANDOM_MODEL_CASES if self.has_random_model else REAL_MODEL_CASES)
        for case in cases:
            longest = self.rounds.last_length(case.held)
            if not self.has_random_model:
                longest = max(longest, case.held + self.generated)
            if longest > case.capacity:
                raise NoRoomError(case, longest)
        return cases

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            **asdict(self),
            "cases": [str(case) for case in self.chosen_cases()],
            "variants": [variant.name for variant in self.variants],
            "dtype": str(self.dtype).removeprefix("torch."),
        }
