"""transformers' own ``generate``, with a static cache, compiled by our backend's name alone."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from transformers import CompileConfig

from prefetch_compiler.report import collect_reports

from ..contract.uncompiled import graphs_run_uncompiled
from .decode import DEVICE, prompt
from .models import build, named
from .quicker_interpreter import quicker_interpreter

# Triton's interpreter warns at every scalar that it converts.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")

QWEN2 = named("Qwen2")
NEW_TOKENS = 12


def test_generate_with_a_static_cache_gives_eagers_tokens(request: pytest.FixtureRequest) -> None:
    model = build(QWEN2, torch.float32, DEVICE)
    tokens, mask = prompt()
    arguments = {"attention_mask": mask, "max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False}
    eager = model.generate(tokens, **arguments)
    torch._dynamo.reset()
    compile_config = CompileConfig(backend="kvprefetch")
    compile_config._compile_all_devices = True  # else transformers compiles on GPUs only
    whole = request.config.getoption("whole_zoo")
    code = nullcontext() if whole else graphs_run_uncompiled()  # C++ takes half a minute; test_models has some
    with collect_reports() as report, quicker_interpreter(), code:
        compiled = model.generate(tokens, **arguments, cache_implementation="static", compile_config=compile_config)
    torch._dynamo.reset()
    assert torch.equal(compiled, eager)
    assert compiled.shape[1] == tokens.shape[1] + NEW_TOKENS
    assert report.graphs > 0
    assert len(report.lowered) == QWEN2.sites * report.graphs, str(report)
