"""Attention sites of well-known models, and a few made to be awkward: what a heuristic must serve."""

from __future__ import annotations

from dataclasses import replace

import torch

from prefetch_compiler.spec import AttentionSpec, MaskKind, QuantisedCache, ScaleGranularity, Storage, TensorLayout

HALF, BRAIN, SINGLE = torch.float16, torch.bfloat16, torch.float32
E4M3, E5M2, INT8, UINT8 = torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.uint8


def site(
    query_heads: int,
    kv_heads: int,
    head_dim: int,
    *,
    value_dim: int | None = None,
    batch: int = 1,
    q_len: int = 1,
    kv_len: int = 4096,
    dtype: torch.dtype = BRAIN,
    mask: MaskKind = MaskKind.BOOL,
    mask_per_row: bool = False,
    is_causal: bool = False,
    row_padding: int = 0,
    page_size: int = 0,
    softcap: float | None = None,
    sink: bool = False,
    lse: bool = False,
) -> AttentionSpec:
    """A (batch, heads, length, dim) cache whose rows are ``row_padding`` elements longer than its heads are wide; or
    pages in place of sequences."""
    value_dim = head_dim if value_dim is None else value_dim

    def layout(dim: int) -> TensorLayout:
        row = dim + row_padding
        length = page_size or kv_len
        return TensorLayout(kv_heads * length * row, length * row, row)

    mask_dtype = {MaskKind.BOOL: torch.bool, MaskKind.ADDITIVE: dtype}.get(mask)
    return AttentionSpec(
        batch=batch,
        query_heads=query_heads,
        kv_heads=kv_heads,
        q_len=q_len,
        kv_len=kv_len,
        head_dim=head_dim,
        value_dim=value_dim,
        dtype=dtype,
        scale=head_dim**-0.5,
        key_layout=layout(head_dim),
        value_layout=layout(value_dim),
        mask=mask,
        mask_dtype=mask_dtype,
        mask_per_row=mask_per_row,
        is_causal=is_causal,
        page_size=page_size,
        softcap=softcap,
        sink=sink,
        lse=lse,
    )


NONE, ADDITIVE, LENGTHS = MaskKind.NONE, MaskKind.ADDITIVE, MaskKind.LENGTHS
SPECS: dict[str, AttentionSpec] = {
    "Llama-8B": site(32, 8, 128, kv_len=8192),
    "Llama-8B batch 64": site(32, 8, 128, batch=64),
    "Llama-8B 4 drafted tokens": site(32, 8, 128, q_len=5, mask_per_row=True),
    "Llama-8B batch 64, 15 drafted tokens": site(32, 8, 128, batch=64, q_len=16, mask_per_row=True),
    "Llama-8B float32": site(32, 8, 128, dtype=SINGLE),
    "Llama-8B float32 batch 64": site(32, 8, 128, batch=64, dtype=SINGLE),
    "Llama-8B dynamic cache": site(32, 8, 128, mask=NONE),
    "Llama-8B pages of 16": site(32, 8, 128, mask=LENGTHS, page_size=16),
    "Gemma-3 batch 64, pages of 1": site(8, 4, 256, batch=64, mask=LENGTHS, page_size=1),
    "SmolLM2-135M": site(9, 3, 64, kv_len=512),
    "SmolLM2-135M float32": site(9, 3, 64, kv_len=512, dtype=SINGLE),
    "Phi-3-mini": site(32, 32, 96, batch=16),
    "Phi-2": site(32, 32, 80, dtype=HALF),
    "GPT-2": site(12, 12, 64, kv_len=1024, batch=8, dtype=HALF),
    "Gemma-3": site(8, 4, 256),
    "Gemma-3 batch 64": site(8, 4, 256, batch=64),
    "Falcon-7B": site(71, 1, 64),
    "Falcon-7B, 7 drafted tokens, additive": site(71, 1, 64, q_len=8, mask=ADDITIVE, mask_per_row=True),
    "Whisper cross-attention": site(20, 20, 64, kv_len=1500, mask=NONE),
    "DeepSeek-V3, not absorbed": site(128, 128, 192, value_dim=128, mask=ADDITIVE),
    "Gemma-2 27B, eager": site(32, 16, 128, batch=16, mask=ADDITIVE, softcap=50.0),
    "gpt-oss, eager": site(64, 8, 64, batch=16, mask=ADDITIVE, sink=True),
    "a small head": site(4, 2, 8, kv_len=100),
    "a head of 40, rows not aligned": site(8, 8, 40, row_padding=1),
    "causal": site(32, 8, 128, q_len=16, mask=NONE, is_causal=True),
    "wide heads, many rows": site(64, 1, 256, q_len=16, mask=ADDITIVE, mask_per_row=True),
    "wide heads, many rows, float32": site(16, 8, 256, q_len=16, dtype=SINGLE),
    "Llama-8B batch 64, 2,048 keys": site(32, 8, 128, batch=64, kv_len=2048),
    "Llama-8B batch 64, 2,048 keys, biased": site(32, 8, 128, batch=64, kv_len=2048, mask=ADDITIVE),
}


def quantised(
    spec: AttentionSpec,
    dtype: torch.dtype = E4M3,
    scales: ScaleGranularity = ScaleGranularity.HEAD,
    zeros: Storage | None = None,
) -> AttentionSpec:
    """``spec`` over a quantised cache with float32 scales of one granularity, and zeros like them."""
    cache = QuantisedCache(dtype, scales, scales, SINGLE)
    if zeros is not None:
        cache = replace(cache, key_zeros=scales, value_zeros=scales, zero_dtype=SINGLE, storage=zeros)
    return replace(spec, cache=cache)


TOKEN = ScaleGranularity.TOKEN


def packed(spec: AttentionSpec, packing: str) -> AttentionSpec:
    """``spec`` over numbers of four bits with a scale and a zero point for each token."""
    halved = (
        TensorLayout(*(stride // 2 for stride in layout.strides)) for layout in (spec.key_layout, spec.value_layout)
    )
    cache = QuantisedCache(UINT8, TOKEN, TOKEN, HALF, TOKEN, TOKEN, HALF, Storage(packing=packing))
    return replace(spec, cache=cache, key_layout=next(halved), value_layout=next(halved))


def kivi(spec: AttentionSpec, dtype: torch.dtype = UINT8, tokens: int = 32, columns: int = 32) -> AttentionSpec:
    """``spec`` over a cache as KIVI has it (arXiv 2402.02750): a minimum and a scale for every column over some tokens
    of K, and for some columns of every token of V."""
    group = ScaleGranularity.GROUP
    cache = QuantisedCache(
        dtype, group, group, HALF, group, group, HALF, Storage(key_minima=True, value_minima=True), (tokens, 1),
        (1, columns),
    )  # fmt: skip
    return replace(spec, cache=cache)


def latent(spec: AttentionSpec, rope_dim: int = 64) -> AttentionSpec:
    """``spec``, whose KV head's keys are latents, with rotary keys beside them in a tensor of their own."""
    own = TensorLayout(spec.kv_len * rope_dim, spec.kv_len * rope_dim, rope_dim)
    return replace(spec, rope_dim=rope_dim, rope_layout=own, scale=(128 + rope_dim) ** -0.5)


LATENT_SPECS: dict[str, AttentionSpec] = {
    "DeepSeek-V3": latent(site(128, 1, 512, kv_len=8192)),
    "DeepSeek-V3, 3 drafted tokens": latent(site(128, 1, 512, batch=16, q_len=4, mask_per_row=True)),
    "DeepSeek-V3, a share of 16 heads": latent(site(16, 1, 512, batch=16)),
}

QUANTISED_SPECS: dict[str, AttentionSpec] = {
    "Llama-8B e4m3": quantised(SPECS["Llama-8B"]),
    "Llama-8B batch 64 e4m3": quantised(SPECS["Llama-8B batch 64"]),
    "Llama-8B batch 64 int8, a scale a token": quantised(SPECS["Llama-8B batch 64"], INT8, TOKEN),
    "Llama-8B batch 64, 15 drafted tokens, e4m3": quantised(SPECS["Llama-8B batch 64, 15 drafted tokens"]),
    "Llama-8B dynamic cache, e5m2, a scale a token": quantised(SPECS["Llama-8B dynamic cache"], E5M2, TOKEN),
    "Llama-8B, pages of 16, e4m3": quantised(SPECS["Llama-8B pages of 16"]),
    "Llama-8B batch 64, pages of 64, 4 drafted tokens, int8, a scale a token": quantised(
        site(32, 8, 128, batch=64, q_len=5, mask=LENGTHS, page_size=64, is_causal=True), INT8, TOKEN
    ),
    "Llama-8B batch 64 uint8, zero points of tokens": quantised(SPECS["Llama-8B batch 64"], UINT8, TOKEN, Storage()),
    "Llama-8B, pages of 16, uint8, a minimum a token": quantised(
        SPECS["Llama-8B pages of 16"], UINT8, TOKEN, Storage(True, True)
    ),
    "Llama-8B batch 64 uint8, KIVI": kivi(SPECS["Llama-8B batch 64"]),
    "Llama-8B, 4 drafted tokens, int8, KIVI": kivi(SPECS["Llama-8B 4 drafted tokens"], INT8),
    "Llama-8B batch 64 uint4 in halves": packed(SPECS["Llama-8B batch 64"], "uint4_halves"),
    "Gemma-3 batch 64 int4, interleaved": packed(SPECS["Gemma-3 batch 64"], "int4_interleaved"),
    "Gemma-3 batch 64 uint8, KIVI": kivi(SPECS["Gemma-3 batch 64"]),
    "Gemma-3 batch 64 e5m2": quantised(SPECS["Gemma-3 batch 64"], E5M2),
    "Falcon-7B, 7 drafted tokens, additive, int8": quantised(SPECS["Falcon-7B, 7 drafted tokens, additive"], INT8),
    "DeepSeek-V3, not absorbed, e4m3": quantised(SPECS["DeepSeek-V3, not absorbed"], E4M3, TOKEN),
    "a small head, e4m3": quantised(SPECS["a small head"]),
    "causal, int8": quantised(SPECS["causal"], INT8, TOKEN),
    "wide heads, many rows, e4m3": quantised(SPECS["wide heads, many rows"], E4M3, TOKEN),
}
