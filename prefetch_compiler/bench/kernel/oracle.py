"""Whether a kernel computed what it should: its output against float64, from the launch that is measured.

Our kernels must stay within the error bound derived for these inputs (``error_bound``). Peers make other roundings, for
which nothing was derived: what they err is shown in the same unit, and only what no rounding explains counts as wrong.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...error_bound import GivenProblem, Yardstick, yardstick
from .operands import Operands

OUR_LIMIT = 1.0
# A peer that misses a key, or reads one too many, errs some hundred times the bound (``operands`` sees to that).
PEER_LIMIT = 10.0
# K and V that one check looks at; of more, some sequences are checked.
CHECKED_BYTES = 1 << 30


@dataclass(frozen=True)
class Correctness:
    """One output against float64.

    Attributes:
        bound_share: the largest error over the error bound; None where an output is not finite.
        relative_error: ‖output − exact‖ / ‖exact‖; None likewise.
        limit: what ``bound_share`` may be.
        sequences: how many of the batch were looked at.
    """

    bound_share: float | None
    relative_error: float | None
    limit: float
    sequences: int

    @property
    def right(self) -> bool:
        return self.bound_share is not None and self.bound_share <= self.limit

    def describe(self) -> str:
        if self.bound_share is None or self.relative_error is None:
            return "outputs that are not finite"
        return f"errors {self.bound_share:.3g} times the bound, {self.relative_error:.2g} relative"


class Oracle:
    """The float64 answer to one cache of a case, the last unless told otherwise."""

    def __init__(self, operands: Operands, cache: int = -1) -> None:
        self._rows = checked_sequences(operands.lengths, operands.case.kv_bytes_per_key)
        k, v = operands.sequences(cache, self._rows)
        held = torch.tensor([operands.lengths[row] for row in self._rows], device=k.device)
        mask = (torch.arange(k.shape[2], device=k.device) < held[:, None])[:, None, None, :]
        problem = GivenProblem(operands.q[self._rows], k, v, mask, False, operands.case.scale)
        self._yardstick: Yardstick = yardstick(problem)

    def judge(self, output: Tensor, limit: float) -> Correctness:
        """``output`` is (batch, query_heads, head_dim)."""
        actual = output[self._rows].unsqueeze(2)
        answer = self._yardstick.answer
        share = self._yardstick.share(actual)
        relative = float((actual.double() - answer).norm() / answer.norm())
        finite = math.isfinite(share) and math.isfinite(relative)
        return Correctness(
            bound_share=share if finite else None,
            relative_error=relative if finite else None,
            limit=limit,
            sequences=len(self._rows),
        )


def checked_sequences(lengths: tuple[int, ...], bytes_per_key: int, most_bytes: int = CHECKED_BYTES) -> list[int]:
    """All sequences where that is affordable; else the longest, the shortest, the last, and others spread over the
    batch, as far as ``most_bytes`` go, but always one."""
    batch = len(lengths)
    by_length = sorted(range(batch), key=lambda row: lengths[row])
    stride = max(1, batch // 16)
    order = dict.fromkeys([by_length[-1], by_length[0], batch - 1, 0, *range(0, batch, stride), *range(batch)])
    chosen: list[int] = []
    for row in order:
        longest = max(lengths[row], *(lengths[other] for other in chosen)) if chosen else lengths[row]
        if chosen and (len(chosen) + 1) * longest * bytes_per_key > most_bytes:
            break
        chosen.append(row)
    return sorted(chosen)
