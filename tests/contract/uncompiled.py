"""The whole pipeline but for code generation: seconds of C++ or Triton compiling saved where a test is about graphs.

Dynamo, marking, AOTAutograd, the lowering pass and Inductor's own joint-graph passes run as always; only the last step,
from the final ATen graph to compiled code, is replaced by running that graph operator by operator.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch._functorch._aot_autograd.utils import make_boxed_func
from torch._inductor import compile_fx as inductor
from torch.fx._lazy_graph_module import _LazyGraphModule


@contextmanager
def graphs_run_uncompiled() -> Iterator[list[torch.fx.GraphModule]]:
    """Inside, Inductor's code generation is skipped. Yields the final ATen graphs, in order of compilation."""
    graphs: list[torch.fx.GraphModule] = []

    def run_graph(module: torch.fx.GraphModule, _: Sequence[Any], **_unused: Any) -> Any:
        # At once, as code is generated, and not when it is first called.
        _LazyGraphModule.force_recompile(module)
        module.recompile()
        graphs.append(module)
        return make_boxed_func(module.forward)

    without_codegen = functools.partial(inductor.compile_fx, inner_compile=run_graph)
    with mock.patch.object(inductor, "compile_fx", without_codegen):
        yield graphs
