"""The pass as Inductor runs it: on the functional graph, before its own joint-graph passes."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch._inductor.custom_graph_pass import CustomGraphPass
from torch.fx import Graph

from ..graph_dump import NO_DUMP, GraphDump
from .rewrite import Lowering

log = logging.getLogger(__name__)


class LoweringPass(CustomGraphPass):
    """Runs a user's own pass of the same hook first, then lowers.

    ``uuid`` enters the key of Inductor's compiled-graph cache: our sources, what configurations are selected from, and
    the user's pass.
    """

    def __init__(self, lowering: Lowering, before: Any = None, dump: GraphDump = NO_DUMP) -> None:
        self._lowering = lowering
        self._dump = dump
        self._before: list[Callable[[Graph], None]] = _as_list(before)

    def __call__(self, graph: Graph) -> None:
        for user_pass in self._before:
            user_pass(graph)
        self._dump.functional(graph)
        nodes, began = len(graph.nodes), time.perf_counter()
        self._lowering.run(graph)
        ran_ms = (time.perf_counter() - began) * 1e3
        log.debug("pass: %d nodes became %d in %.1f ms", nodes, len(graph.nodes), ran_ms)
        self._dump.lowered(graph)

    def __deepcopy__(self, memo: dict[int, Any]) -> LoweringPass:
        """Itself: Inductor copies its configuration, of which the running pass is a part."""
        return self

    def uuid(self) -> Any | None:
        user_ids = [p.uuid() if isinstance(p, CustomGraphPass) else None for p in self._before]
        if None in user_ids:
            return None
        return "kvprefetch", source_digest(), self._lowering.selection_digests(), tuple(user_ids)


def _as_list(passes: Any) -> list[Any]:
    if passes is None:
        return []
    return list(passes) if isinstance(passes, list | tuple) else [passes]


@lru_cache(maxsize=1)
def source_digest() -> str:
    """SHA-256 of this package's and the templates' sources: what the same graph lowers to depends on them."""
    from prefetch_compiler import templates

    digest = hashlib.sha256()
    folders = (Path(__file__).parents[1], Path(str(templates.__file__)).parent)
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()
