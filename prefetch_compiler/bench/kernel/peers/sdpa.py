"""torch's scaled_dot_product_attention, with each backend by itself, in every spelling that is right for a case.

- no mask, grouped heads by ``enable_gqa``: only where every key of the cache is held;
- ``mask``: a bool mask, and K and V repeated for their query heads first, as Hugging Face models do;
- ``mask gqa``: a bool mask and ``enable_gqa``, nothing repeated;
- ``folded``: the query heads that share a KV head as so many query positions, which is the same without a causal mask;
- ``mask folded``: both.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from ..cases import Case
from ..operands import Operands
from .peer import Attend, UnsupportedCaseError, paged_reason

_BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}


@dataclass(frozen=True)
class Sdpa:
    """``heads`` says how grouped heads are spelt: ``repeated``, ``gqa`` or ``folded``."""

    backend: str
    masked: bool
    heads: str

    @property
    def family(self) -> str:
        return "SDPA"

    @property
    def name(self) -> str:
        words = ["sdpa", self.backend]
        if self.masked:
            words.append("mask")
        if self.heads == "folded" or (self.heads == "gqa" and self.masked):
            words.append(self.heads)
        return " ".join(words)

    def unavailable(self) -> str | None:
        return None

    def unsupported(self, case: Case) -> str | None:
        if (reason := paged_reason(case)) is not None:
            return reason
        if self.masked and self.backend == "flash":
            return "SDPA's flash backend takes no mask"
        if self.masked and not case.needs_lengths:
            return "a dense cache needs no mask"
        if not self.masked and not case.holds_everything:
            return "without a mask it reads what is not held"
        if case.group == 1 and (self.heads == "folded" or (self.masked and self.heads == "gqa")):
            return "no grouped heads: the same as without"
        return None

    def prepare(self, operands: Operands) -> Attend:
        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            with sdpa_kernel([_BACKENDS[self.backend]]):
                return self._call(operands, q, k, v)

        _try(attend, operands)
        return attend

    def _call(self, operands: Operands, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        case, mask = operands.case, operands.mask if self.masked else None
        scale, group = case.scale, case.group
        if self.heads == "folded":
            folded = q.view(case.batch, case.kv_heads, group, case.head_dim)
            if mask is not None:
                mask = mask.expand(case.batch, case.kv_heads, group, case.capacity)
            out = scaled_dot_product_attention(folded, k, v, attn_mask=mask, scale=scale)
        elif self.heads == "gqa":
            out = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=group > 1)
        else:
            k, v = repeated(k, group), repeated(v, group)
            out = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
        return out.reshape(case.batch, case.query_heads, case.head_dim)


def repeated(x: Tensor, group: int) -> Tensor:
    """(batch, kv_heads, length, dim) to (batch, kv_heads * group, length, dim), in Hugging Face's words: a copy."""
    if group == 1:
        return x
    batch, heads, length, dim = x.shape
    return x[:, :, None].expand(batch, heads, group, length, dim).reshape(batch, heads * group, length, dim)


def _try(attend: Attend, operands: Operands) -> None:
    """One launch, to learn why a backend refuses: it says so in warnings.

    Raises:
        UnsupportedCaseError: it does.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            attend(operands.q, *operands.caches[0])
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as error:
            if "No available kernel" not in str(error):
                raise
            raise UnsupportedCaseError(_reasons([str(one.message) for one in caught])) from error


def _reasons(warned: list[str]) -> str:
    """What the warnings say beyond that a kernel was not used, without the places in torch's sources."""
    lines = (text.split(" (Triggered internally")[0].strip() for text in warned)
    told = [line for line in lines if line and "kernel not used because" not in line and "runtime disabled" not in line]
    return "SDPA: " + ("; ".join(dict.fromkeys(told)) or "no available kernel")


def sdpa_peers() -> list[Sdpa]:
    spellings = ((False, "gqa"), (False, "folded"), (True, "repeated"), (True, "gqa"), (True, "folded"))
    every = [Sdpa(backend, masked, heads) for backend in _BACKENDS for masked, heads in spellings]
    # Flash takes no mask: once is enough to say so.
    return [peer for peer in every if peer.backend != "flash" or not peer.masked or peer.heads == "repeated"]
