"""The forms that are marked in the Dynamo graph, where they are still one node each. Adding one is one line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from . import flex_call, sdpa, softmax
from .flex_marker import MARKED_FLEX, hand_on
from .marker import MARKED_SDPA, call_sdpa
from .softmax_marker import MARKED_SOFTMAX, call_softmax


@dataclass(frozen=True)
class Markable:
    """A node of a Dynamo graph that a marker can stand in for, or, where it takes the node itself, behind.

    Attributes:
        form: what reports call it.
        marker: the operator that stands in; its last argument is the site's number.
        is_site: whether a Dynamo node is an attention site of this form.
        arguments: the marker's arguments for such a node, less the number, or Refused; ``any_device`` as in ``mark``.
        meaning: what the marker computes, as a function of those arguments.
    """

    form: str
    marker: torch._ops.OpOverload
    is_site: Callable[[Node], bool]
    arguments: Callable[[Node, bool], tuple[Any, ...]]
    meaning: Callable[..., torch.Tensor]


MARKABLE: tuple[Markable, ...] = (
    Markable("sdpa", MARKED_SDPA, sdpa.is_sdpa, sdpa.marker_arguments, call_sdpa),
    Markable("softmax", MARKED_SOFTMAX, softmax.is_attention_softmax, softmax.marker_arguments, call_softmax),
    Markable("flex", MARKED_FLEX, flex_call.is_flex_output, flex_call.marker_arguments, hand_on),
)


def markable_of(node: Node) -> Markable | None:
    """The form that a Dynamo node is a site of."""
    return next((one for one in MARKABLE if one.is_site(node)), None)


def marked_form(node: Node) -> Markable | None:
    """The form whose marker a node is."""
    return next((one for one in MARKABLE if node.target is one.marker), None)
