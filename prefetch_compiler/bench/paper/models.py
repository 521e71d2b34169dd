"""The four models that the paper measures, by the shape of their attention, and the gains that it reports."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import InvalidOptionError


@dataclass(frozen=True)
class PaperModel:
    """Attention of one layer. ``gain`` is the paper's own (arXiv 2504.06319): attention kernel time without over with
    prefetching, on an NVIDIA H20, fp16, batch 64, context 527."""

    name: str
    query_heads: int
    kv_heads: int
    head_dim: int
    gain: float

    @property
    def group(self) -> int:
        """Query heads that read one KV head."""
        return self.query_heads // self.kv_heads


MODELS = (
    PaperModel("Llama2-7B", 32, 32, 128, 1.84),
    PaperModel("Llama3-8B", 32, 8, 128, 1.89),
    PaperModel("Qwen2.5-7B", 28, 4, 128, 2.15),
    PaperModel("Qwen2.5-14B", 40, 8, 128, 1.89),
)
# Where the paper's gains were measured.
PAPER_BATCH = 64
PAPER_CONTEXT = 527


def parse_models(text: str) -> tuple[PaperModel, ...]:
    """A comma-separated list of names, capitals or not.

    Raises:
        InvalidOptionError: a name is unknown.
    """
    return tuple(model_named(name.strip()) for name in text.split(","))


def model_named(name: str) -> PaperModel:
    """Raises: InvalidOptionError: there is none."""
    for model in MODELS:
        if model.name.lower() == name.lower():
            return model
    raise InvalidOptionError("models", name, f"one of {', '.join(model.name for model in MODELS)}")
