"""PaperCase: one model's attention at one batch size and context length."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from ...errors import InvalidOptionError
from ...spec import AttentionSpec, TensorLayout
from .models import PAPER_BATCH, PAPER_CONTEXT, PaperModel, model_named

BATCHES = (1, 16, 64)
CONTEXTS = (527, 1039, 2063, 4111, 8704)
QUICK_BATCHES = (1, 64)
QUICK_CONTEXTS = (527, 4111)
DTYPE = torch.float16


@dataclass(frozen=True)
class PaperCase:
    """``batch`` sequences, each of which holds ``context`` keys, in fp16."""

    model: PaperModel
    batch: int
    context: int

    def __post_init__(self) -> None:
        if self.batch < 1 or self.context < 1:
            raise InvalidOptionError("case", f"{self.batch}x{self.context}", "a batch and a context of at least 1")

    def __str__(self) -> str:
        return f"{self.model.name}:{self.batch}x{self.context}"

    @staticmethod
    def parse(text: str) -> PaperCase:
        """``"Llama3-8B:64x527"``, the inverse of ``str``.

        Raises:
            InvalidOptionError: ``text`` is not such a case.
        """
        match = re.fullmatch(r"([^:]+):(\d+)x(\d+)", text.strip())
        if match is None:
            raise InvalidOptionError("case", text, "MODEL:BATCHxCONTEXT, like Llama3-8B:64x527")
        return PaperCase(model_named(match[1]), int(match[2]), int(match[3]))

    @property
    def is_the_papers(self) -> bool:
        """Whether the paper reports a gain for this batch and context."""
        return (self.batch, self.context) == (PAPER_BATCH, PAPER_CONTEXT)

    @property
    def kv_bytes(self) -> int:
        """Bytes of K and V, each read once."""
        model = self.model
        return self.batch * model.kv_heads * self.context * model.head_dim * 2 * DTYPE.itemsize

    def spec(self) -> AttentionSpec:
        """The site that our kernel sees: contiguous caches (batch, kv_heads, context, head_dim), full, without mask."""
        model = self.model
        layout = TensorLayout(
            model.kv_heads * self.context * model.head_dim, self.context * model.head_dim, model.head_dim
        )
        return AttentionSpec(
            batch=self.batch,
            query_heads=model.query_heads,
            kv_heads=model.kv_heads,
            q_len=1,
            kv_len=self.context,
            head_dim=model.head_dim,
            value_dim=model.head_dim,
            dtype=DTYPE,
            scale=model.head_dim**-0.5,
            key_layout=layout,
            value_layout=layout,
        )


def cases_of(models: Iterable[PaperModel], batches: Iterable[int], contexts: Iterable[int]) -> tuple[PaperCase, ...]:
    """Every combination, in the order of running: a time budget should cut long contexts of all models and not one
    model, and the cases that the paper reports come first."""
    models, batches = tuple(models), tuple(batches)
    cases = [PaperCase(model, batch, context) for context in contexts for batch in batches for model in models]
    return tuple(sorted(cases, key=lambda case: (not case.is_the_papers, case.context)))


def parse_sizes(option: str, text: str) -> tuple[int, ...]:
    """A comma-separated list of sizes.

    Raises:
        InvalidOptionError: one of them is no positive integer.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise InvalidOptionError(option, text, "positive integers, comma-separated")
    return tuple(int(part) for part in parts)
