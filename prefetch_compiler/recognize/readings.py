"""The ways to read a site's K and V, the most direct first: as latents that all heads share; as numbers of a quantised
cache, in pages, or both; those beside tokens that are not quantised; once for all sequences that share them; each head
as far as it is seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ..errors import Refused
from .block_lists import read_by_lists
from .by_head import read_by_head
from .dequantised import read_as_stored
from .exact_key import read_beside_exact_key
from .latent import read_as_latent
from .pack import read_packed
from .paged import read_as_paged
from .residual import read_before_residual
from .site import Site


def readings(site: Site, *, pack: bool) -> Iterator[Site]:
    """Sites that are the same attention, over what K and V are made of; each may be refused by selection. ``pack``
    allows that sequences share a read."""
    yield from _found(read_as_latent, site)
    numbers = _or_none(read_as_stored, site)
    for read in (numbers, site):
        if read is None:
            continue
        yield from _found(read_as_paged, read)
        if pack:
            yield from _found(read_packed, read)
    if numbers is not None:
        yield numbers
    yield from _found(read_beside_exact_key, site)
    yield from _found(read_before_residual, site)
    yield from _found(read_by_lists, site)
    yield from _found(read_by_head, site)


def _found(read: Callable[[Site], Site | None], site: Site) -> Iterator[Site]:
    found = _or_none(read, site)
    if found is not None:
        yield found


def _or_none(read: Callable[[Site], Site | None], site: Site) -> Site | None:
    try:
        return read(site)
    except Refused:
        return None
