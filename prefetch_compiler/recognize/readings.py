"""The ways to read a site's K and V, the most direct first: as latents that all heads share; as numbers of a quantised
cache, in pages, or both; each head as far as it is seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ..errors import Refused
from .by_head import read_by_head
from .dequantised import read_as_stored
from .latent import read_as_latent
from .paged import read_as_paged
from .site import Site


def readings(site: Site) -> Iterator[Site]:
    """Sites that are the same attention, over what K and V are made of; each may be refused by selection."""
    latents = _or_none(read_as_latent, site)
    if latents is not None:
        yield latents
    numbers = _or_none(read_as_stored, site)
    for read in (numbers, site):
        pages = None if read is None else _or_none(read_as_paged, read)
        if pages is not None:
            yield pages
    if numbers is not None:
        yield numbers
    heads = _or_none(read_by_head, site)
    if heads is not None:
        yield heads


def _or_none(read: Callable[[Site], Site | None], site: Site) -> Site | None:
    try:
        return read(site)
    except Refused:
        return None
