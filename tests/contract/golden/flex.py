"""FlexAttention: masks and score modifications as functions of indices, with and without what they capture."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn.attention import flex_attention as flex

from prefetch_compiler.spec import AttentionSpec, MaskKind

from .graph import DEVICE, Draw, Golden, Inputs, each_head_by_itself, heads_first, note, repeat_kv

BATCH, KV_HEADS, GROUP, KV_LEN, DIM = 3, 2, 2, 20, 16
HEADS = KV_HEADS * GROUP
# The first query's position, held on the device.
HELD = 11

# (buffers) -> a mask_mod, or a score_mod.
MaskOf = Callable[[dict[str, Tensor]], Callable[..., Tensor]]


def attend(
    q: Tensor, keys: Tensor, values: Tensor, block_mask: Any, score_mod: Any = None, scale: float | None = None
) -> Tensor:
    """Flex attention, eagerly by its reference: what it does without torch.compile, less a torch.compile of its own."""
    given = {"score_mod": score_mod, "block_mask": block_mask, "scale": scale, "enable_gqa": True}
    if torch.compiler.is_compiling():
        return flex.flex_attention(q, keys, values, **given)  # type: ignore[return-value]
    with mock.patch.object(flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True):
        return flex.flex_attention(q, keys, values, **given)  # type: ignore[return-value]


def indices(q_len: int, kv_len: int = KV_LEN, batch: int = BATCH) -> tuple[Tensor, ...]:
    """Of sequences, heads, queries and keys, such that they broadcast."""
    sizes = (batch, HEADS, q_len, kv_len)
    return tuple(
        torch.arange(size, device=DEVICE).view([-1 if dim == at else 1 for dim in range(4)])
        for at, size in enumerate(sizes)
    )


def _mask_mods(buffers: dict[str, Tensor], window: int) -> dict[str, Callable[..., Tensor]]:
    held, first, documents = buffers["held"], buffers["first"], buffers["documents"]
    return {
        "causal": lambda b, h, m, n: n <= m + held,
        "window": lambda b, h, m, n: (n <= m + held) & (n > m + held - window),
        "padded": lambda b, h, m, n: (n <= m + held) & (n >= first[b]),
        "heads": lambda b, h, m, n: n >= 3 * h,
        "other_heads": lambda b, h, m, n: n >= 3 * (3 - h),
        "documents": lambda b, h, m, n: documents[b, n] == documents[b, m + held],
        "not_first_query": lambda b, h, m, n: (m > 0) & (n != 4),
        "hidden": lambda b, h, m, n: n > m + held,
    }


# What is added to scores, after capping them.
def _biases(buffers: dict[str, Tensor], slope: float) -> dict[str, Callable[..., Tensor]]:
    held, slopes, table, additive = (buffers[name] for name in ("held", "slopes", "table", "additive"))
    return {
        "alibi": lambda b, h, m, n: slope * slopes[h] * (n - m - held),
        "relative": lambda b, h, m, n: slope * (n - m),
        "table": lambda b, h, m, n: table[h, (n - m).clamp(min=0)],
        "mask_tensor": lambda b, h, m, n: additive[b][0][m][n],
    }


def _score_mod(given: Flex, buffers: dict[str, Tensor]) -> Callable[..., Tensor]:
    bias = _biases(buffers, given.slope).get(given.bias)
    hides = _mask_mods(buffers, given.window).get(given.fill)
    factor, softcap, filling = given.factor, given.softcap, given.filling

    def score_mod(score: Tensor, b: Tensor, h: Tensor, m: Tensor, n: Tensor) -> Tensor:
        if factor is not None:
            score = score * factor
        if softcap is not None:
            score = softcap * torch.tanh(score / softcap)
        if bias is not None:
            score = score + bias(b, h, m, n)
        if hides is not None:
            score = torch.where(hides(b, h, m, n), score, filling)
        return score

    return score_mod


@dataclass(frozen=True)
class Flex:
    """One attention.

    Attributes:
        mask, bias, fill: one of the functions above. A fill shows what its function is True for.
        blocks: BLOCK_SIZE of the block mask.
        mask_inside: whether the block mask is made in the compiled program.
    """

    name: str
    mask: str = "none"
    bias: str = "none"
    fill: str = "none"
    filling: float = -math.inf
    factor: float | None = None
    softcap: float | None = None
    scale: float | None = None
    window: int = 5
    slope: float = 0.7
    q_len: int = 1
    value_dim: int = DIM
    dtype: torch.dtype = torch.float32
    blocks: tuple[int, int] = (128, 128)
    mask_inside: bool = False
    repeated: bool = False
    held: int = HELD
    mask_dtype: torch.dtype = torch.float32

    @property
    def golden(self) -> Golden:
        return Golden(self.name, self.program(), self.steps, (self.spec(),), "recognise_marked_flex")

    def block_mask(self, buffers: dict[str, Tensor], kv_len: int = KV_LEN) -> Any:
        mask_mod = _mask_mods(buffers, self.window)[self.mask]
        per_head = HEADS if "heads" in self.mask else None
        return flex.create_block_mask(
            mask_mod, BATCH, per_head, self.q_len, kv_len, device=DEVICE.type, BLOCK_SIZE=self.blocks
        )

    def program(self) -> Callable[..., Tensor]:
        given = self

        def run(q: Tensor, keys: Tensor, values: Tensor, block_mask: Any, **buffers: Tensor) -> Tensor:
            if given.mask_inside:
                block_mask = given.block_mask(buffers, keys.shape[2])
            changes = given.factor is not None or given.softcap is not None or {given.bias, given.fill} != {"none"}
            if not torch.compiler.is_compiling():
                given._note(q, keys, values, buffers)
            if given.repeated:
                keys, values = repeat_kv(keys, GROUP), repeat_kv(values, GROUP)
            return attend(q, keys, values, block_mask, _score_mod(given, buffers) if changes else None, given.scale)

        return run

    def _note(self, q: Tensor, keys: Tensor, values: Tensor, buffers: dict[str, Tensor]) -> None:
        """What it is, by broadcast indices instead of one number at a time."""
        at = indices(self.q_len)
        shows = [_mask_mods(buffers, self.window)[name](*at) for name in (self.mask,) if name != "none"]
        bias = self._bias(buffers, at)
        if self.fill != "none":
            low = self.filling if self.filling == -math.inf else torch.finfo(torch.float32).min
            bias = torch.where(_mask_mods(buffers, self.window)[self.fill](*at), bias, low)
        mask: Tensor | None = None
        if self.spec().mask is MaskKind.BOOL:
            shows += [bias == 0] if self.fill != "none" else []
            mask = torch.stack(torch.broadcast_tensors(*shows)).all(0)
        elif self.spec().mask is MaskKind.ADDITIVE:
            mask = bias if not shows else torch.where(shows[0], bias, -math.inf)
        note(q, keys, values, mask, self._scale * (self.factor or 1.0), self.softcap, None)

    def _bias(self, buffers: dict[str, Tensor], at: tuple[Tensor, ...]) -> Tensor:
        if self.bias == "none":
            return torch.zeros((), device=DEVICE)
        if self.bias == "mask_tensor":  # one index after another does not broadcast
            return buffers["additive"]
        return _biases(buffers, self.slope)[self.bias](*at)

    @property
    def _scale(self) -> float:
        return 1 / math.sqrt(DIM) if self.scale is None else self.scale

    def steps(self) -> Sequence[Inputs]:
        draw = Draw(5, self.dtype)
        full = Draw(6)
        buffers = {
            "held": torch.tensor(self.held, device=DEVICE),
            "first": torch.tensor([0, 3, 6], device=DEVICE),
            "documents": (torch.arange(KV_LEN, device=DEVICE) // torch.tensor([[3], [4], [7]], device=DEVICE)),
            "slopes": full.normal(HEADS).abs(),
            "table": full.normal(HEADS, KV_LEN),
            "additive": full.normal(BATCH, 1, self.q_len, KV_LEN),
        }
        outside = self.mask != "none" and not self.mask_inside
        return [
            {
                "q": draw.normal(BATCH, HEADS, self.q_len, DIM),
                "keys": draw.normal(BATCH, KV_HEADS, KV_LEN, DIM),
                "values": draw.normal(BATCH, KV_HEADS, KV_LEN, self.value_dim),
                "block_mask": self.block_mask(buffers) if outside else None,
                **buffers,
            }
        ]

    def spec(self) -> AttentionSpec:
        added = self.bias != "none" or (self.fill != "none" and self.filling != -math.inf)
        shown = self.mask != "none" or self.fill != "none"
        kind = MaskKind.ADDITIVE if added else MaskKind.BOOL if shown else MaskKind.NONE
        by_head = "heads" in self.mask or self.bias in ("alibi", "table")
        by_query = {self.mask, self.bias, self.fill} - {"none", "heads", "other_heads"} != set()
        spec = AttentionSpec(
            batch=BATCH,
            query_heads=HEADS,
            kv_heads=KV_HEADS,
            q_len=self.q_len,
            kv_len=KV_LEN,
            head_dim=DIM,
            value_dim=self.value_dim,
            dtype=self.dtype,
            scale=self._scale * (self.factor or 1.0),
            key_layout=heads_first(KV_HEADS, KV_LEN, DIM),
            value_layout=heads_first(KV_HEADS, KV_LEN, self.value_dim),
            mask=kind,
            mask_dtype={MaskKind.NONE: None, MaskKind.BOOL: torch.bool}.get(kind, self.mask_dtype),
            mask_per_row=by_head or (by_query and self.q_len > 1),
            softcap=self.softcap,
        )
        # Blocks of a list of each sequence and head make a mask of each.
        return each_head_by_itself(spec) if kind is MaskKind.BOOL and by_head and self.blocks else spec


EVERYTHING = Flex(
    "flex_everything", mask="padded", softcap=5.0, factor=2.0, bias="alibi", fill="window", scale=0.3, q_len=4,
    blocks=(2, 4),
)  # fmt: skip
_MASKS = [
    Flex("flex"),
    Flex("flex_padded", mask="padded"),
    Flex("flex_documents", mask="documents", q_len=3),
    Flex("flex_inside", mask="padded", mask_inside=True),
    Flex("flex_small_blocks", mask="window", q_len=5, blocks=(2, 4)),
    Flex("flex_small_blocks_of_heads", mask="heads", q_len=3, blocks=(32, 8)),
    Flex("flex_rows_of_nothing", mask="not_first_query", q_len=3),
    Flex("flex_biased_rows_of_nothing", mask="not_first_query", bias="relative", q_len=3),
    Flex("flex_repeated", mask="causal", repeated=True),
    Flex("flex_narrow_values", mask="causal", value_dim=8, q_len=16),
    Flex("flex_bfloat16", mask="causal", dtype=torch.bfloat16),
]
_SCORES = [
    Flex("flex_factor", factor=-1.5, q_len=2),
    Flex("flex_softcap", softcap=2.0, factor=3.0),
    Flex("flex_alibi", bias="alibi"),
    Flex("flex_table", bias="table", q_len=2),
    Flex("flex_mask_tensor", bias="mask_tensor", q_len=2),
    Flex("flex_filled", fill="padded", q_len=2),
    Flex("flex_filled_low", fill="padded", filling=-1e9, q_len=2),
    Flex(
        "flex_everything",
        mask="padded",
        softcap=5.0,
        factor=2.0,
        bias="alibi",
        fill="window",
        scale=0.3,
        q_len=4,
        blocks=(2, 4),
    ),
    Flex("flex_float16", bias="alibi", mask="causal", softcap=3.0, dtype=torch.float16),
]

FLEX: tuple[Flex, ...] = (*_MASKS, *_SCORES)


def two_layers(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, keys_1: Tensor, values_1: Tensor, held: Tensor,
    block_mask: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """A static cache as transformers has it with flex attention: what the mask captured, the first layer's length, has
    moved on when the mask is asked, and one key more is seen than was written."""
    at = held + torch.arange(1, device=DEVICE)
    outputs = []
    for layer, (cached_keys, cached_values) in enumerate(((keys, values), (keys_1, values_1))):
        if layer == 0:
            held.add_(1)
        cached_keys.index_copy_(2, at, k)
        cached_values.index_copy_(2, at, v)
        sees = (torch.arange(KV_LEN, device=DEVICE) <= held)[None, None, None]
        note(q, cached_keys, cached_values, sees, 0.25, None, None)
        outputs.append(attend(q, cached_keys, cached_values, block_mask))
    return outputs[0], outputs[1]


def _two_layers_steps() -> Sequence[Inputs]:
    draw = Draw(8)
    held = torch.tensor(6, device=DEVICE)
    block_mask = flex.create_block_mask(
        lambda b, h, m, n: n <= m + held, None, None, 1, KV_LEN, device=DEVICE.type, BLOCK_SIZE=32
    )
    inputs: dict[str, Any] = {"q": draw.normal(BATCH, HEADS, 1, DIM), "held": held, "block_mask": block_mask}
    inputs |= {name: draw.normal(BATCH, KV_HEADS, 1, DIM) for name in ("k", "v")}
    caches = ("keys", "values", "keys_1", "values_1")
    inputs |= {name: draw.normal(BATCH, KV_HEADS, KV_LEN, DIM) for name in caches}
    return [inputs] * 3


_CAUSAL = Flex("flex_causal", mask="causal").spec()
TWO_LAYERS = Golden("flex_two_layers", two_layers, _two_layers_steps, (_CAUSAL,) * 2, "recognise_marked_flex")
GOLDEN = (*(one.golden for one in FLEX), TWO_LAYERS)
