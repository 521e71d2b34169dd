"""What the heuristic chooses compiles, fits and hardly spills on GPUs that need not be here.

A spilled register goes to local memory and back at every use, inside the loop over keys, where nothing but K and V
should move. The limit is 128 bytes a thread, stores and loads counted together: 16 registers out and back, of 255. The
compiler takes as much for values that live across the loop even where it has registers left (it stops at 128 or 168 to
let more programs share an SM), so no limit below it would hold for any choice of configuration.

The settings were chosen with Triton 3.6. Triton 3.7 and later allocate registers otherwise, and spill more for the two
sites of most query rows: for these the limit is not asked of later versions.

Every site is compiled for sm_90, and for one of sm_80 and sm_100; with KVPREFETCH_EVERY_SITE=1 for all three.
"""

from __future__ import annotations

import os

import pytest
import torch
import triton

from prefetch_compiler.device import REFERENCE_DEVICES, DeviceProfile
from prefetch_compiler.select.admissible import why_inadmissible
from prefetch_compiler.select.heuristic import choose
from prefetch_compiler.spec import AttentionSpec

from .compile_worker import Result, compile_elsewhere
from .representative_specs import E4M3, E5M2, INT8, LATENT_SPECS, QUANTISED_SPECS, SPECS, latent, quantised, site

SPILL_LIMIT_BYTES = 128
# 128 query rows of head_dim 256: their accumulator and queries alone take 192 of each thread's 255 registers with the
# most warps there may be, and programs of fewer rows would read K and V several times.
SPILL_LIMIT_BYTES_OF = {"wide heads, many rows": 1024}
# Where later versions of Triton than the settings were chosen with spill more.
SPILL_MORE_LATER = ("Llama-8B batch 64, 15 drafted tokens", "wide heads, many rows")
LATER_TRITON = tuple(map(int, triton.__version__.split(".")[:2])) > (3, 6)

# The architectures that share a family of settings with one of the first three are compiled for fewer sites.
FEW = [
    "Llama-8B",
    "Llama-8B batch 64",
    "SmolLM2-135M float32",
    "Gemma-3 batch 64",
    "Falcon-7B",
    "wide heads, many rows",
]
EVERY_SITE = os.environ.get("KVPREFETCH_EVERY_SITE") == "1"
EVEN, ODD = (list(SPECS), list(SPECS)) if EVERY_SITE else (list(SPECS)[::2], list(SPECS)[1::2])
SITES: dict[int, list[str]] = {80: EVEN, 90: list(SPECS), 100: ODD, 86: FEW, 89: FEW[:1], 120: FEW}
FEW_QUANTISED = ["Llama-8B batch 64 e4m3"]
QUANTISED_SITES: dict[int, list[str]] = {
    80: ["causal, int8"],
    90: [
        "Llama-8B batch 64 int8, a scale a token",
        "Llama-8B, pages of 16, e4m3",
        "Llama-8B batch 64, pages of 64, 4 drafted tokens, int8, a scale a token",
        "DeepSeek-V3, not absorbed, e4m3",
        "wide heads, many rows, e4m3",
        "Llama-8B batch 64 uint8, zero points of tokens",
        "Llama-8B batch 64 uint8, KIVI",
        "Gemma-3 batch 64 uint8, KIVI",
    ],
    100: FEW_QUANTISED,
    120: FEW_QUANTISED,
}
# Each takes many seconds to compile.
LATENT_SITES: dict[int, list[str]] = {
    80: ["DeepSeek-V3, 3 drafted tokens"],
    90: ["DeepSeek-V3"],
    100: ["DeepSeek-V3, a share of 16 heads"],
}


def complaint(name: str, result: Result, device: DeviceProfile) -> str | None:
    """What is wrong with the compiled kernels of a site, or None."""
    if isinstance(result, str):
        return f"{name} does not compile: {result}"
    limit = SPILL_LIMIT_BYTES_OF.get(name, SPILL_LIMIT_BYTES)
    for kernel in result:
        if kernel.shared_bytes > device.shared_memory_bytes:
            return f"{name}: {kernel.name} takes {kernel.shared_bytes} bytes of shared memory"
        if kernel.spill_bytes is None or kernel.registers is None:
            return f"{name}: the assembler did not tell what {kernel.name} spills"
        if kernel.spill_bytes > limit and not (LATER_TRITON and name in SPILL_MORE_LATER):
            return f"{name}: {kernel.name} spills {kernel.spill_bytes} bytes; the limit is {limit}"
    return None


def test_every_reference_device_is_compiled_for() -> None:
    assert set(SITES) == set(REFERENCE_DEVICES)
    assert {*SITES[80], *SITES[100]} == set(SITES[90]) == set(SPECS)


@pytest.mark.parametrize("arch", SITES, ids=lambda arch: f"sm_{arch}")
def test_the_choice_compiles_fits_and_hardly_spills(arch: int) -> None:
    device = REFERENCE_DEVICES[arch]
    names = SITES[arch]
    jobs = [(SPECS[name], choose(SPECS[name], device), device) for name in names]
    results = compile_elsewhere(jobs)
    complaints = [complaint(name, result, device) for name, result in zip(names, results, strict=True)]
    assert [c for c in complaints if c is not None] == []


def test_the_choice_for_a_quantised_cache_compiles_fits_and_hardly_spills() -> None:
    sites = [(REFERENCE_DEVICES[arch], name) for arch, names in QUANTISED_SITES.items() for name in names]
    jobs = [(QUANTISED_SPECS[name], choose(QUANTISED_SPECS[name], device), device) for device, name in sites]
    complaints = [
        complaint(f"{name} on {device.name}", result, device)
        for (device, name), result in zip(sites, compile_elsewhere(jobs), strict=True)
    ]
    assert [c for c in complaints if c is not None] == []


def test_the_choice_for_a_latent_cache_compiles_fits_and_hardly_spills() -> None:
    sites = [(REFERENCE_DEVICES[arch], name) for arch, names in LATENT_SITES.items() for name in names]
    jobs = [(LATENT_SPECS[name], choose(LATENT_SPECS[name], device), device) for device, name in sites]
    complaints = [
        complaint(f"{name} on {device.name}", result, device)
        for (device, name), result in zip(sites, compile_elsewhere(jobs), strict=True)
    ]
    assert [c for c in complaints if c is not None] == []


@pytest.mark.parametrize("arch", REFERENCE_DEVICES, ids=lambda arch: f"sm_{arch}")
def test_there_is_an_admissible_choice_for_every_latent_cache(arch: int) -> None:
    device = REFERENCE_DEVICES[arch]
    for heads in (1, 16, 40, 128):
        for latent_dim, rope_dim in ((128, 16), (256, 32), (512, 64), (512, 128)):
            for q_len, batch in ((1, 1), (1, 64), (4, 16), (16, 1)):
                spec = latent(site(heads, 1, latent_dim, q_len=q_len, batch=batch, mask_per_row=q_len > 1), rope_dim)
                assert why_inadmissible(spec, choose(spec, device), device) is None


@pytest.mark.parametrize("kv_dtype", [E4M3, E5M2, INT8], ids=str)
@pytest.mark.parametrize("arch", [80, 89, 90, 100], ids=lambda arch: f"sm_{arch}")
def test_there_is_an_admissible_choice_for_every_quantised_cache(arch: int, kv_dtype: torch.dtype) -> None:
    device = REFERENCE_DEVICES[arch]
    for spec in (quantised(plain, kv_dtype) for plain in _sites(torch.bfloat16)):
        assert why_inadmissible(spec, choose(spec, device), device) is None


def _sites(dtype: torch.dtype) -> list[AttentionSpec]:
    """Every shape that is promised, coarsely: (group, head_dim, q_len, batch)."""
    return [
        site(group * kv_heads, kv_heads, head_dim, q_len=q_len, batch=batch, dtype=dtype)
        for group, kv_heads in ((1, 8), (3, 3), (8, 4), (71, 1))
        for head_dim in (8, 40, 64, 96, 128, 192, 256)
        for q_len in (1, 2, 16)
        for batch in (1, 64)
    ]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("arch", [80, 90, 100], ids=lambda arch: f"sm_{arch}")
def test_there_is_an_admissible_choice_for_every_promised_shape(arch: int, dtype: torch.dtype) -> None:
    device = REFERENCE_DEVICES[arch]
    for spec in _sites(dtype):
        config = choose(spec, device)
        assert why_inadmissible(spec, config, device) is None
        assert choose(spec, device) == config
