"""What the zoo knows of one architecture: how to make a tiny one, and what a decode step of it has to show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import transformers

VOCABULARY = 97
ENCODED_LENGTH = 20


@dataclass(frozen=True)
class ZooModel:
    """An architecture of transformers with a tiny configuration.

    Attributes:
        name: as in the coverage table; unique.
        config_class: name of its configuration's class in transformers.
        settings: the configuration's arguments. Nested configurations are mappings too.
        sites: how many attentions one decode step has.
        auto_class: the class in transformers that makes a model of the configuration.
        mask_covers_static_cache: whether its padding mask, which its positions come from, has to be as long as a static
            cache.
    """

    name: str
    config_class: str
    settings: Mapping[str, Any] = field(hash=False)
    sites: int
    auto_class: str = "AutoModelForCausalLM"
    mask_covers_static_cache: bool = False

    def __str__(self) -> str:
        return self.name

    @property
    def has_encoder(self) -> bool:
        return self.auto_class != "AutoModelForCausalLM"

    @property
    def hears(self) -> bool:
        """Whether its encoder takes log-mel features, and not tokens."""
        return self.auto_class == "AutoModelForSpeechSeq2Seq"

    def config(self) -> Any:
        """A new configuration: models write into theirs."""
        return getattr(transformers, self.config_class)(**self.settings)
