"""Lowers an exported decode step to embedded launches for an H200 that is not there, and prints what they are as JSON.

A process of its own, without TRITON_INTERPRET: kernels that the interpreter runs cannot be embedded. The graph is on
the CPU, and goes as far as Inductor's code generation; the source that Inductor would write for each kernel is
compiled. Argument: a folder for those sources.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch
import triton
from torch._higher_order_ops.triton_kernel_wrap import kernel_side_table, triton_kernel_wrapper_functional
from torch._inductor import compile_fx as inductor
from torch._inductor.codegen.wrapper import user_defined_triton_kernel_transitive_closure_source_code
from torch._inductor.output_code import CompiledAOTI
from torch._inductor.package import package
from torch.fx import GraphModule, Node

import prefetch_compiler
from prefetch_compiler.config import KernelConfig, LoadPath, Merge, PrefetchKind
from prefetch_compiler.device import REFERENCE_DEVICES
from prefetch_compiler.lower import precompile, rewrite
from prefetch_compiler.lower.precompile import compile_call, target_of
from prefetch_compiler.lower.specialise import KernelCall
from prefetch_compiler.recognize import sdpa, softmax
from prefetch_compiler.report import Report, collect_reports
from prefetch_compiler.select.selection import Selection

from .decoder import decoder, empty_cache, step_inputs

H200 = REFERENCE_DEVICES[90]
# All that embedded kernels do without, and a second kernel.
SELECTED = KernelConfig(
    16, 2, 4, 3, prefetch_depth=2, prefetch_kind=PrefetchKind.BULK, load_path=LoadPath.TMA, launch_overlap=True,
    merge=Merge.SEPARATE, prologue_prefetch=True,
)  # fmt: skip


class NoDriver:
    """Of the GPU that is not there: all that PyTorch's analysis of what a kernel writes to asks for."""

    def get_current_target(self) -> Any:
        return target_of(H200)


def final_graph() -> tuple[GraphModule, Report]:
    """What Inductor would generate code for, and what became of the sites."""
    graphs: list[GraphModule] = []

    def keep(module: GraphModule, _: Sequence[Any], **__: Any) -> CompiledAOTI:
        graphs.append(module)
        return CompiledAOTI(filename=[], device_type="cuda")

    def selected(*arguments: Any, **options: Any) -> Selection:
        return replace(select(*arguments, **options), config=SELECTED)

    select = rewrite.select
    x, position = step_inputs(3)
    program = torch.export.export(decoder().requires_grad_(False), (x, empty_cache(), position))
    with ExitStack() as stack:
        for owner, name, replacement in (
            (rewrite, "profile", lambda device: H200),
            (precompile, "profile_of", lambda device: H200),
            (rewrite, "select", selected),
            (sdpa, "require_device", lambda value: None),
            (softmax, "require_device", lambda value: None),
            (inductor, "compile_fx_aot", functools.partial(inductor.compile_fx_aot, inner_compile=keep)),
            (package, "package_aoti", lambda path, files: path),
        ):
            stack.enter_context(mock.patch.object(owner, name, replacement))
        report = stack.enter_context(collect_reports())
        options = {"kvprefetch.strict": True}
        prefetch_compiler.aot_compile_and_package(program, package_path="none.pt2", options=options, embed_kernels=True)
    (module,) = graphs
    return module, report


def launch_of(node: Node, folder: Path) -> dict[str, Any]:
    """What is known of one launch: its kernel, the arguments that Inductor takes it to write to, those whose strides
    Inductor is to keep as they are, and the registers that it takes when it is compiled from what Inductor writes."""
    arguments: Any = node.kwargs
    kernel = kernel_side_table.get_kernel(arguments["kernel_idx"]).fn
    tensors = {name: value.meta["val"] for name, value in arguments["kwargs"].items() if isinstance(value, Node)}
    kept = node.meta["eager_input_vals"][1]["kwargs"]
    module = as_inductor_writes(kernel, folder / f"{kernel.__name__}_{arguments['constant_args_idx']}.py")
    values = dict.fromkeys(kernel.arg_names) | arguments["kwargs"] | tensors
    constants = {parameter.name: values.pop(parameter.name) for parameter in kernel.params if parameter.is_constexpr}
    call = KernelCall(getattr(module, kernel.__name__), (1,), values, constants, {"num_warps": 4, "num_stages": 3})
    return {
        "kernel": kernel.__name__,
        "written": list(arguments["tensors_to_clone"]),
        "tensors": sorted(tensors),
        "strides kept": sorted(name for name, tensor in tensors.items() if kept[name].stride() == tensor.stride()),
        "registers": registers_as_inductor_passes_floats(call),
    }


def registers_as_inductor_passes_floats(call: KernelCall) -> int | None:
    """Of the kernel as AOTInductor compiles it: Python's floats are doubles to it, not singles as in a launch."""
    type_name = precompile._type_name

    def as_doubles(value: Any) -> str:
        return "fp64" if isinstance(value, float) else type_name(value)

    with mock.patch.object(precompile, "_type_name", as_doubles):
        return compile_call(call, target_of(H200)).registers


def as_inductor_writes(kernel: Any, path: Path) -> ModuleType:
    """The kernel, and the functions that it calls, as a module of their own."""
    source = user_defined_triton_kernel_transitive_closure_source_code(kernel)
    path.write_text(f"import triton\nimport triton.language as tl\n\n@triton.jit\n{source}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    triton.runtime.driver.set_active(NoDriver())
    module, report = final_graph()
    launches = module.graph.find_nodes(op="call_function", target=triton_kernel_wrapper_functional)
    found = {
        "sites": [site.to_dict() for site in report.sites],
        "launches": [launch_of(node, Path(sys.argv[1])) for node in launches],
        "operators": sorted({str(node.target) for node in module.graph.nodes if node.op == "call_function"}),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
