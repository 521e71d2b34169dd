"""All peers, in the order in which they are shown."""

from __future__ import annotations

from .flash_attention import FlashAttention2, FlashAttention3
from .flashinfer_decode import flashinfer_peers
from .flex import FlexAttention
from .peer import Peer
from .sdpa import sdpa_peers
from .xformers_splitk import XformersSplitK


def all_peers() -> tuple[Peer, ...]:
    return (
        *sdpa_peers(),
        FlexAttention(),
        *flashinfer_peers(),
        FlashAttention2(),
        FlashAttention3(),
        XformersSplitK(),
    )
