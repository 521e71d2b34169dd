"""Columns: the kernels that a case is measured with, and what each variant of the paper's kernel asks L2 for."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Column(str, Enum):
    """What takes part, in the order of the table; values are what people read and what files hold."""

    NONE = "no prefetch"
    OFF = "switched off"
    CONTROL = "control"
    NEXT_1 = "next tile, depth 1"
    NEXT_2 = "next tile, depth 2"
    NEXT_4 = "next tile, depth 4"
    OURS_DEPTH0 = "ours, depth 0"
    OURS_FREE = "ours, any depth"
    CUDNN = "SDPA cuDNN"


@dataclass(frozen=True)
class Prefetch:
    """What the paper's kernel asks L2 for.

    Attributes:
        compiled: whether the kernel holds prefetch instructions at all; all variants that do share one binary.
        issued: whether they are executed.
        depth: how many blocks ahead; 0 is the control, the block that has just been asked for.
    """

    compiled: bool = True
    issued: bool = True
    depth: int = 0


PREFETCH_OF = {
    Column.NONE: Prefetch(compiled=False, issued=False),
    Column.OFF: Prefetch(issued=False),
    Column.CONTROL: Prefetch(depth=0),
    Column.NEXT_1: Prefetch(depth=1),
    Column.NEXT_2: Prefetch(depth=2),
    Column.NEXT_4: Prefetch(depth=4),
}
# The paper's kernel in all its variants, and those that prefetch a tile before it is needed.
PAPER_STYLE = tuple(PREFETCH_OF)
PREFETCHING = tuple(column for column, prefetch in PREFETCH_OF.items() if prefetch.depth > 0)
OURS = (Column.OURS_DEPTH0, Column.OURS_FREE)
