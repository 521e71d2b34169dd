"""Kernels over paged, quantised, and paged quantised caches compile for GPUs that need not be here, in every partition,
with and without soft caps, sinks and log-sum-exps.

What the heuristic chooses is compiled in ``test_heuristic_compiles``; here each partition is, and TMA where there is
TMA.
"""

from __future__ import annotations

from dataclasses import replace

from prefetch_compiler.config import KernelConfig, LoadPath, OperandOrder, PrefetchKind
from prefetch_compiler.device import REFERENCE_DEVICES
from prefetch_compiler.lower.precompile import CompiledKernel
from prefetch_compiler.select.admissible import why_inadmissible
from prefetch_compiler.spec import AttentionSpec, MaskKind, Storage

from .cases import WITHIN_SEQUENCES
from .compile_worker import Job, compile_elsewhere
from .representative_specs import E4M3, E5M2, INT8, TOKEN, kivi, packed, quantised, site

SHAPE = {"batch": 4, "mask": MaskKind.LENGTHS}
PAGED = site(8, 2, 64, page_size=64, q_len=2, is_causal=True, **SHAPE)  # type: ignore[arg-type]
SMALL_PAGES = site(8, 2, 64, page_size=16, **SHAPE)  # type: ignore[arg-type]
CAPPED = {"softcap": 50.0, "sink": True, "lse": True}
CACHES: dict[str, list[AttentionSpec]] = {
    "quantised": [
        quantised(site(8, 2, 64), E4M3),
        replace(quantised(site(8, 2, 64, mask=MaskKind.NONE), INT8, TOKEN), **CAPPED),  # type: ignore[arg-type]
    ],
    "quantised, with zeros": [
        packed(site(8, 2, 128, q_len=2), "uint4_halves"),
        quantised(replace(PAGED, **CAPPED), INT8, TOKEN, Storage(key_minima=True, value_minima=True)),  # type: ignore[arg-type]
    ],
    "quantised, of groups": [kivi(site(8, 2, 64)), kivi(site(8, 2, 128, q_len=2), INT8, 64, 64)],
    "paged": [PAGED, replace(SMALL_PAGES, **CAPPED)],  # type: ignore[arg-type]
    "paged and quantised": [
        quantised(replace(PAGED, **CAPPED), E5M2, TOKEN),  # type: ignore[arg-type]
        quantised(SMALL_PAGES, E4M3, TOKEN),
    ],
}


def job(cache: str, arch: int, place: int) -> Job:
    """The four architectures share the partitions among them, each cache meets every one."""
    device = REFERENCE_DEVICES[arch]
    partition = WITHIN_SEQUENCES[(ARCHITECTURES.index(arch) + place) % len(WITHIN_SEQUENCES)]
    spec = CACHES[cache][WITHIN_SEQUENCES.index(partition) % 2]
    config = KernelConfig(32, 5, 4, 2, partition=partition)
    if device.has_tma and spec.page_size != 16:
        config = replace(config, load_path=LoadPath.TMA, prefetch_depth=1, prefetch_kind=PrefetchKind.BULK)
    if spec.cache is not None:
        config = replace(config, num_warps=2, operand_order=OperandOrder.KQ)
    assert why_inadmissible(spec, config, device) is None
    return spec, config, device


ARCHITECTURES = [80, 90, 100, 120]


def test_every_cache_compiles_for_every_architecture() -> None:
    jobs = {
        f"{cache}, sm_{arch}": job(cache, arch, place) for arch in ARCHITECTURES for place, cache in enumerate(CACHES)
    }
    results = dict(zip(jobs, compile_elsewhere(list(jobs.values())), strict=True))
    assert {name: result for name, result in results.items() if isinstance(result, str)} == {}
    for name, (_, _, device) in jobs.items():
        decode, merge = results[name]
        assert isinstance(decode, CompiledKernel)
        assert isinstance(merge, CompiledKernel)
        assert max(decode.shared_bytes, merge.shared_bytes) <= device.shared_memory_bytes, name


def test_each_cache_meets_every_partition() -> None:
    for place, cache in enumerate(CACHES):
        assert {job(cache, arch, place)[1].partition for arch in ARCHITECTURES} == set(WITHIN_SEQUENCES)
