"""Latent caches in graphs: what is not one is lowered over what the graph makes of it, and nothing of a cache that is
one is expanded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import torch

from prefetch_compiler.select.selection import why_not_covered

from .golden import latent
from .golden.graph import Inputs
from .golden.latent import Expand, Latent
from .golden.run import assert_follows_eager, run_compiled, run_eagerly
from .uncompiled import graphs_run_uncompiled

# Triton's interpreter warns at every scalar that it converts: recording them takes longer than computing.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")


@pytest.fixture(autouse=True)
def _afresh() -> Iterator[None]:
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "expand",
    [
        latent.with_bias,
        latent.latents_of_heads,
        latent.values_of_others,
        latent.values_of_other_sequences,
        latent.gap_in_keys,
    ],
    ids=lambda expand: expand.__name__,
)
def test_what_is_not_latent_is_lowered_over_k_and_v(expand: Expand) -> None:
    golden = Latent("not_latent", expand).golden
    eager, problems = run_eagerly(golden)
    with graphs_run_uncompiled():
        compiled, report = run_compiled(golden)
    (site,) = report.sites
    assert site.lowered and site.spec is not None, str(report)
    assert (site.spec.kv_heads, site.spec.rope_dim) == (latent.HEADS, 0)
    assert_follows_eager(compiled, eager, problems)


@pytest.mark.parametrize("expand", [latent.by_writes, latent.by_matmul], ids=lambda expand: expand.__name__)
def test_nothing_of_the_length_of_the_cache_is_made(expand: Expand) -> None:
    """But the caches as they are after the step, and what the mask's bounds are computed from."""
    with graphs_run_uncompiled() as graphs:
        run_compiled(Latent("latent", expand).golden)
    (graph,) = graphs
    shapes = [node.meta["val"].shape for node in graph.graph.nodes if isinstance(node.meta.get("val"), torch.Tensor)]
    made = {shape for shape in shapes if latent.KV_LEN in shape and len(shape) > 1 and shape[-1] != latent.KV_LEN}
    assert made == {(latent.BATCH, 1, latent.KV_LEN, columns) for columns in (latent.LATENT, latent.ROPE)}


@pytest.mark.parametrize(
    "form",
    [Latent("writes", latent.by_writes), Latent("products", by_products=True)],
    ids=lambda form: form.name,
)
def test_latents_of_any_batch_and_length_are_read(form: Latent) -> None:
    def steps() -> Sequence[Inputs]:
        given = form.golden.steps()
        for tensor in (tensor for step in given for tensor in step.values() if tensor is not None):
            for dim, size in enumerate(tensor.shape):
                if size in (latent.BATCH, latent.KV_LEN):
                    torch._dynamo.mark_dynamic(tensor, dim)
        return given

    golden = replace(form.golden, steps=steps)
    eager, problems = run_eagerly(golden)
    with graphs_run_uncompiled():
        compiled, report = run_compiled(golden)
    specs = [site.spec for site in report.lowered if site.spec is not None]
    assert [(spec.symbolic, spec.rope_dim) for spec in specs] == [({"batch", "kv_len"}, latent.ROPE)], str(report)
    assert_follows_eager(compiled, eager, problems)


@pytest.mark.parametrize("columns", [24, 512], ids=["narrow", "wide"])
def test_wide_heads_that_are_no_latents_are_refused_or_read_as_they_are(columns: int) -> None:
    """K is as wide as latents with rotary keys, and V is a tensor of its own."""

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v)

    golden = Latent("unrelated").golden
    given = golden.steps()[0]["latent"].new_ones
    inputs = {"q": given(1, 2, 1, columns + 64), "k": given(1, 2, 8, columns + 64), "v": given(1, 2, 8, columns)}
    unrelated = replace(golden, program=attend, steps=lambda: [inputs])
    eager, problems = run_eagerly(unrelated)
    with graphs_run_uncompiled():
        compiled, report = run_compiled(unrelated)
    (site,) = report.sites
    assert site.lowered == (columns == 24)
    assert site.lowered or f"head dims {columns + 64} and {columns}: they must be 256 at most" in site.reason
    assert_follows_eager(compiled, eager, problems)


def test_a_latent_cache_that_no_template_serves_is_told() -> None:
    (spec,) = Latent("latent").specs()
    assert why_not_covered(spec) is None
    assert "rotary keys of 24 columns" in (why_not_covered(replace(spec, rope_dim=24)) or "")
