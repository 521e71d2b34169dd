"""Ahead of time: an exported program → mark → AOTAutograd → recognise, select, lower → AOTInductor → a package."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.fx import GraphModule

from .backend import lower_and_compile
from .graph_dump import GraphDump, dump_folder
from .options import split_options
from .recognize.sizes import no_guards

if TYPE_CHECKING:  # importing it takes long
    from torch.export import ExportedProgram


def aot_compile_and_package(
    exported_program: ExportedProgram,
    *,
    package_path: str | os.PathLike[str],
    options: Mapping[str, Any] | None = None,
    embed_kernels: bool = False,
) -> str:
    """What ``torch._inductor.aoti_compile_and_package`` does, with decode attention lowered as
    ``torch.compile(backend="kvprefetch")`` lowers it. Call it where the package will run: on that GPU model.

    The package calls our operator, so a process that loads it must have imported ``prefetch_compiler`` before. With
    ``embed_kernels`` it does not, and need not have Python.

    Args:
        exported_program: from ``torch.export.export``, in training IR (not ``run_decompositions``); left as it is.
        package_path: where to write, ending in ``.pt2``.
        options: as for ``torch.compile``: ours, and Inductor's.
        embed_kernels: compile the kernels into the package. For sites of fixed sizes; without TMA, launch overlap and
            prefetches.

    Returns:
        Path of the package, for ``torch._inductor.aoti_load_package``.

    Raises:
        UnknownOptionError, InvalidOptionError: a wrong option of ours.
        SiteNotLoweredError, LoweringError, DatabaseError: as for the backend, under ``kvprefetch.strict`` only.
    """
    ours, config = split_options(options)
    if ours.mode is not None:
        config = {**torch._inductor.list_mode_options(ours.mode), **config}
    module = _own_module(exported_program)
    arguments, keywords = exported_program.example_inputs

    def compile_with_inductor() -> str:
        from torch._inductor.package.package import package_aoti

        files: Any = torch._inductor.aot_compile(
            module, arguments, keywords, options={**config, "aot_inductor.package": True}
        )
        return str(package_aoti(os.fspath(package_path), files))

    if not ours.enabled:
        return compile_with_inductor()
    dump = GraphDump(dump_folder(ours.dump_graphs, config))
    dump.captured(module, "export")
    with no_guards():
        return lower_and_compile(module, ours, dump, config, compile_with_inductor, embed_kernels)


def _own_module(exported_program: ExportedProgram) -> GraphModule:
    """The program as a graph that may be changed. Its weights are the program's. Guards, which are code that
    AOTInductor cannot compile, are left out, as its own entry point leaves them out."""
    module: GraphModule = exported_program.module(check_guards=False)
    for name, inner in module.named_children():
        if isinstance(inner, GraphModule):
            setattr(module, name, copy.deepcopy(inner))
    return module
