"""Fewer layers with the same sites: layers that are configured alike compute the same attention.

A configuration says what differs between layers in lists with an entry per layer (``layer_types`` and the like). Of the
layers whose entries agree, one is kept, and the first layer's successor besides, since models often build something in
their first layer that the others share.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

# Below this a list of as many entries as there are layers may be a coincidence, and nothing is gained.
_WORTH_CUTTING = 3


@dataclass(frozen=True)
class KeptLayer:
    """Layer ``original`` of the model, which stands for ``count`` layers, itself included."""

    original: int
    count: int


def cut_layers(config: Any) -> tuple[Any, list[KeptLayer]]:
    """A copy of a Hugging Face configuration with the distinct layers only, and which those are, in order."""
    config = copy.deepcopy(config)
    text = config.get_text_config(decoder=True)
    layers = int(text.num_hidden_layers)
    shared: object = getattr(text, "num_kv_shared_layers", None)
    if layers < _WORTH_CUTTING or shared:
        return config, [KeptLayer(layer, 1) for layer in range(layers)]
    lists = _per_layer_lists(text, layers)
    kept = _distinct(list(zip(*lists.values(), strict=True)) if lists else [()] * layers)
    for name, values in lists.items():
        setattr(text, name, [values[layer.original] for layer in kept])
    text.num_hidden_layers = len(kept)
    return config, kept


def every_layer(config: Any) -> list[KeptLayer]:
    """Every layer of ``config`` as itself."""
    return [KeptLayer(layer, 1) for layer in range(int(config.get_text_config(decoder=True).num_hidden_layers))]


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
            kept += [KeptLayer(0, 1), KeptLayer(1, len(members) - 1)]
        else:
            kept.append(KeptLayer(members[0], len(members)))
    return sorted(kept, key=lambda layer: layer.original)
