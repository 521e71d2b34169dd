"""Compiles a decode attention where something that compiling a kernel takes is missing, and prints JSON: for each such
fault the largest difference from eager, the reason in the report, and what ``strict`` raises.

Run as a script, with TRITON_INTERPRET=1 where the fault is ``no Triton``, and without otherwise: the kernels are
compiled for an H200, which need not be here."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

if sys.argv[1] == "no-triton":
    sys.modules["triton"] = None  # type: ignore[assignment]

import torch
from torch._dynamo.exc import BackendCompilerFailed
from torch._inductor import compile_fx as inductor
from torch.nn import functional

from prefetch_compiler.device import REFERENCE_DEVICES
from prefetch_compiler.lower import rewrite
from prefetch_compiler.lower.precompile import compile_for_target
from prefetch_compiler.recognize import sdpa
from prefetch_compiler.report import collect_reports

H200 = REFERENCE_DEVICES[90]
CACHE = torch.randn(1, 2, 32, 16, generator=torch.Generator().manual_seed(1))
QUERY = CACHE[:, :, :1] * 2


def attend(q: torch.Tensor) -> torch.Tensor:
    return functional.scaled_dot_product_attention(q, CACHE, CACHE)


def uncompiled(module: torch.fx.GraphModule, _: Any, **_unused: Any) -> Any:
    """In place of code generation, which has faults of its own here."""

    def run(given: list[Any]) -> Any:
        arguments = list(given)
        given.clear()
        return module.forward(*arguments)

    run._boxed_call = True  # type: ignore[attr-defined]
    return run


def outcome(**patches: Any) -> dict[str, Any]:
    without_codegen = partial(inductor.compile_fx, inner_compile=uncompiled)
    with (
        mock.patch.object(inductor, "compile_fx", without_codegen),
        mock.patch.object(sdpa, "interpreting", lambda: True),
        mock.patch.multiple(rewrite, __name__=rewrite.__name__, **patches),
    ):
        torch._dynamo.reset()
        with collect_reports() as report, torch.no_grad():
            result = torch.compile(attend, backend="kvprefetch")(QUERY)
        found = {"error": float((result - attend(QUERY)).abs().max()), "reason": report.sites[0].reason}
        torch._dynamo.reset()
        try:
            with torch.no_grad():
                torch.compile(attend, backend="kvprefetch", options={"kvprefetch.strict": True})(QUERY)
        except Exception as error:
            cause = error.inner_exception if isinstance(error, BackendCompilerFailed) else error
            found |= {"strict": [one.__name__ for one in type(cause).__mro__], "says": str(cause)}
    return found


def for_h200(spec: Any, config: Any, *_: Any) -> None:
    compile_for_target(spec, config, H200)


def with_environment(changes: dict[str, str | None], step: Callable[..., Any]) -> Callable[..., Any]:
    """``step`` while the environment is changed."""

    def run(*given: Any) -> Any:
        with mock.patch.dict(os.environ, {name: value for name, value in changes.items() if value is not None}):
            for name in (name for name, value in changes.items() if value is None):
                os.environ.pop(name, None)
            return step(*given)

    return run


def launcher_stub(*_: Any) -> None:
    """What Triton has a C compiler do before its first launch."""
    from triton.runtime.build import compile_module_from_src

    compile_module_from_src("int kvprefetch_nothing;", f"nothing_{os.getpid()}")


def does_not_compile(*_: Any) -> None:
    import triton
    import triton.language as tl
    from triton.compiler import ASTSource

    from prefetch_compiler.lower.precompile import target_of

    def broken(pointer) -> None:  # type: ignore[no-untyped-def]
        tl.store(pointer, tl.this_function_does_not_exist(1))

    kernel = triton.JITFunction(broken)
    triton.compile(ASTSource(kernel, {"pointer": "*fp32"}, {}), target=target_of(H200))


def raises(error: Callable[[], Exception]) -> Callable[..., None]:
    def step(*_: Any) -> None:
        raise error()

    return step


def out_of_resources() -> Exception:
    from triton.runtime.errors import OutOfResources

    return OutOfResources(262_144, 232_448, "shared memory")


def faults(folder: Path) -> dict[str, Callable[..., Any]]:
    a_file = folder / "a file"
    a_file.write_text("")
    no_cache = {"TRITON_CACHE_DIR": str(a_file / "cache"), "HOME": str(a_file)}
    no_compiler = {"CC": None, "PATH": str(folder), "TRITON_CACHE_DIR": str(folder / "cache")}
    return {
        "caches cannot be written": with_environment(no_cache, for_h200),
        "no C compiler": with_environment(no_compiler, launcher_stub),
        "the kernel does not compile": does_not_compile,
        "out of resources": raises(out_of_resources),
        "the driver refuses to load it": raises(
            lambda: RuntimeError("Triton Error [CUDA]: device kernel image is invalid")
        ),
    }


if __name__ == "__main__":
    if sys.argv[1] == "no-triton":
        reply = {"no Triton": outcome()}
    else:
        with tempfile.TemporaryDirectory() as scratch:
            named = faults(Path(scratch))
            reply = {name: outcome(profile=lambda _: H200, precompile=step) for name, step in named.items()}
    print(json.dumps(reply))
