"""Options: ours are checked by us, the rest reaches Inductor and behaves as with Inductor."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.exc import BackendCompilerFailed
from torch._inductor import compile_fx as inductor_compile
from torch._inductor import config as inductor_config
from torch.nn import functional

from prefetch_compiler.errors import InvalidOptionError, UnknownOptionError
from prefetch_compiler.options import Options, split_options
from prefetch_compiler.report import Report, collect_reports

from ..contract.uncompiled import graphs_run_uncompiled

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def _afresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(q, k, v)


def _operands(kv_len: int = 20) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = ((2, 2, 1, 16), (2, 2, kv_len, 16), (2, 2, kv_len, 16))
    q, k, v = (torch.randn(shape, generator=generator).to(DEVICE) for shape in shapes)
    return q, k, v


def _run(**arguments: Any) -> Report:
    """Compile and run once, code generation left out."""
    with graphs_run_uncompiled(), collect_reports() as report, torch.no_grad():
        torch.compile(attend, backend="kvprefetch", **arguments)(*_operands())
    return report


def test_no_options_are_the_defaults() -> None:
    assert split_options(None) == (Options(), {})


def test_ours_and_inductors_are_told_apart() -> None:
    given = {"max_autotune": False, "kvprefetch.strict": True, "kvprefetch.mode": "reduce-overhead"}
    assert split_options(given) == (Options(strict=True, mode="reduce-overhead"), {"max_autotune": False})


@pytest.mark.parametrize(
    ("misspelt", "nearest"),
    [
        ("kvprefetch.stric", "kvprefetch.strict"),
        ("kvprefetch.enable", "kvprefetch.enabled"),
        ("kvprefetch.modes", "kvprefetch.mode"),
    ],
)
def test_an_unknown_option_names_the_nearest(misspelt: str, nearest: str) -> None:
    with pytest.raises(UnknownOptionError, match=f"Did you mean '{nearest}'"):
        split_options({misspelt: True})


@pytest.mark.parametrize(
    "option",
    [
        {"kvprefetch.strict": 1},
        {"kvprefetch.enabled": "no"},
        {"kvprefetch.mode": True},
        {"kvprefetch.allow_unmeasured": "yes"},
        {"kvprefetch.dump_graphs": True},
        {"kvprefetch.dump_graphs": ["one", "two"]},
        {"kvprefetch.dump_graphs": ""},
        {"kvprefetch.tuning_db": 17},
        {"kvprefetch.tuning_db": None},
        {"kvprefetch.tuning_db": ""},
        {"kvprefetch.tuning_db": b"h200.json"},
        {"kvprefetch.tuning_db": ["h200.json", 17]},
        {"kvprefetch.tuning_db": {"h200.json"}},
    ],
    ids=str,
)
def test_a_value_of_the_wrong_type_is_an_error(option: dict[str, Any]) -> None:
    ((name, value),) = option.items()
    with pytest.raises(InvalidOptionError) as raised:
        split_options(option)
    assert name in str(raised.value)
    assert repr(value) in str(raised.value)


@pytest.mark.parametrize(
    ("given", "paths"),
    [
        ("h200.json", ("h200.json",)),
        (Path("folder/h200.json"), ("folder/h200.json",)),
        (["b", Path("a")], ("b", "a")),
        (("a",), ("a",)),
        ([], ()),
    ],
    ids=str,
)
def test_databases_are_a_path_or_several(given: Any, paths: tuple[str, ...]) -> None:
    assert split_options({"kvprefetch.tuning_db": given}) == (Options(tuning_db=paths), {})


def test_a_folder_for_graphs_is_a_path() -> None:
    for given in ("graphs", Path("graphs")):
        assert split_options({"kvprefetch.dump_graphs": given}) == (Options(dump_graphs="graphs"), {})


def test_an_unknown_option_stops_the_compile() -> None:
    with pytest.raises(BackendCompilerFailed) as raised:
        _run(options={"kvprefetch.stritc": True})
    assert isinstance(raised.value.inner_exception, UnknownOptionError)


def test_disabled_is_plain_inductor() -> None:
    assert not _run(options={"kvprefetch.enabled": False}).sites


def _config_seen(monkeypatch: pytest.MonkeyPatch, backend: str, **arguments: Any) -> dict[str, Any]:
    """Inductor's configuration at the time when it compiles the graph."""
    seen: list[dict[str, Any]] = []
    joint_passes = inductor_compile._recursive_joint_graph_passes

    def watch(*args: Any, **kwargs: Any) -> Any:
        seen.append(inductor_config.get_config_copy())
        return joint_passes(*args, **kwargs)

    torch._dynamo.reset()
    with monkeypatch.context() as patch:
        patch.setattr(inductor_compile, "_recursive_joint_graph_passes", watch)
        with graphs_run_uncompiled(), torch.no_grad():
            torch.compile(attend, backend=backend, **arguments)(*_operands())
    return seen[0]


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"mode": "default"},
        {"mode": "reduce-overhead"},
        {"mode": "max-autotune-no-cudagraphs"},
        {"options": {"max_autotune": True, "epilogue_fusion": False}},
        {"options": {"triton.cudagraphs": True}},
    ],
    ids=str,
)
def test_inductor_is_configured_as_without_us(arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    alone = _config_seen(monkeypatch, "inductor", **arguments)
    ours = _config_seen(monkeypatch, "kvprefetch", **arguments)
    changed = {name for name, value in alone.items() if ours[name] != value}
    assert changed == {"joint_custom_pre_pass"}


def test_a_mode_among_our_options_is_inductors_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    by_mode = _config_seen(monkeypatch, "kvprefetch", mode="reduce-overhead")
    options = {"kvprefetch.mode": "reduce-overhead", "kvprefetch.strict": True}
    by_option = _config_seen(monkeypatch, "kvprefetch", options=options)
    differing = {name for name, value in by_mode.items() if by_option[name] != value}
    assert by_option["triton.cudagraphs"]
    assert differing <= {"joint_custom_pre_pass"}


@pytest.mark.parametrize("options", [{"no_such_option": 1}, {"max_autotune": "yes"}], ids=["unknown", "wrong_type"])
def test_a_wrong_inductor_option_is_inductors_error(options: dict[str, Any]) -> None:
    with pytest.raises(RuntimeError) as alone:
        torch.compile(attend, backend="inductor", options=options)(*_operands())
    with pytest.raises(BackendCompilerFailed) as ours:
        _run(options=options)
    assert type(ours.value.inner_exception) is type(alone.value)
    assert str(ours.value.inner_exception) == str(alone.value)


def test_a_wrong_mode_is_inductors_error() -> None:
    with pytest.raises(RuntimeError) as alone:
        torch.compile(attend, backend="inductor", mode="no-such-mode")
    with pytest.raises(BackendCompilerFailed) as ours:
        _run(mode="no-such-mode")
    assert str(ours.value.inner_exception) == str(alone.value)


def test_a_users_own_joint_pass_runs_before_ours() -> None:
    seen: list[bool] = []

    def look(graph: torch.fx.Graph) -> None:
        seen.append(any("marked_sdpa" in str(node.target) for node in graph.nodes))

    report = _run(options={"joint_custom_pre_pass": look})
    assert seen == [True]
    assert len(report.lowered) == 1


def test_dynamic_compiles_once_for_all_lengths() -> None:
    with graphs_run_uncompiled(), collect_reports() as report, torch.no_grad():
        compiled = torch.compile(attend, backend="kvprefetch", dynamic=True)
        for kv_len in (20, 33, 47):
            operands = _operands(kv_len)
            torch.testing.assert_close(compiled(*operands), attend(*operands))
    assert report.graphs == 1
    (site,) = report.lowered
    assert site.spec is not None
    assert "kv_len" in site.spec.symbolic


def test_fullgraph_still_refuses_graph_breaks() -> None:
    def broken(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = attend(q, k, v)
        torch._dynamo.graph_break()
        return out + 1

    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(broken, backend="kvprefetch", fullgraph=True)(*_operands())
    assert len(_run(fullgraph=True).lowered) == 1


def test_gradients_are_inductors_and_say_so() -> None:
    q, k, v = _operands()
    q.requires_grad_()
    with graphs_run_uncompiled(), collect_reports() as report:
        torch.compile(attend, backend="kvprefetch")(q, k, v)
    assert "gradients are on" in report.sites[0].reason


def test_attention_without_gradients_inside_a_graph_with_them() -> None:
    """Frozen attention before a trained projection: the site is lowered, the projection gets its gradient."""
    q, k, v = _operands()
    projection = torch.eye(16, device=DEVICE, requires_grad=True)

    def project(q: Tensor, k: Tensor, v: Tensor, projection: Tensor) -> Tensor:
        return (attend(q, k, v) @ projection).square().sum()

    (expected,) = torch.autograd.grad(project(q, k, v, projection), projection)
    with collect_reports() as report:
        loss = torch.compile(project, backend="kvprefetch")(q, k, v, projection)
        (gradient,) = torch.autograd.grad(loss, projection)
    assert len(report.lowered) == 1, str(report)
    torch.testing.assert_close(gradient, expected)
