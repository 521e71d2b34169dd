"""The ways in which the zoo decodes."""

from __future__ import annotations

from dataclasses import dataclass

PROMPT = 6  # tokens, padding included
TOKENS = 24  # decoded after them


@dataclass(frozen=True)
class Workload:
    """``padding``: of each sequence, how many padding tokens its prompt begins with; where none has any, no mask is
    passed, as users do. ``q_len``: tokens per step. ``tokens``: decoded in all."""

    name: str
    padding: tuple[int, ...]
    q_len: int = 1
    tokens: int = TOKENS

    def __str__(self) -> str:
        return self.name

    @property
    def batch(self) -> int:
        return len(self.padding)

    @property
    def steps(self) -> int:
        return self.tokens // self.q_len

    @property
    def masked(self) -> bool:
        return any(self.padding)


PADDED = Workload("batch 4", (0, 2, 4, 1))
SINGLE = Workload("batch 1", (0,))
CHUNKS = Workload("4 tokens", (0, 3), q_len=4)
WORKLOADS = (PADDED, SINGLE, CHUNKS)
