"""Stand-ins for libraries of peers: what their documentation says of their arguments, in plain PyTorch. They tell
whether an adapter passes the right thing in the right place, not whether the library is right."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from prefetch_compiler.reference import exact_attention


def attend_rows(q: Tensor, keys: list[Tensor], values: list[Tensor], scale: float) -> Tensor:
    """q (batch, heads, dim), each sequence's keys (length, kv_heads, dim) -> (batch, heads, dim)."""
    rows = [
        exact_attention(q[n][None, :, None], k.transpose(0, 1)[None], v.transpose(0, 1)[None], scale=scale)[0, :, 0]
        for n, (k, v) in enumerate(zip(keys, values, strict=True))
    ]
    return torch.stack(rows).to(q.dtype)


def gathered(pool: Tensor, pages: Tensor, length: int) -> Tensor:
    """(length, kv_heads, dim) of one sequence, from a pool (pages, page_size, kv_heads, dim)."""
    return pool[pages.long()].flatten(0, 1)[:length]


def flash_attention_module(name: str, table_argument: str | None) -> ModuleType:
    """``flash_attn_with_kvcache`` over (batch, length, kv_heads, dim), or over pages."""
    module: Any = ModuleType(name)

    def flash_attn_with_kvcache(
        q: Tensor, k_cache: Tensor, v_cache: Tensor, *, cache_seqlens: Tensor, softmax_scale: float, causal: bool,
        **options: Any,
    ) -> Tensor:  # fmt: skip
        assert q.shape[1] == 1
        assert cache_seqlens.dtype == torch.int32
        table = options.pop(table_argument, None) if table_argument else None
        assert set(options) <= {"scheduler_metadata"}, options
        lengths = cache_seqlens.tolist()

        def rows(cache: Tensor) -> list[Tensor]:
            if table is None:
                return [cache[n, :length] for n, length in enumerate(lengths)]
            return [gathered(cache, table[n], length) for n, length in enumerate(lengths)]

        return attend_rows(q[:, 0], rows(k_cache), rows(v_cache), softmax_scale)[:, None]

    module.flash_attn_with_kvcache = flash_attn_with_kvcache
    return module


def flash_attention_3() -> ModuleType:
    module: Any = flash_attention_module("flash_attn_interface", "page_table")

    def get_scheduler_metadata(
        batch_size: int, max_seqlen_q: int, max_seqlen_k: int, num_heads_q: int, num_heads_kv: int, headdim: int,
        cache_seqlens: Tensor, qkv_dtype: Any = None, page_size: int | None = None, causal: bool = False,
    ) -> SimpleNamespace:  # fmt: skip
        return SimpleNamespace(**locals())

    module.get_scheduler_metadata = get_scheduler_metadata
    return module


class BatchDecodeWithPagedKVCacheWrapper:
    """FlashInfer's, over pages as ``plan`` lists them."""

    def __init__(self, workspace: Tensor, kv_layout: str, **options: Any) -> None:
        assert workspace.dtype == torch.uint8
        assert options["use_cuda_graph"]
        self.layout = kv_layout

    def plan(
        self, indptr: Tensor, indices: Tensor, last_page_len: Tensor, query_heads: int, kv_heads: int, head_dim: int,
        page_size: int, **options: Any,
    ) -> None:  # fmt: skip
        assert {tensor.dtype for tensor in (indptr, indices, last_page_len)} == {torch.int32}
        self.indptr, self.indices, self.last, self.page_size = indptr, indices, last_page_len, page_size
        self.scale, self.heads, self.dim = options["sm_scale"], kv_heads, head_dim

    def run(self, q: Tensor, cache: tuple[Tensor, Tensor], out: Tensor) -> Tensor:
        pools = [pool.transpose(1, 2) if self.layout == "HND" else pool for pool in cache]
        for pool in pools:
            assert pool.shape[1:] == (self.page_size, self.heads, self.dim)
        sequences: list[list[Tensor]] = [[], []]
        for n in range(q.shape[0]):
            pages = self.indices[self.indptr[n] : self.indptr[n + 1]]
            length = (len(pages) - 1) * self.page_size + int(self.last[n])
            for pool, found in zip(pools, sequences, strict=True):
                found.append(gathered(pool, pages, length))
        return out.copy_(attend_rows(q, *sequences, self.scale))


def xqa_batch_decode_with_kv_cache(
    query: Tensor, kv_cache: tuple[Tensor, Tensor], workspace_buffer: Tensor, block_tables: Tensor, seq_lens: Tensor,
    max_seq_len: int, bmm1_scale: float, bmm2_scale: float, out: Tensor, kv_layout: str,
) -> Tensor:  # fmt: skip
    assert max_seq_len == int(seq_lens.max())
    pools = [pool.transpose(1, 2) if kv_layout == "HND" else pool for pool in kv_cache]
    rows = [[gathered(pool, block_tables[n], length) for n, length in enumerate(seq_lens.tolist())] for pool in pools]
    return out.copy_(attend_rows(query, rows[0], rows[1], bmm1_scale) * bmm2_scale)


def flashinfer_modules() -> dict[str, ModuleType]:
    top: Any = ModuleType("flashinfer")
    top.BatchDecodeWithPagedKVCacheWrapper = BatchDecodeWithPagedKVCacheWrapper
    top.__path__ = []
    decode: Any = ModuleType("flashinfer.decode")
    decode.xqa_batch_decode_with_kv_cache = xqa_batch_decode_with_kv_cache
    return {"flashinfer": top, "flashinfer.decode": decode, "cudnn": ModuleType("cudnn")}


class PaddedKeysMask:
    """xformers' ``BlockDiagonalPaddedKeysMask``: every sequence has ``kv_padding`` rows."""

    def __init__(self, padding: int, lengths: list[int], table: Tensor | None = None, page: int = 0) -> None:
        self.padding, self.lengths, self.table, self.page = padding, lengths, table, page

    @classmethod
    def from_seqlens(cls, q_seqlen: list[int], kv_padding: int, kv_seqlen: list[int], device: Any) -> PaddedKeysMask:
        assert set(q_seqlen) == {1}
        return cls(kv_padding, kv_seqlen)

    def make_paged(self, block_tables: Tensor, page_size: int, paged_type: type) -> PaddedKeysMask:
        assert self.padding == block_tables.shape[1] * page_size
        return PaddedKeysMask(self.padding, self.lengths, block_tables, page_size)

    def rows(self, x: Tensor) -> list[Tensor]:
        """(length, kv_heads, dim) of every sequence, from (1, positions, kv_heads, group, dim) or without groups."""
        flat = x[0, :, :, 0] if x.ndim == 5 else x[0]
        if self.table is None:
            return [flat[n * self.padding :][:length] for n, length in enumerate(self.lengths)]
        pool = flat.unflatten(0, (-1, self.page))
        return [gathered(pool, self.table[n], length) for n, length in enumerate(self.lengths)]


class FwOp:
    @staticmethod
    def not_supported_reasons(inputs: Any) -> list[str]:
        return ["page size should be divisible by the block size"] if inputs.attn_bias.page % 64 else []

    @staticmethod
    def apply(inputs: Any, needs_gradient: bool) -> tuple[Tensor, None]:
        query = inputs.query[0].flatten(1, -2)
        bias = inputs.attn_bias
        out = attend_rows(query, bias.rows(inputs.key), bias.rows(inputs.value), inputs.scale)
        return out.view(inputs.query.shape), None


def xformers_modules() -> dict[str, ModuleType]:
    names = ("xformers", "xformers.ops", "xformers.ops.fmha", "xformers.ops.fmha.triton_splitk")
    modules: dict[str, Any] = {name: ModuleType(name) for name in (*names, "xformers.ops.fmha.attn_bias")}
    for module in modules.values():
        module.__path__ = []
    modules["xformers.ops.fmha"].Inputs = SimpleNamespace
    modules["xformers.ops.fmha.triton_splitk"].FwOp = FwOp
    modules["xformers.ops.fmha.attn_bias"].BlockDiagonalPaddedKeysMask = PaddedKeysMask
    modules["xformers.ops.fmha.attn_bias"].PagedBlockDiagonalPaddedKeysMask = PaddedKeysMask
    return modules


def all_modules() -> dict[str, ModuleType]:
    return {
        "flash_attn": flash_attention_module("flash_attn", None),
        "flash_attn_interface": flash_attention_3(),
        **flashinfer_modules(),
        **xformers_modules(),
    }
