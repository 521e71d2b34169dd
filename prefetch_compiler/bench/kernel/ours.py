"""Our own kernels as five peers: the heuristic's configuration, the one that users get, the one that they get where
results must not depend on the batch, and the best of a small search without prefetch and with it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...config import KernelConfig
from ...database import overlay
from ...device import DeviceProfile
from ...errors import KVPrefetchError
from ...lower.launch import launch_decode
from ...select.heuristic import choose, choose_for_any_batch
from ...select.selection import select
from ...spec import AttentionSpec
from .operands import Operands
from .peers.peer import Attend
from .result import DETERMINISTIC, HEURISTIC, SHIPPED


@dataclass(frozen=True)
class OurChoice:
    """A configuration under the name of one of our peers, and how it was chosen."""

    name: str
    config: KernelConfig
    verdict: str


@dataclass(frozen=True)
class NoChoice:
    """One of our peers that has no configuration, and why."""

    name: str
    reason: str


def standing_choices(spec: AttentionSpec, profile: DeviceProfile) -> list[OurChoice | NoChoice]:
    """What we would choose for ``spec`` without measuring: from the databases in effect, by the heuristic alone, and
    with ``kvprefetch.deterministic``."""
    found: list[OurChoice | NoChoice] = []
    try:
        selection = select(spec, profile, overlay.load())
        found.append(OurChoice(SHIPPED, selection.config, f"{selection.verdict.value}: {selection.reason}"))
    except KVPrefetchError as error:
        found.append(NoChoice(SHIPPED, str(error)))
    for name, by in ((HEURISTIC, choose), (DETERMINISTIC, choose_for_any_batch)):
        try:
            found.append(OurChoice(name, by(spec, profile), "heuristic"))
        except KVPrefetchError as error:
            found.append(NoChoice(name, str(error)))
    return found


def attend_with(operands: Operands, config: KernelConfig) -> Attend:
    """Launch our kernels with ``config``. Bounds were computed before, as compiled code does once for all layers."""
    mask, bounds, scale, table = operands.expanded_mask(), operands.bounds, operands.case.scale, operands.table

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if table is not None:
            k, v = k.transpose(1, 2), v.transpose(1, 2)
        out: torch.Tensor = launch_decode(
            q, k, v, mask, bounds, is_causal=False, scale=scale, heads_first=True, config=config,
            lengths=None if table is None else operands.held, table=table,
        )  # fmt: skip
        return out.squeeze(2)

    return attend


def configs_of(choices: Iterable[OurChoice | NoChoice]) -> list[KernelConfig]:
    """The distinct configurations among ``choices``."""
    return list(dict.fromkeys(choice.config for choice in choices if isinstance(choice, OurChoice)))
