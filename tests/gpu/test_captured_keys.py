"""Keys that were captured without a GPU are those that a compile on the GPU looks up."""

from __future__ import annotations

import pytest
import torch

from prefetch_compiler.tuning.capture import capture

from ..tuning.tiny_models import BATCH, CAPACITY, CONFIGS, HELD, explained_keys

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("cache", ["static", "dynamic"])
@pytest.mark.parametrize("name", CONFIGS)
def test_captured_keys_are_those_of_a_compile_on_the_gpu(name: str, cache: str) -> None:
    # A growing cache that outgrew its windows has sliding layers of another kind than one that has not.
    held = CAPACITY - 2 if cache == "dynamic" else HELD
    found = capture(CONFIGS[name], [BATCH], [CAPACITY], ["bfloat16"], cache=cache)
    assert {site.key for site in found.sites} == explained_keys(name, cache, held, "cuda", torch.bfloat16)
