"""What is refused before anything is compiled goes by an estimate of shared memory: no kernel takes more, and it is not
so far above that what would run is refused.

Architectures differ little here, and are shared out among the cases: all pairs of the other factors meet.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from prefetch_compiler.config import KernelConfig, LoadPath, OperandOrder
from prefetch_compiler.device import REFERENCE_DEVICES, DeviceProfile
from prefetch_compiler.select.admissible import why_inadmissible
from prefetch_compiler.select.footprint import shared_memory_estimate_bytes
from prefetch_compiler.spec import AttentionSpec, MaskKind, QuantisedCache, ScaleGranularity, Storage, TensorLayout

from .compile_worker import Job, compile_elsewhere
from .covering import covering_rows
from .representative_specs import BRAIN, HALF, SINGLE, UINT8, latent, site

NONE, HEAD, TOKEN, GROUP = (ScaleGranularity(name) for name in ("none", "head", "token", "group"))
ADDITIVE, LENGTHS = MaskKind.ADDITIVE, MaskKind.LENGTHS
# Of one architecture's kernels with asynchronous copies alone, and two with TMA.
ARCHITECTURES = (90, 80, 100)
# The estimate may be above by as many times, and by what small kernels have for scratch.
SLACK, SLACK_BYTES = 2.5, 8 << 10

FACTORS: dict[str, list[Any]] = {
    # Scales and zeros of K, and of V; what shares one, in tokens and columns, where it is a group.
    "keys": [(HEAD, NONE), (TOKEN, TOKEN), (GROUP, GROUP), (NONE, GROUP)],
    "values": [(HEAD, NONE), (TOKEN, TOKEN), (GROUP, GROUP), (GROUP, NONE)],
    "key_group": [(16, 1), (1, 8)],
    "value_group": [(1, 8), (32, 1)],
    "scale_dtype": [SINGLE, HALF],
    "zero_dtype": [SINGLE, torch.int8],
    "packing": ["", "uint4_interleaved", "int4_halves"],
    "dim": [16, 40, 64],
    "num_stages": [1, 2, 4],
    "num_warps": [1, 2],
    "block_kv": [16, 64],
    "load_path": list(LoadPath),
    "mask_per_row": [False, True],
    "q_len": [1, 4],
}


def quantised_case(row: dict[str, Any]) -> tuple[AttentionSpec, KernelConfig]:
    packing, dim, kv_len = row["packing"], row["dim"], 256
    mask_kind = ADDITIVE if row["mask_per_row"] else MaskKind.NONE
    plain = site(8, 2, dim, q_len=row["q_len"], kv_len=kv_len, mask=mask_kind, mask_per_row=row["mask_per_row"])
    if row["mask_per_row"]:
        plain = replace(plain, mask_dtype=SINGLE)
    elements = dim // 2 if packing else dim
    cache = QuantisedCache(
        UINT8, row["keys"][0], row["values"][0], row["scale_dtype"], row["keys"][1], row["values"][1],
        row["zero_dtype"], Storage(True, True, packing),
        row["key_group"] if GROUP in row["keys"] else None, row["value_group"] if GROUP in row["values"] else None,
    )  # fmt: skip
    layout = TensorLayout(2 * kv_len * elements, kv_len * elements, elements)
    config = KernelConfig(
        row["block_kv"], 1, row["num_warps"], row["num_stages"], load_path=row["load_path"],
        operand_order=OperandOrder.KQ,
    )  # fmt: skip
    return replace(plain, cache=cache, key_layout=layout, value_layout=layout), config


def _config(name: str) -> KernelConfig:
    return KernelConfig.decode(name)


# Kernels that took more than an estimate without what is copied ahead: tiles of scales, masks by row; and others that
# have little else.
KIVI_OF_FOUR_BITS = QuantisedCache(
    UINT8, GROUP, GROUP, SINGLE, GROUP, GROUP, SINGLE, Storage(True, True, "uint4_interleaved"), (16, 1), (1, 16)
)
PARTICULAR: dict[str, tuple[AttentionSpec, KernelConfig]] = {
    "groups of four-bit numbers": (
        replace(
            site(4, 2, 32, batch=2, kv_len=64), cache=KIVI_OF_FOUR_BITS,
            key_layout=TensorLayout(2048, 1024, 16), value_layout=TensorLayout(2048, 1024, 16),
        ),
        _config("b128-s1-w2-st4-p0line-tma-kq-pdl-separate-even"),
    ),
    "a mask by row, keys first": (
        replace(site(142, 2, 128, q_len=16, dtype=HALF, mask=ADDITIVE, mask_per_row=True), mask_dtype=SINGLE),
        _config("b64-s2-w8-st4-p0line-pointer-kq-nopdl-separate-even"),
    ),
    "a mask by row, rows first, TMA": (
        replace(site(2, 2, 128, q_len=5, mask=ADDITIVE, mask_per_row=True), mask_dtype=SINGLE),
        _config("b64-s1-w2-st2-p0line-tma-qk-nopdl-separate-even"),
    ),
    "a bool mask by row, warpgroups": (
        site(8, 2, 128, q_len=16, mask=MaskKind.BOOL, mask_per_row=True),
        _config("b128-s1-w8-st3-p0line-tma-qk-pdl-separate-even"),
    ),
    "a bool mask by row, warpgroups, small tiles": (
        site(8, 2, 128, q_len=16, mask=MaskKind.BOOL, mask_per_row=True),
        _config("b64-s1-w8-st2-p0line-tma-qk-pdl-separate-even"),
    ),
    "an additive mask by row, warpgroups": (
        replace(site(8, 2, 128, q_len=16, mask=ADDITIVE, mask_per_row=True), mask_dtype=SINGLE),
        _config("b64-s1-w8-st2-p0line-tma-qk-pdl-separate-even"),
    ),
    "no mask, warpgroups": (site(8, 2, 128, q_len=16), _config("b128-s1-w8-st3-p0line-tma-qk-pdl-separate-even")),
    "few rows, padded": (site(8, 2, 128), _config("b64-s1-w4-st3-p0line-tma-qk64-pdl-separate-even")),
    "few rows, padded, by pointers": (site(8, 2, 64), _config("b128-s1-w8-st2-p0line-pointer-qk64-pdl-separate-even")),
    "a mask by row, rows padded": (
        site(8, 2, 128, q_len=5, mask=MaskKind.BOOL, mask_per_row=True),
        _config("b64-s1-w4-st3-p0line-tma-qk64-pdl-separate-even"),
    ),
    "no mask, 128 rows": (site(16, 2, 64, q_len=16), _config("b64-s1-w8-st2-p0line-pointer-qk-pdl-separate-even")),
    "pages, one stage of float32": (
        site(64, 2, 16, q_len=16, dtype=SINGLE, mask=LENGTHS, page_size=64),
        _config("b32-s1-w8-st1-p0line-tma-qk-nopdl-inplace-even"),
    ),
    "latents, one stage": (
        latent(site(1, 1, 256, dtype=BRAIN), 16), _config("b64-s1-w8-st1-p0line-pointer-qk-nopdl-separate-even")
    ),
    "latents, a mask by row": (
        replace(latent(site(16, 1, 128, q_len=2, mask=ADDITIVE, mask_per_row=True), 32), mask_dtype=SINGLE),
        _config("b16-s3-w8-st4-p0line-tma-qk-nopdl-separate-even"),
    ),
}  # fmt: skip


def jobs() -> dict[str, Job]:
    found: dict[str, Job] = {name: (*case, _roomy(90)) for name, case in PARTICULAR.items()}
    warpgroups = {name: case for name, case in PARTICULAR.items() if name.endswith("warpgroups")}
    found |= {f"{name}, sm_100": (*case, _roomy(100)) for name, case in warpgroups.items()}
    for number, row in enumerate(covering_rows(FACTORS, seed=1)):
        spec, config = quantised_case(row)
        device = _roomy(ARCHITECTURES[number % len(ARCHITECTURES)])
        if not device.has_tma:
            config = replace(config, load_path=LoadPath.POINTER)
        if why_inadmissible(spec, config, device) is not None:
            config = replace(config, load_path=LoadPath.POINTER)
        found[f"{spec.describe()} | {config.encode()} | {device.name}"] = (spec, config, device)
    return found


def _roomy(arch: int) -> DeviceProfile:
    """Where the estimate refuses nothing."""
    return replace(REFERENCE_DEVICES[arch], shared_memory_bytes=1 << 30)


def test_no_kernel_takes_more_than_is_estimated_and_few_much_less() -> None:
    cases = jobs()
    assert [name for name, case in cases.items() if why_inadmissible(*case) is not None] == []
    wrong: dict[str, Any] = {}
    for (name, (spec, config, _)), result in zip(cases.items(), compile_elsewhere(list(cases.values())), strict=True):
        estimate = shared_memory_estimate_bytes(spec, config)
        needed = result if isinstance(result, str) else result[0].shared_bytes
        if isinstance(needed, str) or not needed <= estimate <= SLACK * needed + SLACK_BYTES:
            wrong[name] = needed, estimate
    assert wrong == {}


@pytest.mark.parametrize("name", ["groups of four-bit numbers", "a mask by row, keys first"])
def test_what_does_not_fit_is_refused(name: str) -> None:
    """As an H200 refuses to load it: 339,000 and 278,528 bytes of 232,448."""
    assert "bytes of shared memory" in str(why_inadmissible(*PARTICULAR[name], REFERENCE_DEVICES[90]))
