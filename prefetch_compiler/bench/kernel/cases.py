"""Case: one decode attention that is measured, its sizes, and its spelling on the command line.

One query position; every sequence attends to the first keys of its cache, as many as it holds. Bytes are those of K and
V; the queries and the output are next to nothing.
"""

from __future__ import annotations

import math
import random
import re
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch

from ...errors import InvalidOptionError
from ...spec import HEAD_DIM_MULTIPLE, MAX_HEAD_DIM, AttentionSpec, MaskKind, TensorLayout

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
DEFAULT_HEAD_DIM = 128


class Fill(str, Enum):
    """How much of its cache each sequence holds.

    ``dense`` is a cache that is just as long as its sequences, so nothing needs a mask. The others are static caches,
    where only a mask or a length on the device says what is held: all of it, a half, an eighth, or a length of its own
    for each sequence, drawn from 1 to the capacity.
    """

    DENSE = "dense"
    FULL = "full"
    HALF = "half"
    EIGHTH = "eighth"
    RAGGED = "ragged"


class CacheLayout(str, Enum):
    """Where keys lie: heads outermost, positions outermost, or in scattered pages of 16 or 64 positions."""

    BHSD = "bhsd"
    BSHD = "bshd"
    PAGE16 = "page16"
    PAGE64 = "page64"

    @property
    def page_size(self) -> int | None:
        """Positions of a page; None where a cache is in one piece."""
        return {CacheLayout.PAGE16: 16, CacheLayout.PAGE64: 64}.get(self)


_SHARES = {Fill.DENSE: 1.0, Fill.FULL: 1.0, Fill.HALF: 0.5, Fill.EIGHTH: 0.125}


@dataclass(frozen=True)
class Case:
    """``capacity`` is in keys of each sequence; ``dtype`` is that of queries, cache and output.

    Raises:
        InvalidOptionError: sizes that attention cannot have.
    """

    query_heads: int
    kv_heads: int
    head_dim: int
    batch: int
    capacity: int
    fill: Fill = Fill.DENSE
    layout: CacheLayout = CacheLayout.BHSD
    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        positive = min(self.query_heads, self.kv_heads, self.head_dim, self.batch, self.capacity) > 0
        self._require(positive, "sizes of 1 and more")
        self._require(self.query_heads % self.kv_heads == 0, "KV heads that divide the query heads")
        dims = self.head_dim <= MAX_HEAD_DIM and self.head_dim % HEAD_DIM_MULTIPLE == 0
        self._require(dims, f"a head_dim that is a multiple of {HEAD_DIM_MULTIPLE} up to {MAX_HEAD_DIM}")
        self._require(self.dtype in DTYPES, f"one of {', '.join(DTYPES)}")

    def _require(self, holds: bool, expected: str) -> None:
        if not holds:
            raise InvalidOptionError("cases", self.name, expected)

    @property
    def name(self) -> str:
        """One line, unique, such as ``32q/8kv d128 b16 s4096 half bhsd``; bfloat16 goes without saying."""
        words = [
            f"{self.query_heads}q/{self.kv_heads}kv", f"d{self.head_dim}", f"b{self.batch}", f"s{self.capacity}",
            self.fill.value, self.layout.value, *([] if self.dtype == "bfloat16" else [self.dtype]),
        ]  # fmt: skip
        return " ".join(words)

    @property
    def group(self) -> int:
        """Query heads per KV head."""
        return self.query_heads // self.kv_heads

    @property
    def heads_kind(self) -> str:
        """``MHA``, ``MQA`` or ``GQA 4``: what results are grouped by."""
        if self.group == 1:
            return "MHA"
        return "MQA" if self.kv_heads == 1 else f"GQA {self.group}"

    @property
    def scale(self) -> float:
        return 1.0 / math.sqrt(self.head_dim)

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    @property
    def needs_lengths(self) -> bool:
        """Whether only a mask or lengths on the device say what is held."""
        return self.fill is not Fill.DENSE

    @property
    def holds_everything(self) -> bool:
        """Whether every key of the cache is held, so that a kernel that reads all of it is right."""
        return self.fill in (Fill.DENSE, Fill.FULL)

    def lengths(self, seed: int) -> tuple[int, ...]:
        """Keys that each sequence holds."""
        if self.fill is Fill.RAGGED:
            draw = random.Random(seed)
            return tuple(draw.randint(1, self.capacity) for _ in range(self.batch))
        return (max(1, round(_SHARES[self.fill] * self.capacity)),) * self.batch

    @property
    def pages_per_sequence(self) -> int:
        """Pages that hold the capacity; 0 where a cache is in one piece."""
        page = self.layout.page_size
        return 0 if page is None else -(-self.capacity // page)

    @property
    def kv_bytes_per_key(self) -> int:
        """Bytes of K and V that one position of one sequence takes."""
        return self.kv_heads * 2 * self.head_dim * self.torch_dtype.itemsize

    def valid_bytes(self, seed: int) -> int:
        """Bytes of K and V that must be read."""
        return sum(self.lengths(seed)) * self.kv_bytes_per_key

    @property
    def capacity_bytes(self) -> int:
        """Bytes of K and V that one cache takes."""
        page = self.layout.page_size
        positions = self.capacity if page is None else self.pages_per_sequence * page
        return self.batch * positions * self.kv_bytes_per_key

    def spec(self) -> AttentionSpec:
        """The site that compiled code would find, or the call of ``paged_decode_attention`` that it would make."""
        layout, page = self.tensor_layout(), self.layout.page_size or 0
        kind = MaskKind.LENGTHS if page else MaskKind.BOOL if self.needs_lengths else MaskKind.NONE
        return AttentionSpec(
            batch=self.batch,
            query_heads=self.query_heads,
            kv_heads=self.kv_heads,
            q_len=1,
            kv_len=self.pages_per_sequence * page if page else self.capacity,
            head_dim=self.head_dim,
            value_dim=self.head_dim,
            dtype=self.torch_dtype,
            scale=self.scale,
            key_layout=layout,
            value_layout=layout,
            mask=kind,
            mask_dtype=torch.bool if kind is MaskKind.BOOL else None,
            page_size=page,
        )

    def tensor_layout(self) -> TensorLayout:
        """Strides in elements of a cache in one piece, seen as (batch, kv_heads, capacity, head_dim); of a page pool,
        seen as (pages, kv_heads, page_size, head_dim)."""
        heads, length, dim = self.kv_heads, self.layout.page_size or self.capacity, self.head_dim
        if self.layout is not CacheLayout.BHSD:
            return TensorLayout(length * heads * dim, dim, heads * dim)
        return TensorLayout(heads * length * dim, length * dim, dim)


_HEADS = re.compile(r"(?P<query>\d+)q/(?P<kv>\d+)kv")
_SIZE = re.compile(r"(?P<name>[dbs])(?P<value>\d+)")
_SIZE_FIELDS = {"d": "head_dim", "b": "batch", "s": "capacity"}
_EXPECTED = "words like '32q/8kv d128 b16 s4096 half bhsd' (heads, b and s declare a case; fewer words select some)"


def parse_case(text: str) -> Case | None:
    """The case that ``text`` declares: head counts, batch and capacity at least. None where it only selects.

    Raises:
        InvalidOptionError: a word means nothing, or the sizes are impossible.
    """
    found = _fields(text)
    if not {"query_heads", "kv_heads", "batch", "capacity"} <= found.keys():
        return None
    return Case(**{"head_dim": DEFAULT_HEAD_DIM, **found})


def matches(case: Case, text: str) -> bool:
    """Whether ``case`` has every property that ``text`` names; its kind of heads is one, as in ``gqa4`` or ``mha``.

    Raises:
        InvalidOptionError: a word means nothing.
    """
    wanted = _fields(text)
    kind = wanted.pop("kind", None)
    if kind is not None and case.heads_kind.replace(" ", "").lower() != kind:
        return False
    return all(getattr(case, name) == value for name, value in wanted.items())


def _fields(text: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for word in text.split():
        found.update(_field(word, text))
    return found


def _field(word: str, text: str) -> dict[str, Any]:
    """What one word says of a case."""
    if heads := _HEADS.fullmatch(word):
        return {"query_heads": int(heads["query"]), "kv_heads": int(heads["kv"])}
    if size := _SIZE.fullmatch(word):
        return {_SIZE_FIELDS[size["name"]]: int(size["value"])}
    if re.fullmatch(r"mha|mqa|gqa\d+", word.lower()):
        return {"kind": word.lower()}
    for name, kind in (("fill", Fill), ("layout", CacheLayout)):
        if word in {member.value for member in kind}:
            return {name: kind(word)}
    if word in DTYPES:
        return {"dtype": word}
    raise InvalidOptionError("cases", text, _EXPECTED)
