"""Recogniser of marked sites: SDPA that the Dynamo graph showed, now functional, with its operands simplified."""

from __future__ import annotations

from torch.fx import Node

from ..errors import Refused
from .marker import MARKED_SDPA
from .site import Site, describe_site
from .sizes import same
from .views import StoredKV, aten, stored_kv


def recognise_marked_sdpa(node: Node) -> Site | None:
    """The site of a marker node.

    Raises:
        Refused: K and V are stored with different head counts, or ``describe_site`` refuses.
    """
    if node.target is not MARKED_SDPA:
        return None
    q, k, v, mask, is_causal, scale, _enable_gqa, heads_first, index = node.args
    key, value = stored_pair(k, v)  # type: ignore[arg-type]
    mask = _without_expand(mask)  # type: ignore[arg-type]
    spec = describe_site(q, key, value, mask, is_causal, scale, heads_first)  # type: ignore[arg-type]
    return Site(node, index, "sdpa", q, key, value, mask, is_causal, spec.scale, heads_first, spec)  # type: ignore[arg-type]


def stored_pair(k: Node, v: Node) -> tuple[StoredKV, StoredKV]:
    """What K and V store. Where only one of the two can be seen through, both are taken as they are: query heads must
    map to KV heads alike in both.

    Raises:
        Refused: they are stored with different numbers of heads.
    """
    key, value = stored_kv(k), stored_kv(v)
    if _heads_alike(key, value):
        return key, value
    as_they_are = (0, 1, 2, 3)
    key, value = StoredKV(k, as_they_are), StoredKV(v, as_they_are)
    if not _heads_alike(key, value):
        raise Refused("key and value are stored with different numbers of heads")
    return key, value


def _heads_alike(key: StoredKV, value: StoredKV) -> bool:
    return same(key.base.meta["val"].shape[key.order[1]], value.base.meta["val"].shape[value.order[1]])


def _without_expand(mask: Node | None) -> Node | None:
    """A mask before it was broadcast: smaller to reduce, and equal for layers that each expand it anew."""
    while mask is not None and mask.target is aten.expand.default:
        source = mask.args[0]
        if not isinstance(source, Node):
            break
        mask = source
    return mask
