"""Total fallback: whatever stage fails, the result is eager's and the report says why; ``strict`` makes it an error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch._dynamo.exc import BackendCompilerFailed
from torch._inductor import compile_fx as inductor
from torch._inductor.fx_passes.joint_graph import joint_graph_passes

from prefetch_compiler import backend
from prefetch_compiler.errors import (
    InadmissibleConfigError,
    KernelLaunchError,
    KVPrefetchError,
    LoweringError,
    Refused,
    SiteNotLoweredError,
)
from prefetch_compiler.lower import mark, ops, rewrite
from prefetch_compiler.recognize import registry, sdpa
from prefetch_compiler.recognize.marker import MARKED_SDPA

from .golden import hand_written, spellings, static_cache
from .golden.run import assert_follows_eager, run_compiled, run_eagerly
from .uncompiled import graphs_run_uncompiled

STRICT = {"kvprefetch.strict": True}


class InjectedError(Exception):
    """The failure that a test puts into a stage."""


def _fails(*_: Any, **__: Any) -> Any:
    raise InjectedError("on purpose")


def _in(owner: Any, name: str) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda monkeypatch: monkeypatch.setattr(owner, name, _fails)


def _in_inductor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only graphs that hold our operator fail to compile."""

    def passes_unless_lowered(module: torch.fx.GraphModule, *arguments: Any) -> torch.fx.GraphModule:
        result: torch.fx.GraphModule = joint_graph_passes(module, *arguments)
        if any(node.target is ops.DECODE_ATTENTION for node in result.graph.nodes):
            raise InjectedError("on purpose")
        return result

    monkeypatch.setattr(inductor, "joint_graph_passes", passes_unless_lowered)


# Within a module; what one module calls of another is test_stage_boundaries.py's.
COMPILE_STAGES = {
    "parse": _in(sdpa, "parse"),
    "replace": _in(mark, "_replace"),
    "arrange": _in(rewrite, "_arrange"),
    "replace the anchor": _in(rewrite, "_replace_anchor"),
    "account": _in(rewrite.Lowering, "_account"),
    "inductor": _in_inductor,
}


@pytest.fixture(autouse=True)
def _afresh() -> Iterator[None]:
    yield
    torch._dynamo.reset()
    ops._failed_configs.clear()


def _cause(error: BaseException) -> BaseException:
    """What a backend raised, which Dynamo wraps."""
    if isinstance(error, BackendCompilerFailed):
        return error.inner_exception
    return error


@pytest.mark.parametrize("inject", COMPILE_STAGES.values(), ids=COMPILE_STAGES)
def test_a_failing_stage_falls_back_with_a_reason(
    inject: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    golden = static_cache.LLAMA
    eager, problems = run_eagerly(golden)
    with graphs_run_uncompiled():
        inject(monkeypatch)
        compiled, report = run_compiled(golden)
    assert_follows_eager(compiled, eager, problems)
    (site,) = report.sites
    assert not site.lowered
    assert "on purpose" in site.reason


@pytest.mark.parametrize("inject", COMPILE_STAGES.values(), ids=COMPILE_STAGES)
def test_a_failing_stage_is_an_error_under_strict(
    inject: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with graphs_run_uncompiled():
        inject(monkeypatch)
        with pytest.raises(Exception) as raised:
            run_compiled(static_cache.LLAMA, options=STRICT)
    error = _cause(raised.value)
    assert isinstance(error, LoweringError), error
    assert "on purpose" in str(error)


@pytest.mark.parametrize(
    ("error", "reason"),
    [(Refused("not this one"), "not this one"), (InadmissibleConfigError("b16", "too big"), "too big")],
    ids=["refused", "inadmissible"],
)
def test_a_refusal_while_lowering_is_reported_word_for_word(
    error: Exception, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise error

    golden = static_cache.LLAMA
    eager, problems = run_eagerly(golden)
    monkeypatch.setattr(rewrite, "select", refuse)
    with graphs_run_uncompiled():
        compiled, report = run_compiled(golden)
        assert_follows_eager(compiled, eager, problems)
        assert reason in report.sites[0].reason
        with pytest.raises(Exception) as raised:
            run_compiled(golden, options=STRICT)
    assert isinstance(_cause(raised.value), SiteNotLoweredError)


def test_a_failure_before_any_site_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    golden = static_cache.LLAMA
    eager, problems = run_eagerly(golden)
    monkeypatch.setattr(backend, "mark", _fails)
    with graphs_run_uncompiled():
        compiled, report = run_compiled(golden)
        assert_follows_eager(compiled, eager, problems)
        assert not report.lowered
        with pytest.raises(BackendCompilerFailed) as raised:
            run_compiled(golden, options=STRICT)
    assert isinstance(_cause(raised.value), LoweringError)


def test_one_sites_failure_leaves_the_others_lowered(monkeypatch: pytest.MonkeyPatch) -> None:
    golden = next(golden for golden in static_cache.GOLDEN if golden.name == "llama_static_two_layers")
    eager, problems = run_eagerly(golden)
    recognise = registry.recognise
    seen: list[Any] = []

    def fail_once(node: Any) -> Any:
        site = recognise(node)
        if site is not None and not seen:
            seen.append(site)
            raise InjectedError("on purpose")
        return site

    monkeypatch.setattr(rewrite, "recognise", fail_once)
    with graphs_run_uncompiled():
        compiled, report = run_compiled(golden)
    assert_follows_eager(compiled, eager, problems)
    assert [site.lowered for site in report.sites] == [False, True]


def test_a_site_that_cannot_be_unmarked_still_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    golden = static_cache.LLAMA
    eager, problems = run_eagerly(golden)
    monkeypatch.setattr(rewrite, "select", _fails)
    monkeypatch.setattr(rewrite, "unmark", _fails)
    with graphs_run_uncompiled() as graphs:
        compiled, report = run_compiled(golden)
    assert_follows_eager(compiled, eager, problems)
    assert "on purpose" in report.sites[0].reason
    assert any(node.target is MARKED_SDPA for node in graphs[0].graph.nodes)


def test_a_site_that_the_pass_never_meets_says_so() -> None:
    golden = static_cache.LLAMA
    eager, problems = run_eagerly(golden)
    with graphs_run_uncompiled():
        compiled, report = run_compiled(golden, options={"use_joint_graph_passes": False})
    assert_follows_eager(compiled, eager, problems)
    assert not report.lowered
    assert "Inductor ran no joint-graph passes" in report.sites[0].reason


def test_a_failing_launch_falls_back_to_sdpa(monkeypatch: pytest.MonkeyPatch) -> None:
    golden = static_cache.LLAMA
    eager, problems = run_eagerly(golden)
    monkeypatch.setattr(ops, "launch_decode", _fails)
    with graphs_run_uncompiled():
        compiled, _ = run_compiled(golden)
    assert_follows_eager(compiled, eager, problems)


def test_a_failing_launch_is_an_error_under_strict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "launch_decode", _fails)
    with graphs_run_uncompiled(), pytest.raises(KernelLaunchError, match="on purpose"):
        run_compiled(static_cache.LLAMA, options=STRICT)


def test_a_failing_launch_of_a_grouped_causal_site_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fallback must give SDPA what the kernel was given: heads grouped, a scale of its own, top-left causality."""
    site = hand_written.HandWritten(
        "grouped", spelling=spellings.as_stored, enable_gqa=True, q_len=3, is_causal=True, scale=0.7
    )
    eager, problems = run_eagerly(site.golden)
    monkeypatch.setattr(ops, "launch_decode", _fails)
    with graphs_run_uncompiled():
        compiled, _ = run_compiled(site.golden)
    assert_follows_eager(compiled, eager, problems)


def test_prefill_is_no_error_under_strict() -> None:
    prefill = hand_written.HandWritten("prefill", q_len=17, kv_len=17, is_causal=True).golden
    eager, problems = run_eagerly(prefill)
    with graphs_run_uncompiled():
        compiled, report = run_compiled(prefill, options=STRICT)
    assert_follows_eager(compiled, eager, problems)
    assert "prefill: 17 queries" in report.sites[0].reason


def test_what_the_templates_cannot_serve_is_an_error_under_strict() -> None:
    odd = hand_written.HandWritten("odd", head_dim=20, value_dim=20).golden
    with graphs_run_uncompiled(), pytest.raises(Exception) as raised:
        run_compiled(odd, options=STRICT)
    error = _cause(raised.value)
    assert isinstance(error, SiteNotLoweredError)
    assert isinstance(error, KVPrefetchError)
    assert "head_dim is 20" in str(error)


def test_inductor_really_compiles_again_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    golden = static_cache.LLAMA
    eager, problems = run_eagerly(golden)
    _in_inductor(monkeypatch)
    compiled, report = run_compiled(golden)
    assert_follows_eager(compiled, eager, problems)
    assert "the lowered graph did not compile" in report.sites[0].reason
