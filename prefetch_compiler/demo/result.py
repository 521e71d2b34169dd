"""What a demonstration found, as data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from ..report import Report
from .agreement import Difference
from .generation import Answer, DecodeSettings, Prompt
from .step_time import StepTime


@dataclass(frozen=True)
class DemoResult:
    """Attributes:
    seconds: wall-clock time of each stage; of interest to whoever waits, no measurement of a kernel.
    steps: the timed backends; empty without a GPU.
    """

    model: str
    device: torch.device
    dtype: torch.dtype
    interpreted: bool
    prompt: Prompt
    settings: DecodeSettings
    eager: Answer
    compiled: Answer
    difference: Difference | None
    report: Report
    seconds: dict[str, float]
    steps: list[StepTime] = field(default_factory=list)

    @property
    def tokens_equal(self) -> bool:
        return self.difference is None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "model": self.model,
            "device": str(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "interpreted": self.interpreted,
            "prompt": {"text": self.prompt.text, "tokens": self.prompt.length},
            "capacity": self.settings.capacity,
            "eager": {"text": self.eager.text, "tokens": self.eager.tokens},
            "compiled": {"text": self.compiled.text, "tokens": self.compiled.tokens},
            "tokens_equal": self.tokens_equal,
            "difference": None if self.difference is None else self.difference.to_dict(),
            "report": self.report.to_dict(),
            "seconds": self.seconds,
            "steps": [step.to_dict() for step in self.steps],
        }
