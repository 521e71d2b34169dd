"""The forms that are marked in a captured graph (Dynamo's or torch.export's), where they are still one node each.
Adding one is one line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from . import flex_call, multi_head, sdpa, sdpa_3d, softmax, written_softmax
from .flex_marker import MARKED_FLEX, hand_on
from .marker import MARKED_SDPA, call_sdpa
from .softmax_marker import MARKED_SOFTMAX, call_softmax
from .weights_marker import MARKED_WEIGHTS, hand_on_weights


@dataclass(frozen=True)
class Markable:
    """A node of a captured graph that is an attention site, or is at the heart of one.

    Attributes:
        form: what reports call it.
        is_site: whether a node is of this form.
        arguments: what to call the stand-in with for such a node, less the site's number, or Refused; ``any_device`` as
            in ``mark``.
        stand_in: what takes the node's place, or stands behind it where it takes the node itself; its last argument is
            the site's number. A marker, or a function that calls one.
    """

    form: str
    is_site: Callable[[Node], bool]
    arguments: Callable[[Node, bool], tuple[Any, ...]]
    stand_in: Callable[..., Any]


MARKABLE: tuple[Markable, ...] = (
    Markable("sdpa", sdpa_3d.is_sdpa_3d, sdpa_3d.stand_in_arguments, sdpa_3d.marked_sdpa_3d),
    Markable("sdpa", sdpa.is_sdpa, sdpa.marker_arguments, MARKED_SDPA),
    Markable("softmax", softmax.is_attention_softmax, softmax.marker_arguments, MARKED_SOFTMAX),
    Markable("softmax", written_softmax.is_written_softmax, written_softmax.marker_arguments, MARKED_WEIGHTS),
    Markable(
        "multi_head", multi_head.is_multi_head, multi_head.stand_in_arguments, multi_head.marked_multi_head_attention
    ),
    Markable("flex", flex_call.is_flex_output, flex_call.marker_arguments, MARKED_FLEX),
)

# Each marker, and what it computes as a function of its arguments less the last.
MARKERS: dict[Any, Callable[..., torch.Tensor]] = {
    MARKED_SDPA: call_sdpa,
    MARKED_SOFTMAX: call_softmax,
    MARKED_WEIGHTS: hand_on_weights,
    MARKED_FLEX: hand_on,
}


def markable_of(node: Node) -> Markable | None:
    """The form that a captured node is a site of."""
    return next((one for one in MARKABLE if one.is_site(node)), None)


def is_marker(node: Node) -> bool:
    return node.target in MARKERS
