"""What can go wrong before a decode step is traced, or while it is. Each message names the value and the fix."""

from __future__ import annotations

from collections.abc import Iterable

from ..errors import KVPrefetchError


class NotTraceableError(KVPrefetchError):
    """A model whose decode step cannot be traced on tensors without data."""

    def __init__(self, model: str, cause: BaseException) -> None:
        first_line = str(cause).strip().partition("\n")[0]
        super().__init__(
            f"the decode step of {model!r} cannot be traced without weights: {type(cause).__name__}: {first_line} "
            "(prefetch_compiler.explain on a machine that runs the model tells its sites too)"
        )


class NoDecoderError(KVPrefetchError, ValueError):
    """An architecture that transformers has no text-generating model of."""

    def __init__(self, model: str, model_type: str) -> None:
        super().__init__(
            f"{model!r} has no decode step: transformers generates no text with model type {model_type!r}; "
            "name a model that its AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSpeechSeq2Seq or "
            "AutoModelForImageTextToText can build"
        )


class SeveralTextConfigsError(KVPrefetchError, ValueError):
    """A configuration with more than one language model in it."""

    def __init__(self, model: str, names: Iterable[str]) -> None:
        super().__init__(
            f"the configuration of {model!r} holds several language models ({', '.join(names)}): save the one that you "
            "mean as a folder with its own config.json, and name that folder"
        )


class AttentionImplementationError(KVPrefetchError, ValueError):
    """An attention implementation that this architecture does not have, or that is not installed."""

    def __init__(self, model: str, wanted: str, cause: BaseException, instead: str) -> None:
        first_line = str(cause).strip().partition("\n")[0]
        super().__init__(
            f"{model!r} cannot be built with attention implementation {wanted!r}: {first_line} "
            f"(pass --attn-implementation {instead}, which transformers chooses for it by itself)"
        )
