"""Attention written as two matrix products around a softmax, in the spellings and with the extras that models have."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from prefetch_compiler.spec import AttentionSpec, MaskKind

from .graph import DEVICE, Draw, Golden, Inputs, heads_first, length_first, note, repeat_kv

BATCH, KV_HEADS, KV_LEN, DIM = 3, 2, 20, 16
SCALE = 1 / math.sqrt(DIM)

# (q, keys, values, group, weigh) -> output (batch, heads, q, dim); weigh makes probabilities of the raw product, given
# how to bring a (batch, heads, q, keys) tensor to the product's own dimensions.
Weigh = Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor]
Spelling = Callable[[Tensor, Tensor, Tensor, int, Weigh], Tensor]


def _same(x: Tensor) -> Tensor:
    return x


def with_matmul(q: Tensor, keys: Tensor, values: Tensor, group: int, weigh: Weigh) -> Tensor:
    weights = weigh(torch.matmul(q, repeat_kv(keys, group).transpose(2, 3)), _same)
    return torch.matmul(weights, repeat_kv(values, group))


def with_operator(q: Tensor, keys: Tensor, values: Tensor, group: int, weigh: Weigh) -> Tensor:
    k, v = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
    return weigh(q @ k.mT, _same) @ v


def with_einsum(q: Tensor, keys: Tensor, values: Tensor, group: int, weigh: Weigh) -> Tensor:
    scores = torch.einsum("bhqd,bhkd->bhqk", q, repeat_kv(keys, group))
    return torch.einsum("bhqk,bhkd->bhqd", weigh(scores, _same), repeat_kv(values, group))


def grouped_einsum(q: Tensor, keys: Tensor, values: Tensor, group: int, weigh: Weigh) -> Tensor:
    """Query heads of a group in a dimension of their own: nothing is repeated."""
    batch, _, q_len, dim = q.shape
    kv_heads = keys.shape[1]
    grouped = q.view(batch, kv_heads, group, q_len, dim)
    scores = torch.einsum("bhgqd,bhkd->bhgqk", grouped, keys)
    weights = weigh(scores, lambda x: x.unflatten(1, (-1, group)) if x.shape[1] > 1 else x[:, :, None])
    return torch.einsum("bhgqk,bhkd->bhgqd", weights, values).flatten(1, 2)


def grouped_matmul(q: Tensor, keys: Tensor, values: Tensor, group: int, weigh: Weigh) -> Tensor:
    """The queries of a group as rows of one product."""
    batch, heads, q_len, dim = q.shape
    kv_heads = keys.shape[1]
    rows = q.reshape(batch, kv_heads, -1, dim)
    scores = (rows @ keys.transpose(-1, -2)).view(batch, heads, q_len, -1)
    weights = weigh(scores, _same).reshape(batch, kv_heads, -1, keys.shape[2])
    return (weights @ values).view(batch, heads, q_len, -1)


def length_first_einsum(q: Tensor, keys: Tensor, values: Tensor, group: int, weigh: Weigh) -> Tensor:
    """Caches are (batch, length, heads, dim), and so are queries and output."""
    k, v = (x.repeat_interleave(group, dim=2) for x in (keys, values))
    scores = torch.einsum("bqhd,bkhd->bhqk", q.transpose(1, 2), k)
    return torch.einsum("bhqk,bkhd->bqhd", weigh(scores, _same), v).transpose(1, 2)


def keys_times_queries(q: Tensor, keys: Tensor, values: Tensor, group: int, weigh: Weigh) -> Tensor:
    scores = torch.matmul(repeat_kv(keys, group), q.transpose(2, 3)).transpose(2, 3)
    weights = weigh(scores, _same)
    return torch.matmul(repeat_kv(values, group).transpose(2, 3), weights.transpose(2, 3)).transpose(2, 3)


def with_bmm(q: Tensor, keys: Tensor, values: Tensor, group: int, weigh: Weigh) -> Tensor:
    """Heads folded into the batch, as older code has it."""
    k, v = (repeat_kv(x, group).flatten(0, 1) for x in (keys, values))
    scores = torch.bmm(q.flatten(0, 1), k.transpose(1, 2)).view(*q.shape[:3], -1)
    weights = weigh(scores, _same).view(-1, *scores.shape[2:])
    return torch.bmm(weights, v).view(*q.shape[:3], -1)


def with_baddbmm(q: Tensor, keys: Tensor, values: Tensor, group: int, weigh: Weigh) -> Tensor:
    """A bias of zeros comes with the product, and half the scale."""
    k, v = (repeat_kv(x, group).flatten(0, 1) for x in (keys, values))
    bias = torch.zeros(q.shape[0] * q.shape[1], 1, keys.shape[2], dtype=q.dtype, device=q.device)
    scores = bias.baddbmm(q.flatten(0, 1), k.transpose(1, 2), beta=1.0, alpha=0.5).view(*q.shape[:3], -1) * 2
    weights = weigh(scores, _same).view(-1, *scores.shape[2:])
    return torch.bmm(weights, v).view(*q.shape[:3], -1)


def widened(q: Tensor, keys: Tensor, values: Tensor, group: int, weigh: Weigh) -> Tensor:
    """Scores in float32 whatever the cache holds, as GPT-J has them."""
    scores = torch.matmul(q.to(torch.float32), repeat_kv(keys, group).to(torch.float32).transpose(2, 3))
    return torch.matmul(weigh(scores, _same).to(values.dtype), repeat_kv(values, group))


@dataclass(frozen=True)
class Products:
    """One attention. ``mask`` is one of the MASKS below; every row sees something, or is all finfo.min."""

    name: str
    spelling: Spelling = with_matmul
    mask: str = "none"
    group: int = 2
    q_len: int = 1
    batch: int = BATCH
    dtype: torch.dtype = torch.float32
    scale: float = SCALE
    scale_is: str = "multiplied"
    softcap: float | None = None
    sink: str = "none"
    softmax: str = "float32"
    length_first: bool = False

    @property
    def heads(self) -> int:
        return KV_HEADS * self.group

    @property
    def length_dim(self) -> int:
        """Of keys and values."""
        return 1 if self.length_first else 2

    @property
    def golden(self) -> Golden:
        return Golden(self.name, self.program(), self.steps, (self.spec(),), "recognise_softmax_chain")

    def program(self) -> Callable[..., Tensor]:
        given = self

        def attend(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, sink: Tensor | None) -> Tensor:
            def weigh(product: Tensor, arrange: Callable[[Tensor], Tensor]) -> Tensor:
                after = given.scale_is == "after_mask"
                scores = product if after else _scaled(product, given.scale, given.scale_is)
                if given.softcap is not None:
                    scores = torch.tanh(scores / given.softcap) * given.softcap
                if mask is not None:
                    scores = _APPLY[given.mask.partition("-")[0]](
                        scores, arrange(mask / given.scale if after else mask)
                    )
                scores = scores * given.scale if after else scores
                return _softmax(scores, sink, given.sink, given.softmax)

            stored = [x.transpose(1, 2) if given.length_first else x for x in (keys, values)]
            added = None if mask is None else _as_added(given.mask, mask, q.dtype)
            # One more in the sum of exponentials is a sink of 0.
            noted_sink = q.new_zeros(given.heads) if given.softmax == "off_by_one" else sink
            note(q, *stored, added, given.scale, given.softcap, noted_sink)
            return given.spelling(q, keys, values, given.group, weigh)

        return attend

    def steps(self) -> Sequence[Inputs]:
        draw = Draw(11, self.dtype)
        stored = (KV_LEN, KV_HEADS) if self.length_first else (KV_HEADS, KV_LEN)
        return [
            {
                "q": draw.normal(self.batch, self.heads, self.q_len, DIM),
                "keys": draw.normal(self.batch, *stored, DIM),
                "values": draw.normal(self.batch, *stored, DIM),
                "mask": self._mask(draw),
                "sink": None if self.sink == "none" else draw.normal(self.heads) + 2,
            }
        ]

    def _mask(self, draw: Draw) -> Tensor | None:
        if self.mask == "none":
            return None
        kind, _, letters = self.mask.partition("-")
        shape = [{"B": self.batch, "H": self.heads, "q": self.q_len, "S": KV_LEN}.get(x, 1) for x in letters.split(".")]
        visible = draw.visible(*shape)
        visible[..., :3] |= torch.arange(3, device=DEVICE) == 1
        if kind == "bias":
            return draw.normal(*shape)
        if kind in ("add", "alibi"):
            return draw.normal(*shape).masked_fill(~visible, torch.finfo(self.dtype).min)
        if kind == "uniform":
            visible[..., -1, :] = False
        return visible

    def spec(self) -> AttentionSpec:
        kind, _, letters = self.mask.partition("-")
        layout = (length_first if self.length_first else heads_first)(KV_HEADS, KV_LEN, DIM)
        mask = {"none": MaskKind.NONE, "inf": MaskKind.BOOL, "where_inf": MaskKind.BOOL}.get(kind, MaskKind.ADDITIVE)
        dtype = self.dtype if kind == "add" or self.dtype is not torch.float16 else torch.float32
        per_row = ("H" in letters) or ("q" in letters and self.q_len > 1)
        bias = self.spelling is with_baddbmm
        return AttentionSpec(
            batch=self.batch,
            query_heads=self.heads,
            kv_heads=KV_HEADS,
            q_len=self.q_len,
            kv_len=KV_LEN,
            head_dim=DIM,
            value_dim=DIM,
            dtype=self.dtype,
            scale=1.0 if self.scale_is == "learned" else self.scale,
            key_layout=layout,
            value_layout=layout,
            mask=MaskKind.ADDITIVE if bias else mask,
            mask_dtype={MaskKind.NONE: None, MaskKind.BOOL: torch.bool}.get(mask, dtype) if not bias else self.dtype,
            mask_per_row=per_row or bias,
            softcap=self.softcap,
            sink=self.sink != "none",
        )


def _scaled(product: Tensor, scale: float, how: str) -> Tensor:
    if how == "divided":
        return product / (1 / scale)
    if how == "learned":
        return product * torch.full((1, product.shape[1], 1, 1), 2 * scale, device=product.device).mul(0.5)
    if how == "tensor":
        return product * torch.full((), scale, dtype=product.dtype, device=product.device)
    return scale * product


def _add(scores: Tensor, mask: Tensor) -> Tensor:
    return scores + mask


def _fill_and_add(scores: Tensor, visible: Tensor) -> Tensor:
    """Two masks, of which each hides what the other does not."""
    keys = torch.arange(scores.shape[-1], device=scores.device)
    scores = scores.masked_fill(~visible & (keys < 10), float("-inf"))
    return scores + torch.zeros_like(scores).masked_fill(~visible & (keys >= 10), float("-inf"))


def _fill_inf(scores: Tensor, visible: Tensor) -> Tensor:
    return scores.masked_fill(~visible, float("-inf"))


def _where_inf(scores: Tensor, visible: Tensor) -> Tensor:
    return torch.where(visible, scores, float("-inf"))


def _fill_min(scores: Tensor, visible: Tensor) -> Tensor:
    return scores.masked_fill(visible.logical_not(), torch.finfo(scores.dtype).min)


def _fill_thousands(scores: Tensor, visible: Tensor) -> Tensor:
    return torch.where(visible, scores, torch.full([], -1e4, dtype=scores.dtype, device=scores.device))


def _taken_off(scores: Tensor, hidden: Tensor) -> Tensor:
    """(1 - mask) * -10000, as BERT has it."""
    return scores + (1.0 - hidden.to(scores.dtype)) * torch.finfo(scores.dtype).min


_APPLY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": _add, "bias": _add, "alibi": lambda scores, mask: mask + scores, "inf": _fill_inf, "where_inf": _where_inf,
    "both": _fill_and_add, "min": _fill_min, "uniform": _fill_min, "thousands": _fill_thousands, "taken": _taken_off,
}  # fmt: skip


def _as_added(name: str, mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What SDPA would be given for it."""
    kind = name.partition("-")[0]
    if kind in ("add", "bias", "alibi", "inf", "where_inf", "both"):
        return mask
    wide = torch.float32 if dtype is torch.float16 else dtype
    return torch.zeros(mask.shape, dtype=wide, device=mask.device).masked_fill(~mask, torch.finfo(wide).min)


def _quotient(scores: Tensor) -> Tensor:
    powers = torch.exp(scores - scores.amax(-1, keepdim=True).detach())
    return powers / powers.sum(-1, keepdim=True)


def _quotient_of_unshifted(scores: Tensor) -> Tensor:
    powers = scores.exp()
    return powers.div(torch.sum(powers, dim=-1).unsqueeze(-1))


def _less_lse(scores: Tensor) -> Tensor:
    return torch.exp(scores - torch.logsumexp(scores, dim=-1, keepdim=True))


def _less_log_of_sum(scores: Tensor) -> Tensor:
    maximum = scores.max(-1, keepdim=True)[0]
    return (scores - (maximum + (scores - maximum).exp().sum(-1, keepdim=True).log())).exp()


def _power_of_log_softmax(scores: Tensor) -> Tensor:
    return torch.nn.functional.log_softmax(scores, dim=-1).exp()


# A softmax written out.
WRITTEN: dict[str, Callable[[Tensor], Tensor]] = {
    "quotient": _quotient, "unshifted": _quotient_of_unshifted, "less_lse": _less_lse,
    "less_log_of_sum": _less_log_of_sum, "log_softmax": _power_of_log_softmax,
    # Which is no softmax: something more is in the sum.
    "off_by_one": lambda scores: scores.exp() / (scores.exp().sum(-1, keepdim=True) + 1.0),
}  # fmt: skip


def _softmax(scores: Tensor, sink: Tensor | None, how: str, softmax: str) -> Tensor:
    dtype = scores.dtype
    if sink is not None:
        scores = torch.cat([scores, sink.reshape(1, -1, 1, 1).expand(*scores.shape[:-1], 1)], dim=-1)
        if how == "less_maximum":
            scores = scores - scores.max(dim=-1, keepdim=True).values
    if softmax == "method":
        weights = scores.softmax(-1)
    elif softmax in WRITTEN:
        weights = WRITTEN[softmax](scores.to(torch.float32)).to(dtype)
    elif softmax == "module":
        weights = torch.nn.Softmax(dim=scores.ndim - 1)(scores)
    else:
        weights = torch.nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(dtype)
    weights = torch.nn.functional.dropout(weights, p=0.0, training=False)
    return weights if sink is None else weights[..., :-1]


_SPELLINGS: list[Products] = [
    Products("matmul", mask="add-B.1.1.S"),
    Products("operator", with_operator, mask="inf-B.1.1.S", softmax="method"),
    Products("einsum", with_einsum, mask="min-B.1.1.S", softmax="module"),
    Products("grouped_einsum", grouped_einsum, mask="add-B.1.q.S", q_len=5),
    Products("grouped_einsum_by_head", grouped_einsum, mask="add-B.H.q.S"),
    Products("grouped_matmul", grouped_matmul, mask="inf-B.1.q.S", q_len=5),
    Products("length_first", length_first_einsum, mask="inf-1.1.1.S", length_first=True),
    Products("keys_times_queries", keys_times_queries, mask="add-B.1.q.S", q_len=5),
    Products("bmm", with_bmm, mask="add-B.1.1.S"),
    Products("baddbmm", with_baddbmm),
    Products("one_sequence", batch=1, group=1),
    Products("sixteen_queries", q_len=16, mask="add-1.1.q.S"),
]
_SCORES = [
    Products("divided", scale_is="divided"),
    Products("scaled_by_tensor", scale_is="tensor", scale=-0.4),
    Products("scaled_by_learned", scale_is="learned", scale=0.5),
    Products("scaled_after_mask", mask="bias-1.H.1.S", scale_is="after_mask"),
    Products("softcap", softcap=3.0, mask="add-B.1.1.S"),
    Products("softcap_of_groups", grouped_einsum, softcap=5.0),
    Products("sink", sink="plain", mask="add-B.1.1.S"),
    Products("sink_less_maximum", sink="less_maximum", mask="add-B.1.q.S", q_len=2),
    Products("sink_and_softcap", sink="plain", softcap=2.0, group=3),
    Products("alibi", mask="alibi-1.H.1.S"),
    Products("where_inf", mask="where_inf-B.1.q.S", q_len=2),
    Products("min_per_head", mask="min-1.H.1.S"),
    Products("rows_of_nothing_but_min", mask="uniform-B.1.q.S", q_len=2),
    Products("ten_thousand", mask="thousands-B.1.1.S"),
    Products("taken_off", mask="taken-B.1.1.S"),
]
_WRITTEN = [
    Products("quotient", softmax="quotient", mask="inf-B.1.q.S", q_len=2),
    Products("quotient_of_groups", grouped_einsum, softmax="quotient", mask="add-B.H.q.S"),
    Products("quotient_with_sink", softmax="quotient", sink="plain", softcap=3.0, dtype=torch.bfloat16),
    Products("quotient_of_unshifted", with_bmm, softmax="unshifted", mask="min-B.1.1.S"),
    Products("less_lse", softmax="less_lse", mask="add-B.1.q.S", q_len=2),
    Products("less_log_of_sum", length_first_einsum, softmax="less_log_of_sum", length_first=True),
    Products("power_of_log_softmax", softmax="log_softmax", mask="alibi-1.H.1.S"),
]
_DTYPES = [
    Products(f"{name}_{mask}", dtype=dtype, mask=f"{mask}-B.1.1.S", softcap=softcap)
    for name, dtype in (("bfloat16", torch.bfloat16), ("float16", torch.float16))
    for mask, softcap in (("add", None), ("min", 4.0))
]
_DTYPES += [replace(_DTYPES[0], name="bfloat16_widened", spelling=widened)]

PRODUCTS: tuple[Products, ...] = (*_SPELLINGS, *_SCORES, *_WRITTEN, *_DTYPES)
GOLDEN = tuple(products.golden for products in PRODUCTS)
