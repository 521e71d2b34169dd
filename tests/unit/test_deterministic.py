"""The option ``kvprefetch.deterministic``: a sequence's result does not depend on its batch, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from prefetch_compiler.config import MAX_SPLITS, Partition
from prefetch_compiler.database.overlay import Overlays
from prefetch_compiler.device import REFERENCE_DEVICES, DeviceProfile
from prefetch_compiler.errors import InadmissibleConfigError
from prefetch_compiler.report import Verdict, collect_reports
from prefetch_compiler.select.admissible import why_inadmissible
from prefetch_compiler.select.heuristic import FIXED_CHUNK_KEYS, choose_for_any_batch
from prefetch_compiler.select.selection import select
from prefetch_compiler.spec import AttentionSpec

from ..contract.uncompiled import graphs_run_uncompiled
from ..database.specs import specs

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def _afresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@given(specs(), st.integers(1, 300), st.sampled_from(list(REFERENCE_DEVICES.values())))
def test_the_configuration_depends_on_no_batch(spec: AttentionSpec, batch: int, profile: DeviceProfile) -> None:
    spec = replace(spec, symbolic=frozenset())
    try:
        config = choose_for_any_batch(spec, profile)
    except InadmissibleConfigError:
        # float32 with wide heads and many query rows fits no GPU of little shared memory, in whatever batch.
        assume(spec.dtype is not torch.float32)
        raise
    assert config == choose_for_any_batch(replace(spec, batch=batch), profile)
    assert why_inadmissible(spec, config, profile) is None
    assert config.num_splits == min(MAX_SPLITS, -(-spec.kv_len // FIXED_CHUNK_KEYS))
    assert config.partition is (Partition.CHUNKED if config.num_splits > 1 else Partition.EVEN)


@given(specs(), st.integers(1, 1 << 17))
def test_in_a_growing_cache_it_depends_on_no_length_either(spec: AttentionSpec, hint: int) -> None:
    growing = replace(spec, symbolic=frozenset({"kv_len"}))
    profile = REFERENCE_DEVICES[90]
    assert choose_for_any_batch(growing, profile) == choose_for_any_batch(replace(growing, kv_len=hint), profile)


def test_no_record_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefetch_compiler.select.selection.lookup", None)
    spec = next(iter(_spec_of_a_site()))
    chosen = select(spec, REFERENCE_DEVICES[90], Overlays(()), deterministic=True)
    assert (chosen.verdict, chosen.tuned_at) == (Verdict.HEURISTIC, None)
    assert "every batch" in chosen.reason


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)


def _operands() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Three sequences of different lengths in caches of three chunks."""
    generator = torch.Generator().manual_seed(3)
    capacity = 2 * FIXED_CHUNK_KEYS + 100
    shapes = ((3, 4, 1, 16), (3, 2, capacity, 16), (3, 2, capacity, 16))
    q, k, v = (torch.randn(shape, generator=generator).to(DEVICE) for shape in shapes)
    held = torch.tensor([capacity, 37, FIXED_CHUNK_KEYS + 1], device=DEVICE)
    mask = (torch.arange(capacity, device=DEVICE) < held[:, None])[:, None, None, :]
    return q, k, v, mask


def _compiled(*operands: Tensor) -> tuple[Tensor, AttentionSpec]:
    torch._dynamo.reset()
    options = {"kvprefetch.deterministic": True, "kvprefetch.strict": True}
    with graphs_run_uncompiled(), collect_reports() as report, torch.no_grad():
        result = torch.compile(_attend, backend="kvprefetch", options=options, dynamic=False)(*operands)
    (site,) = report.sites
    assert site.spec is not None
    assert site.config is not None
    assert (site.verdict, site.config.partition) == (Verdict.HEURISTIC, Partition.CHUNKED)
    return result, site.spec


def _spec_of_a_site() -> Iterator[AttentionSpec]:
    yield _compiled(*_operands())[1]


def test_each_sequence_has_the_same_bits_alone() -> None:
    operands = _operands()
    together, _ = _compiled(*operands)
    torch.testing.assert_close(together, _attend(*operands))
    for sequence in range(3):
        alone, spec = _compiled(*(operand[sequence : sequence + 1].clone() for operand in operands))
        assert spec.batch == 1
        assert torch.equal(alone[0], together[sequence])
