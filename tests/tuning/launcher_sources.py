"""Compares what our offline compiler asks of Triton with what Triton's own launcher asks. Run as a script, without
TRITON_INTERPRET in its environment; prints JSON.

The launcher runs for a GPU that need not be here: a stand-in driver names the target, and launches only warm up.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import torch
from triton import knobs
from triton.compiler import make_backend
from triton.runtime.driver import driver

from prefetch_compiler.config import KernelConfig, LoadPath, Merge, OperandOrder, PrefetchKind
from prefetch_compiler.database.key import parse_key
from prefetch_compiler.device import REFERENCE_DEVICES
from prefetch_compiler.lower.launch import allocate
from prefetch_compiler.lower.precompile import compile_call, example_tensors, kernel_calls, source_of, target_of
from prefetch_compiler.lower.specialise import KernelCall
from prefetch_compiler.select.admissible import why_inadmissible
from prefetch_compiler.select.heuristic import choose, choose_without_producer
from prefetch_compiler.spec import (
    AS_THE_DTYPE_SAYS,
    AttentionSpec,
    MaskKind,
    QuantisedCache,
    ScaleGranularity,
    TensorLayout,
)
from prefetch_compiler.tuning.inputs import operands, prefix_mask

DEVICE = REFERENCE_DEVICES[90]
TOKEN = ScaleGranularity.TOKEN
TARGET = target_of(DEVICE)


class AbsentGpu:
    """As much of a Triton driver as compiling takes."""

    def get_current_target(self) -> Any:
        return TARGET

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


LATENTS = TensorLayout(256 * 512, 256 * 512, 512)


def spec(**changes: Any) -> AttentionSpec:
    layout = TensorLayout(8 * 256 * 128, 256 * 128, 128)
    plain = AttentionSpec(
        2, 32, 8, 1, 256, 128, 128, torch.bfloat16, 128**-0.5, layout, layout, MaskKind.BOOL, torch.bool
    )
    return replace(plain, **changes)


SPECS = {
    "bool mask": spec(),
    "no mask": spec(mask=MaskKind.NONE, mask_dtype=None),
    "causal": spec(mask=MaskKind.NONE, mask_dtype=None, is_causal=True, q_len=4),
    "additive, by row": spec(mask=MaskKind.ADDITIVE, mask_dtype=torch.float16, dtype=torch.float16, mask_per_row=True),
    "one sequence": spec(batch=1),
    "rows not aligned": spec(
        head_dim=40, value_dim=40, key_layout=TensorLayout(82001, 41 * 256, 41), value_layout=TensorLayout(82001, 41, 9)
    ),
    "strides beyond 32 bits": spec(key_layout=TensorLayout(1 << 36, 256 * 128, 128)),
    "float32": spec(dtype=torch.float32),
    "capped, with sinks": spec(softcap=50.0, sink=True),
    "pages of 16": spec(mask=MaskKind.LENGTHS, mask_dtype=None, page_size=16),
    "pages of 64, causal, int8, a scale a token": spec(
        mask=MaskKind.LENGTHS,
        mask_dtype=None,
        is_causal=True,
        q_len=4,
        page_size=64,
        cache=QuantisedCache(torch.int8, TOKEN, TOKEN, torch.float32),
    ),
    "e4m3, capped, with sinks": spec(cache=QuantisedCache(torch.float8_e4m3fn), softcap=50.0, sink=True),
    "int8, a scale a token": spec(cache=QuantisedCache(torch.int8, TOKEN, TOKEN, torch.float16), mask_per_row=True),
    "e5m2, strides beyond 32 bits": spec(
        cache=QuantisedCache(torch.float8_e5m2, ScaleGranularity.HEAD, TOKEN, torch.float32),
        key_layout=TensorLayout(1 << 36, 256 * 128, 128),
    ),
    "latents": spec(
        query_heads=128,
        kv_heads=1,
        head_dim=512,
        value_dim=512,
        key_layout=LATENTS,
        value_layout=LATENTS,
        rope_dim=64,
        rope_layout=TensorLayout(256 * 64, 256 * 64, 64),
    ),
}


def configs(given: AttentionSpec) -> list[KernelConfig]:
    base = choose(given, DEVICE)
    if given.rope_dim:
        assert base.load_path is LoadPath.PRODUCER
        return [base, replace(base, num_splits=1, launch_overlap=False), choose_without_producer(given, DEVICE)]
    found = [
        replace(base, num_splits=1),
        replace(base, num_splits=5),
        replace(base, num_splits=29, launch_overlap=False),
        replace(base, num_splits=16, merge=Merge.INPLACE),
        replace(base, prefetch_depth=2),
        replace(base, operand_order=OperandOrder.KQ, num_stages=3, num_warps=8),
    ]
    if given.tma_loadable:
        found.append(replace(base, load_path=LoadPath.TMA, prefetch_depth=1, prefetch_kind=PrefetchKind.BULK))
    if given.cache is not None:
        return [config for config in found if why_inadmissible(given, config, DEVICE) is None]
    return found


def launcher_request(call: KernelCall) -> tuple[str, str]:
    """Hashes of the source and the options that the launcher compiles for ``call``."""
    requests: list[tuple[str, str]] = []
    kernel = call.kernel
    kernel.device_caches.clear()
    assert kernel.device_caches[0]  # makes the binder, and with it the attribute that is replaced here

    def note(source: Any, target: Any, options: dict[str, Any]) -> None:
        requests.append((source.hash(), make_backend(target).parse_options(dict(options)).hash()))

    kernel.compile = note
    kernel.warmup(**call.arguments, **call.constants, **call.options, grid=call.grid)
    kernel.device_caches.clear()
    return requests[0]


def differing() -> tuple[int, list[str]]:
    """How many requests were compared, and which differ."""
    compared, found = 0, []
    for name, given in SPECS.items():
        for config in configs(given):
            for call in kernel_calls(given, config, example_tensors(given, config, "meta"), DEVICE):
                compared += 1
                source, options = source_of(call).hash(), make_backend(TARGET).parse_options(dict(call.options)).hash()
                theirs = launcher_request(call)
                if (source, options) != theirs:
                    what = "source" if source != theirs[0] else "options"
                    found.append(f"{name}, {config.encode()}: {what} of {call.kernel.__name__}")
    return compared, found


MEASURED_KEYS = (
    "bfloat16 8q/2kv d64 q1 b2 s256 bhsd-tma bool",
    "bfloat16 8q/2kv d64 q1 b1 s256 bhsd-tma bool",
    "float16 4q/4kv d40 q4 b2 s128 bshd-tma additive_rows-float16",
    "float32 4q/2kv d64 q2 b2 s128 strided-none bool_rows",
    "float16 4q/2kv d64 q1 b2 s128 bhsd-rows none",
    "bfloat16 4q/2kv d64 q4 b2 s128 bhsd-tma causal",
    "bfloat16/float8_e4m3fn 8q/2kv d64 q1 b2 s256 bhsd-tma bool",
    "float16/int8 4q/4kv d40 q4 b2 s128 bshd-none bool_rows key_token_scales value_token_scales",
    "bfloat16/float8_e5m2 4q/2kv d64 q1 b2 s128 bhsd-rows none sink softcap value_token_scales",
    "bfloat16/uint8 4q/2kv d64 q1 b2 s128 bhsd-tma none key_minima key_runs value_groups value_minima",
    "float16/uint4_halves 4q/2kv d64 q1 b2 s128 bhsd-tma bool key_token_scales key_zeros",
    "bfloat16 128q/1kv d512 q1 b2 s128 bhsd-tma bool rope64",
)


def measured_differently() -> tuple[int, list[str]]:
    """How many launches of the measurer's operands were compared with what the compile pool compiles for their key,
    and which differ."""
    compared, found = 0, []
    generator = torch.Generator().manual_seed(0)
    for name in MEASURED_KEYS:
        given = parse_key(name).spec()
        mask = prefix_mask(given, given.kv_len // 2, torch.device("cpu"))
        made = operands(given, mask, generator)
        for config in configs(given):
            real = allocate(
                made.q, made.stale_k, made.stale_v, made.expanded_mask(), made.bounds, given.out_heads_first, config,
                k_scale=made.k_scale, v_scale=made.v_scale, sink=made.sink, rope=made.rope, k_zero=made.k_zero,
                v_zero=made.v_zero,
                storage=AS_THE_DTYPE_SAYS if given.cache is None else given.cache.storage,
            )  # fmt: skip
            pooled = kernel_calls(given, config, example_tensors(given, config, "meta"), DEVICE)
            for call, ours in zip(kernel_calls(given, config, real, DEVICE), pooled, strict=True):
                compared += 1
                options = make_backend(TARGET).parse_options(dict(ours.options)).hash()
                if launcher_request(call) != (source_of(ours).hash(), options):
                    found.append(f"{name}, {config.encode()}: {call.kernel.__name__}")
    return compared, found


def found_on_disk() -> list[bool]:
    """Whether the launcher takes each kernel that we compiled from the cache."""
    hits: list[bool] = []
    given, config = SPECS["bool mask"], KernelConfig(32, 4, 4, 2)
    for call in kernel_calls(given, config, example_tensors(given, config, "meta")):
        compile_call(call, TARGET)
        call.kernel.device_caches.clear()
        knobs.compilation.listener = lambda **event: hits.append(event["cache_hit"])
        call.kernel.warmup(**call.arguments, **call.constants, **call.options, grid=call.grid)
        knobs.compilation.listener = None
    return hits


if __name__ == "__main__":
    driver.set_active(AbsentGpu())
    reply = {"sources": differing(), "measured": measured_differently(), "found_on_disk": found_on_disk()}
    print(json.dumps(reply))
