"""Compile a spec's kernels before they are needed: for the present GPU, or for one that is not there.

Compiling while the graph is lowered turns a configuration that the compiler or the device refuses into a fallback with
a reason, instead of a crash in the first decode step.
"""

from __future__ import annotations

import io
import logging
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from ..config import KernelConfig
from ..device import DeviceProfile
from ..device import profile as profile_of
from ..quantisation import scale_shape
from ..spec import AS_THE_DTYPE_SAYS, AttentionSpec, MaskKind, ScaleGranularity, TensorLayout
from .launch import allocate, calls_of, empty_lse
from .scale_layouts import ScaleLayout, ScaleLayouts
from .specialise import DecodeTensors, KernelCall

log = logging.getLogger(__name__)

_TRITON_TYPES = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.int16: "i16",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.bool: "u1",
}


@dataclass(frozen=True)
class CompiledKernel:
    """What one kernel takes on its target. Spills are bytes stored plus bytes loaded, by ptxas; None off NVIDIA."""

    name: str
    shared_bytes: int
    registers: int | None
    spill_bytes: int | None


def example_tensors(
    spec: AttentionSpec, config: KernelConfig, device: torch.device | str, layouts: ScaleLayouts = ()
) -> DecodeTensors:
    """Operands with the dtypes, shapes and strides of ``spec``; on "meta" they take no memory. Scales and zeros are
    contiguous, or lie as ``layouts`` says.

    Their addresses count as 16-byte aligned, as those of torch's allocations are.
    """

    def strided(shape: tuple[int, ...], layout: TensorLayout) -> torch.Tensor:
        strides = (layout.batch_stride, layout.head_stride, layout.row_stride, 1)
        return torch.empty_strided(shape, strides, dtype=spec.kv_dtype, device=device)

    q = torch.empty((spec.batch, spec.query_heads, spec.q_len, spec.query_dim), dtype=spec.dtype, device=device)
    k = strided((*spec.cache_shape, spec.stored_elements(spec.head_dim)), spec.key_layout)
    v = strided((*spec.cache_shape, spec.stored_elements(spec.value_dim)), spec.value_layout)
    rope = None
    if spec.rope_layout is not None:
        v, rope = k, strided((*spec.cache_shape, spec.rope_dim), spec.rope_layout)
    mask = bounds = lengths = table = None
    if spec.mask is MaskKind.LENGTHS:
        lengths = torch.empty((spec.batch,), dtype=torch.int32, device=device)
    elif spec.mask is not MaskKind.NONE:
        rows = (spec.query_heads, spec.q_len) if spec.mask_per_row else (1, 1)
        mask = torch.empty((spec.batch, *rows, spec.kv_len), dtype=spec.mask_dtype, device=device)
        mask = mask.expand(spec.batch, spec.query_heads, spec.q_len, spec.kv_len)
        bounds = torch.empty((spec.batch, 4), dtype=torch.int32, device=device)
    if spec.page_size:
        table = torch.empty((spec.batch, spec.kv_len // spec.page_size), dtype=torch.int32, device=device)
    scales = _example_scales(spec, device, dict(layouts))
    sink = torch.empty(spec.query_heads, dtype=spec.dtype, device=device) if spec.sink else None
    return allocate(
        q, k, v, mask, bounds, spec.out_heads_first, config, lengths=lengths, table=table, sink=sink, rope=rope,
        lse=empty_lse(q) if spec.lse else None,
        storage=AS_THE_DTYPE_SAYS if spec.cache is None else spec.cache.storage, **scales,
    )  # fmt: skip


def _example_scales(
    spec: AttentionSpec, device: torch.device | str, layouts: dict[str, ScaleLayout]
) -> dict[str, torch.Tensor]:
    """Scales and zeros, by the names of the launch's arguments."""
    cache = spec.cache
    if cache is None:
        return {}
    keys, values = (spec.head_dim, cache.key_group), (spec.value_dim, cache.value_group)
    wanted = {
        "k_scale": (cache.key_scales, cache.scale_dtype, keys),
        "v_scale": (cache.value_scales, cache.scale_dtype, values),
        "k_zero": (cache.key_zeros, cache.zero_dtype, keys),
        "v_zero": (cache.value_zeros, cache.zero_dtype, values),
    }
    return {
        name: _laid_out(scale_shape(granularity, *spec.cache_shape, *group), layouts.get(name), dtype, device)
        for name, (granularity, dtype, group) in wanted.items()
        if granularity is not ScaleGranularity.NONE
    }


def _laid_out(
    shape: tuple[int, ...], layout: ScaleLayout, dtype: torch.dtype | None, device: torch.device | str
) -> torch.Tensor:
    """Of ``shape``, or of 1 where ``layout`` has 1, with its strides. Of the pages of a pool a spec knows fewer than
    there may be."""
    if layout is None or len(layout[0]) != len(shape):
        return torch.empty(shape, dtype=dtype, device=device)
    sizes = tuple(1 if size == 1 else whole for size, whole in zip(layout[0], shape, strict=True))
    return torch.empty_strided(sizes, layout[1], dtype=dtype, device=device)


def kernel_calls(
    spec: AttentionSpec, config: KernelConfig, tensors: DecodeTensors, device: DeviceProfile | None = None
) -> list[KernelCall]:
    """Every kernel that one launch of ``spec`` under ``config`` runs, in order. ``device`` is what they are for, where
    that is not what ``tensors`` are on."""
    return calls_of(
        tensors, is_causal=spec.is_causal, scale=spec.scale, softcap=spec.softcap, config=config, device=device
    )


def precompile(spec: AttentionSpec, config: KernelConfig, device: torch.device, layouts: ScaleLayouts = ()) -> None:
    """Compile and load the kernels of ``spec`` for the present ``device``, over scales that lie as ``layouts`` says.
    The interpreter has nothing to compile.

    Raises:
        triton.OutOfResources, triton.CompilationError or a driver error: the device refuses the configuration.
        ImportError: there is no Triton.
    """
    on_device = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
    # Inductor runs its passes under a fake-tensor mode, in which tensors have no addresses.
    with on_device, _disable_current_modes():
        tensors = example_tensors(spec, config, "meta", layouts)
        for call in kernel_calls(spec, config, tensors, profile_of(device)):
            # The interpreter has nothing to compile, but a launch that cannot be put together is found here too.
            if device.type == "cuda":
                began = time.perf_counter()
                call.precompile()
                took_ms = (time.perf_counter() - began) * 1e3
                log.debug("%s %s: compiled and loaded in %.0f ms", call.kernel.__name__, config.encode(), took_ms)


def compile_for_target(spec: AttentionSpec, config: KernelConfig, profile: DeviceProfile) -> list[CompiledKernel]:
    """Compile for ``profile``, which need not be present. Not possible in a process that has TRITON_INTERPRET=1.

    Raises:
        triton.CompilationError, triton.OutOfResources or another error of the compiler's.
    """
    target = target_of(profile)
    calls = kernel_calls(spec, config, example_tensors(spec, config, "meta"), profile)
    return [compile_call(call, target) for call in calls]


def target_of(profile: DeviceProfile) -> Any:
    """Triton's name for the architecture of ``profile``."""
    from triton.backends.compiler import GPUTarget

    return GPUTarget("hip", "gfx942", 64) if profile.backend == "hip" else GPUTarget("cuda", profile.arch, 32)


def source_of(call: KernelCall) -> Any:
    """What Triton compiles for ``call``, specialised as its own launcher does it, so that both find one another's
    binaries in Triton's cache on disk (tests/tuning/test_triton_cache.py compares the two)."""
    from triton.compiler import ASTSource

    constants = {name: value for name, value in call.arguments.items() if value is None} | call.constants
    signature = {name: _type_name(value) for name, value in call.arguments.items()}
    signature |= dict.fromkeys(call.constants, "constexpr")
    every_constant = _constants_have_attributes()
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for index, name in enumerate(signature):
        if signature[name].startswith("*"):
            attributes[index,] = [["tt.divisibility", 16]]
        elif signature[name] == "constexpr" and (every_constant or isinstance(constants[name], str)):
            attributes[index,] = []
    # A kernel in Gluon begins further down.
    source = _gluon_source() if call.kernel.is_gluon() else ASTSource
    return source(fn=call.kernel, signature=signature, constexprs=constants, attrs=attributes)


@cache
def _constants_have_attributes() -> bool:
    """Whether the launcher notes a list of attributes, which is empty, for every constant, as it does since Triton 3.7.
    Triton 3.6 takes a constant's value for such a list where it is text, and notes what it finds in it: nothing."""
    import triton

    major, minor = triton.__version__.split(".")[:2]
    return (int(major), int(minor)) >= (3, 7)


def _gluon_source() -> Any:
    from triton.experimental.gluon._runtime import GluonASTSource

    return GluonASTSource


def compile_call(call: KernelCall, target: Any) -> CompiledKernel:
    """Compile one kernel, or take it from Triton's cache on disk, where it lies for a later launch to find.

    Raises:
        triton.CompilationError, triton.OutOfResources or another error of the compiler's.
    """
    import triton

    log = io.StringIO()
    with _assembler_log_into(log):
        compiled = triton.compile(source_of(call), target=target, options=call.options)
    registers = spills = None
    if target.backend == "cuda":
        # Nothing is logged when the binary was in the cache.
        registers, spills = _usage_in(log.getvalue())
        if registers is None or spills is None:
            registers, spills = _ptxas_usage(compiled.asm["ptx"], target.arch)
    return CompiledKernel(call.kernel.__name__, compiled.metadata.shared, registers, spills)


@contextmanager
def _assembler_log_into(log: io.StringIO) -> Iterator[None]:
    """Triton prints the assembler's log, which holds registers and spills; running it again would take as long."""
    from triton import knobs

    with knobs.nvidia.scope(), redirect_stdout(log):
        knobs.nvidia.dump_ptxas_log = True
        yield


def _type_name(value: Any) -> str:
    if value is None:
        return "constexpr"
    if isinstance(value, torch.Tensor):
        return f"*{_TRITON_TYPES[value.dtype]}"
    if isinstance(value, float):
        return "fp32"
    if isinstance(value, int):
        return "i32" if -(2**31) <= value < 2**31 else "i64"
    layout = f",{value.layout!r}" if hasattr(value, "layout") else ""
    return f"tensordesc<{_TRITON_TYPES[value.base.dtype]}{list(value.block_shape)}{layout}>"


def _ptxas_usage(ptx: str, arch: int) -> tuple[int | None, int | None]:
    """Registers per thread and bytes spilled, as the assembler that Triton bundles reports them."""
    from triton.backends.nvidia.compiler import get_ptxas

    suffix = "a" if arch >= 90 else ""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx)
        result = subprocess.run(
            [get_ptxas(arch).path, "-v", f"--gpu-name=sm_{arch}{suffix}", str(source), "-o", os.devnull],
            capture_output=True,
            text=True,
            check=False,
        )
    return _usage_in(result.stderr)


def _usage_in(log: str) -> tuple[int | None, int | None]:
    """Registers and spilled bytes in what ``ptxas -v`` wrote; None where it does not say."""
    registers = re.search(r"Used (\d+) registers", log)
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log)
    return (
        int(registers[1]) if registers else None,
        int(spills[1]) + int(spills[2]) if spills else None,
    )
