"""A text-generating model of a configuration, without weights, and what one decode step of it is called with.

Decoder-only models take tokens and a cache. Of a model that also sees or hears, the language model alone decodes, and
it alone is built where transformers has it by itself. Encoder-decoders take an encoder's output too, and two caches.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from ..demo.cache_kind import CacheKind
from ..demo.errors import ModelNotLoadedError, RemoteCodeError
from .errors import AttentionImplementationError, NoDecoderError, SeveralTextConfigsError

_DECODER_CLASSES = ("AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoModelForMultimodalLM")
_ENCODER_DECODER_CLASSES = ("AutoModelForSeq2SeqLM", "AutoModelForSpeechSeq2Seq", "AutoModelForImageTextToText")


@dataclass(frozen=True)
class FakeDecode:
    """One decode step to trace.

    Attributes:
        capacity: keys that a static cache has room for.
        held: keys in the cache before the step.
        attention: transformers' attention implementation; None for the one that it chooses by itself.
        q_len: tokens of the step, of each sequence.
    """

    batch: int
    capacity: int
    held: int
    dtype: torch.dtype
    cache: CacheKind
    attention: str | None = None
    q_len: int = 1
    trust_remote_code: bool = False


def decoder_config(config: Any, name: str) -> Any:
    """What decodes of the model that ``config`` is of: its language model, where transformers has it by itself; the
    one section that generates text, as the thinker of a model that thinks and talks; or the whole model.

    Raises:
        SeveralTextConfigsError: several sections may be meant.
    """
    import transformers

    sections = {key: part for key, part in vars(config).items() if hasattr(part, "get_text_config")}
    try:
        text = config.get_text_config(decoder=True)
    except ValueError as error:
        raise SeveralTextConfigsError(name, sections) from error
    if config.is_encoder_decoder:
        return config
    if type(text) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        return text
    classes = _auto_classes(_DECODER_CLASSES)
    generating = [key for key, part in sections.items() if any(type(part) in one._model_mapping for one in classes)]
    if len(generating) > 1:
        raise SeveralTextConfigsError(name, generating)
    return sections[generating[0]] if generating else config


def _auto_classes(names: Iterable[str]) -> list[Any]:
    import transformers

    return [getattr(transformers, name) for name in names]


class Decoder:
    """A decoder-only model. Built under a fake-tensor mode, its parameters are shapes only."""

    auto_classes = _DECODER_CLASSES

    def __init__(self, config: Any, name: str, step: FakeDecode) -> None:
        self._step = step
        self.model = _build(self._auto_class(config, name), config, name, step)

    @property
    def attention(self) -> str:
        """The attention implementation in use."""
        return str(self.model.config._attn_implementation)

    @property
    def has_sdpa(self) -> bool:
        """Whether transformers has the architecture's attention as scaled_dot_product_attention."""
        return bool(getattr(self.model, "_supports_sdpa", False))

    def new_cache(self) -> Any:
        from transformers import DynamicCache, StaticCache

        config = self.model.config.get_text_config(decoder=True)
        if self._step.cache is CacheKind.STATIC:
            return StaticCache(config=config, max_cache_len=self._step.capacity)
        return DynamicCache(config=config)

    def arguments(self, q_len: int) -> dict[str, Any]:
        """Keyword arguments of a call with ``q_len`` new tokens, but for the cache."""
        return {"input_ids": _tokens(self._step.batch, q_len)}

    def _auto_class(self, config: Any, name: str) -> Any:
        own = getattr(config, "auto_map", None) or {}
        for auto_class in _auto_classes(self.auto_classes):
            if type(config) in auto_class._model_mapping or auto_class.__name__ in own:
                return auto_class
        raise NoDecoderError(name, config.model_type)


class EncoderDecoder(Decoder):
    """An encoder-decoder, whose encoder has run already: its output is as long as the most that it takes where the
    configuration says so, else as long as the decoder's cache."""

    auto_classes = _ENCODER_DECODER_CLASSES

    def __init__(self, config: Any, name: str, step: FakeDecode) -> None:
        super().__init__(config, name, step)
        from transformers.modeling_outputs import BaseModelOutput

        length = getattr(config, "max_source_positions", None)
        self.source_length = length if isinstance(length, int) else step.capacity
        width = getattr(config, "encoder", config).hidden_size
        self._encoded = BaseModelOutput(torch.zeros((step.batch, self.source_length, width), dtype=step.dtype))

    def new_cache(self) -> Any:
        from transformers import DynamicCache, EncoderDecoderCache, StaticCache

        config = self.model.config.get_text_config(decoder=True)
        if self._step.cache is CacheKind.STATIC:
            cross: Any = StaticCache(config=config, max_cache_len=self.source_length)
        else:
            cross = DynamicCache(config=config)
        return EncoderDecoderCache(super().new_cache(), cross)

    def arguments(self, q_len: int) -> dict[str, Any]:
        return {"decoder_input_ids": _tokens(self._step.batch, q_len), "encoder_outputs": self._encoded}


def build_decoder(config: Any, name: str, step: FakeDecode) -> Decoder:
    """The decoder of a configuration from :func:`decoder_config`.

    Raises:
        NoDecoderError: transformers generates no text with it.
        AttentionImplementationError: it does not have ``step.attention``.
        RemoteCodeError: its code comes with the model, and is not trusted.
        ModelNotLoadedError: it cannot be built for another reason.
    """
    kind = EncoderDecoder if config.is_encoder_decoder else Decoder
    return kind(config, name, step)


def _tokens(batch: int, length: int) -> torch.Tensor:
    return torch.zeros((batch, length), dtype=torch.long)


def _build(auto_class: Any, config: Any, name: str, step: FakeDecode) -> Any:
    def build(attention: str | None) -> Any:
        ours = copy.deepcopy(config)
        if hasattr(ours, "quantization_config"):
            del ours.quantization_config  # it tells how the weights are stored, and they are not read
        return auto_class.from_config(
            ours, dtype=step.dtype, attn_implementation=attention, trust_remote_code=step.trust_remote_code
        ).eval()

    try:
        return build(step.attention)
    except (ValueError, ImportError) as error:
        if type(config) not in auto_class._model_mapping and not step.trust_remote_code:
            raise RemoteCodeError(name) from error
        if step.attention is None:
            raise ModelNotLoadedError(name, error) from error
        try:
            instead = str(build(None).config._attn_implementation)
        except (ValueError, ImportError):
            raise ModelNotLoadedError(name, error) from error
        raise AttentionImplementationError(name, step.attention, error, instead) from error
