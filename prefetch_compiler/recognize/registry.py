"""The recognisers, in the order in which they are asked. Adding a form is one file and one line here."""

from __future__ import annotations

from torch.fx import Node

from .chain import recognise_softmax_chain
from .flex import recognise_marked_flex
from .marked import recognise_marked_sdpa
from .site import Recogniser, Site

RECOGNISERS: tuple[Recogniser, ...] = (recognise_marked_sdpa, recognise_softmax_chain, recognise_marked_flex)


def recognise(node: Node) -> Site | None:
    """The site that ``node`` anchors, by the first recogniser that knows it.

    Raises:
        Refused: a recogniser knows the form and cannot serve this instance of it.
    """
    for recogniser in RECOGNISERS:
        site = recogniser(node)
        if site is not None:
            return site
    return None
