"""Fewer layers with the same sites: layers that are configured alike compute the same attention.

A configuration says what differs between layers in lists with an entry per layer (``layer_types`` and the like). Of the
layers whose entries agree, one is kept, and the first layer's successor besides, since models often build something in
their first layer that the others share.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..report import SiteReport

# Below this a list of as many entries as there are layers may be a coincidence, and nothing is gained.
_WORTH_CUTTING = 3
# What encoder-decoder configurations call the number of their decoder's layers, which are all alike.
_DECODER_LAYERS = ("decoder_layers", "num_decoder_layers")
_LAYER_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


@dataclass(frozen=True)
class KeptLayer:
    """A layer that stands for layers ``members`` of the model, itself the first of them."""

    members: tuple[int, ...]

    @property
    def original(self) -> int:
        return self.members[0]

    @property
    def count(self) -> int:
        return len(self.members)


def cut_layers(config: Any) -> tuple[Any, list[KeptLayer]]:
    """A copy of a Hugging Face configuration with the distinct layers only, and which those are, in order."""
    config = copy.deepcopy(config)
    text = config.get_text_config(decoder=True)
    if _is_a_copy(text, config):
        return config, _cut_decoder(config)
    layers = int(text.num_hidden_layers)
    shared: object = getattr(text, "num_kv_shared_layers", None)
    if layers < _WORTH_CUTTING or shared:
        return config, _each(layers)
    lists = _per_layer_lists(text, layers)
    kept = _distinct(list(zip(*lists.values(), strict=True)) if lists else [()] * layers)
    for name, values in lists.items():
        setattr(text, name, [values[layer.original] for layer in kept])
    text.num_hidden_layers = len(kept)
    return config, kept


def every_layer(config: Any) -> list[KeptLayer]:
    """Every layer of ``config`` as itself."""
    text = config.get_text_config(decoder=True)
    name = _decoder_layers_name(config) if _is_a_copy(text, config) else None
    return _each(int(text.num_hidden_layers if name is None else getattr(config, name)))


def in_whole_model(
    sites: Iterable[SiteReport], layers: Sequence[KeptLayer]
) -> Iterator[tuple[SiteReport, tuple[str, ...]]]:
    """Each site, its layer named as in the whole model, and the names of all layers that it stands for."""
    for site in sites:
        number = _LAYER_NUMBER.search(site.layer)
        if number is None or int(number[0]) >= len(layers):
            yield site, (site.layer,)
            continue
        before, after = site.layer[: number.start()], site.layer[number.end() :]
        names = tuple(f"{before}{member}{after}" for member in layers[int(number[0])].members)
        yield replace(site, layer=names[0]), names


def layer_number(path: str) -> int:
    """Number of the layer that a module path names, as 7 of ``model.layers.7.self_attn``; -1 where there is none."""
    number = _LAYER_NUMBER.search(path)
    return -1 if number is None else int(number[0])


def _each(layers: int) -> list[KeptLayer]:
    return [KeptLayer((layer,)) for layer in range(layers)]


def _is_a_copy(text: Any, config: Any) -> bool:
    """Whether transformers made up a decoder's configuration, as it does for encoder-decoders without sections: to cut
    it would change nothing."""
    return text is not config and all(text is not part for part in vars(config).values())


def _decoder_layers_name(config: Any) -> str | None:
    return next((name for name in _DECODER_LAYERS if isinstance(getattr(config, name, None), int)), None)


def _cut_decoder(config: Any) -> list[KeptLayer]:
    """Two layers of an encoder-decoder's decoder. Its first one may build what the others share."""
    name = _decoder_layers_name(config)
    layers = every_layer(config)
    if name is None or len(layers) < _WORTH_CUTTING:
        return layers
    setattr(config, name, 2)
    return [KeptLayer((0,)), KeptLayer(tuple(range(1, len(layers))))]


def _per_layer_lists(text: Any, layers: int) -> dict[str, list[Any]]:
    found = {name: value for name, value in vars(text).items() if isinstance(value, list | tuple)}
    return {name: list(value) for name, value in found.items() if len(value) == layers}


def _distinct(rows: list[tuple[Any, ...]]) -> list[KeptLayer]:
    """The first layer of each kind and the second layer of all; every layer counted once."""
    groups: dict[str, list[int]] = {}
    for layer, row in enumerate(rows):
        groups.setdefault(repr(row), []).append(layer)
    kept: list[KeptLayer] = []
    for members in groups.values():
        if members[:2] == [0, 1]:
            kept += [KeptLayer((0,)), KeptLayer(tuple(members[1:]))]
        else:
            kept.append(KeptLayer(tuple(members)))
    return sorted(kept, key=lambda layer: layer.original)
