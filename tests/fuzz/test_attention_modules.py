"""Random attention modules, compiled and compared with the float64 oracle and with what eager leaves in the caches.

KVPREFETCH_FUZZ_MODULES says how many modules: 2,000 without it, always the same, and with it others each time. A graph
holds several, as a model does; what fails is reduced to the fewest and plainest. The kernels have tests of their own,
so most graphs run with PyTorch in their place.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import Phase, find, given, seed, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from prefetch_compiler.lower import ops
from prefetch_compiler.paging import in_one_piece
from prefetch_compiler.quantisation import dequantise, granularity_of
from prefetch_compiler.recognize.marker import in_memory_order
from prefetch_compiler.reference import same_dtype_attention, same_dtype_lse
from prefetch_compiler.report import collect_reports
from prefetch_compiler.spec import ScaleGranularity

from ..contract import blindness
from ..contract.error_bounds import assert_within_bound
from ..contract.golden.graph import Attention, noted
from ..contract.golden.products import Products
from ..contract.golden.run import recorded_attention
from ..contract.uncompiled import graphs_run_uncompiled
from .attention_modules import Module, modules, together

ASKED_FOR = os.environ.get("KVPREFETCH_FUZZ_MODULES")
MODULES = int(ASKED_FOR or 2000)
MOST_PER_GRAPH = 10
# Tests that several workers can take on.
PARTS = 6
# One module in so many runs our kernels.
KERNELS_EVERY = 10
THROUGH_KERNELS = -(-MODULES // KERNELS_EVERY)

pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")


@pytest.fixture(autouse=True)
def _afresh() -> Iterator[None]:
    yield
    torch._dynamo.reset()


def _in_one_piece(cache: Tensor, q: Tensor, scale: Tensor | None, table: Tensor | None) -> Tensor:
    """(batch, kv_heads, keys, dim) in the dtype of the queries."""
    if table is not None:
        cache = in_one_piece(cache, table)
        if granularity_of(scale, paged=True) is ScaleGranularity.TOKEN and scale is not None:
            scale = in_one_piece(scale, table)
    return cache if cache.dtype == q.dtype else dequantise(cache, scale, q.dtype)


def _by_pytorch(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, bounds: Tensor | None, **given: Any) -> Tensor:
    """In place of the kernels: keys outside the bounds are not read."""
    k, v = _in_one_piece(k, q, given["k_scale"], given["table"]), _in_one_piece(v, q, given["v_scale"], given["table"])
    if bounds is not None:
        keys = torch.arange(k.shape[2], device=k.device)
        outside = ((keys < bounds[:, :1]) | (keys >= bounds[:, 1:2]))[:, None, :, None]
        k, v = k.masked_fill(outside, 0.0), v.masked_fill(outside, 0.0)
        hidden = outside.transpose(2, 3)
        if mask is not None and mask.dtype is torch.bool:
            mask = mask & ~hidden
        elif mask is not None:
            mask = mask.masked_fill(hidden, float("-inf"))
    options = {name: given[name] for name in ("is_causal", "scale", "softcap", "sink")}
    if given["lse"] is not None:
        given["lse"].copy_(same_dtype_lse(q, k, mask, **options))
    return in_memory_order(same_dtype_attention(q, k, v, mask, **options), given["heads_first"])


def _run_eagerly(found: list[Module]) -> tuple[list[dict[str, Any]], list[Attention]]:
    """The inputs as they are left, and what each module attends to. By SDPA's math backend, which takes every mask:
    on a GPU the fused ones do not."""
    inputs, problems = [module.inputs() for module in found], []
    noted()
    for module, given_ in zip(found, inputs, strict=True):
        with recorded_attention() as calls, sdpa_kernel(SDPBackend.MATH):
            module.program()(given_)
        problems += [*calls, *noted()]
    return inputs, problems


def _check(found: list[Module]) -> None:
    with torch.no_grad():
        left, problems = _run_eagerly(found)
        inputs = [module.inputs() for module in found]
        torch._dynamo.reset()
        with graphs_run_uncompiled(), collect_reports() as report:
            outputs = torch.compile(together(found), backend="kvprefetch", fullgraph=True)(inputs)
    assert len(report.lowered) == len(report.sites) == sum(module.sites for module in found), str(report)
    for module, output, problem in zip(found, outputs, problems, strict=True):
        assert_within_bound(module.heads_apart(output), problem)
    for have, want in zip(inputs, left, strict=True):
        for name in ("keys", "values"):
            assert torch.equal(have[name], want[name]), f"{name} are not what eager leaves"


def _seed(part: int) -> int:
    return part if ASKED_FOR is None else random.getrandbits(64)


several = st.lists(modules(), min_size=1, max_size=MOST_PER_GRAPH)


def _check_random(wanted: int, seed_: int) -> None:
    """Graph by graph, until ``wanted`` modules are checked."""
    checked, failed = 0, False

    @seed(seed_)
    # More graphs than it takes, for they hold six on average; those that come after enough are only drawn.
    @settings(max_examples=10 + wanted // 4)
    @given(several)
    def check(found: list[Module]) -> None:
        nonlocal checked, failed
        if checked >= wanted and not failed:
            return
        try:
            _check(found)
        except BaseException:
            failed = True
            raise
        checked += len(found)

    check()
    assert checked >= wanted


@pytest.mark.parametrize("part", range(PARTS))
def test_random_modules_follow_the_oracle(part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "launch_decode", _by_pytorch)
    _check_random(-(-(MODULES - THROUGH_KERNELS) // PARTS), _seed(part))


def test_a_blind_pass_is_caught_and_the_failure_reduced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "launch_decode", _by_pytorch)
    blindness.to_softcap(monkeypatch)

    def caught(found: list[Module]) -> bool:
        try:
            _check(found)
        except AssertionError as error:
            return "err too much" in str(error)
        return False

    wanted = settings(max_examples=100, database=None, phases=(Phase.generate, Phase.shrink))
    (module,) = find(several, caught, settings=wanted, random=random.Random(1))
    assert isinstance(module.attention, Products)
    assert module.attention.softcap is not None
    assert not module.written
    assert not module.merged


def test_random_modules_through_the_kernels_follow_the_oracle() -> None:
    _check_random(THROUGH_KERNELS, _seed(PARTS))
