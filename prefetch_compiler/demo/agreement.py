"""Whether two greedy answers agree, and if not, whether eager itself was near a tie where they part."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from .generation import Answer


@dataclass(frozen=True)
class Difference:
    """The first step at which an answer leaves eager's.

    Attributes:
        step: number of the new token, from 0.
        eager_token: what eager chose; None when eager had stopped.
        other_token: what the other chose; None when it had stopped.
        eager_logit: eager's logit of its own token.
        eager_logit_of_other: eager's logit of the other's token.
        resolution: distance between neighbouring values of the model's dtype at ``eager_logit``.
    """

    step: int
    eager_token: int | None
    other_token: int | None
    eager_logit: float | None = None
    eager_logit_of_other: float | None = None
    resolution: float | None = None

    @property
    def gap(self) -> float | None:
        """By how much eager preferred its own token."""
        if self.eager_logit is None or self.eager_logit_of_other is None:
            return None
        return self.eager_logit - self.eager_logit_of_other

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "gap": self.gap}


def first_difference(eager: Answer, other: Answer, dtype: torch.dtype) -> Difference | None:
    """Where ``other`` first differs from ``eager`` (which must carry its logits), or None when they are equal."""
    for step in range(max(len(eager.tokens), len(other.tokens))):
        expected = eager.tokens[step] if step < len(eager.tokens) else None
        got = other.tokens[step] if step < len(other.tokens) else None
        if expected == got:
            continue
        if expected is None or got is None:
            return Difference(step, expected, got)
        logits = eager.logits[step]
        chosen = float(logits[expected])
        return Difference(step, expected, got, chosen, float(logits[got]), _resolution(chosen, dtype))
    return None


def _resolution(value: float, dtype: torch.dtype) -> float:
    """Spacing of ``dtype`` at ``value``: epsilon is the spacing at 1, and it doubles with every power of two."""
    _, exponent = torch.frexp(torch.tensor(value))
    return float(torch.finfo(dtype).eps * 2.0 ** (int(exponent) - 1))
