"""FlexAttention beyond the golden graphs: what is refused stays flex attention, and lists of blocks count."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._higher_order_ops.flex_attention import flex_attention as flex_operator
from torch.fx import Graph, GraphModule
from torch.nn.attention import flex_attention as flex
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from prefetch_compiler.errors import Refused
from prefetch_compiler.lower import rewrite
from prefetch_compiler.lower.mark import mark
from prefetch_compiler.recognize import flex_call, index_functions
from prefetch_compiler.recognize.flex_marker import MARKED_FLEX
from prefetch_compiler.report import Report, SiteReport, collect_reports

from . import blindness
from .error_bounds import assert_within_bound
from .golden.flex import attend
from .golden.graph import DEVICE, Attention
from .uncompiled import graphs_run_uncompiled

pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")

Program = Callable[[Tensor, Tensor, Tensor], Any]
KV_LEN = 20


@pytest.fixture(autouse=True)
def _afresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def _operands(q_len: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    q, k, v = (torch.randn(2, 4, length, 16, generator=generator).to(DEVICE) for length in (q_len, KV_LEN, KV_LEN))
    return q, k, v


def _run(program: Program, operands: tuple[Tensor, Tensor, Tensor]) -> tuple[Any, Report, GraphModule]:
    with graphs_run_uncompiled() as graphs, collect_reports() as report, torch.no_grad():
        result = torch.compile(program, backend="kvprefetch")(*operands)
    return result, report, graphs[-1]


def _count(module: GraphModule, target: Any) -> int:
    return sum(node.target is target for node in module.graph.nodes)


def _with(score_mod: Any) -> Program:
    return lambda q, k, v: attend(q, k, v, None, score_mod)


def _with_lse(q: Tensor, k: Tensor, v: Tensor) -> Any:
    """As transformers gives sinks their share of the softmax."""
    out, aux = flex_attention(q, k, v, return_aux=AuxRequest(lse=True))
    return out * torch.sigmoid(aux.lse - 0.5)[..., None]


def _with_lse_of_filled(q: Tensor, k: Tensor, v: Tensor) -> Any:
    aux = AuxRequest(lse=True)
    out, found = flex_attention(q, k, v, lambda s, b, h, m, n: torch.where(n < 4, s, -1e4), return_aux=aux)
    return out, found.lse


def _with_unused_lse(q: Tensor, k: Tensor, v: Tensor) -> Any:
    out, aux = flex_attention(q, k, v, return_aux=AuxRequest(lse=True))
    aux.lse.to(torch.float64)
    return out


_OF_HEADS = [0.5, 1.0, 2.0, 3.0]
REFUSED: dict[str, tuple[Program, str]] = {
    "cubed": (_with(lambda s, b, h, m, n: s**3), "goes through aten.pow"),
    "squared": (_with(lambda s, b, h, m, n: s * s), "given the score twice"),
    "keys weighted": (_with(lambda s, b, h, m, n: s * n), "multiplied or divided by what is not a constant"),
    "two scores": (_with(lambda s, b, h, m, n: torch.where(m > n, s, 2 * s)), "between the score and what is not"),
    "no score": (_with(lambda s, b, h, m, n: (n - m) * 1.0), "does not depend on the score"),
    "capped after a bias": (_with(lambda s, b, h, m, n: torch.tanh(s + n / 9)), "before soft capping"),
    "filled with five": (_with(lambda s, b, h, m, n: torch.where(n > 3, s, 5.0)), "filled with 5"),
    "rounded": (_with(lambda s, b, h, m, n: s.to(torch.int32) * 0.1), "rounded to an integer"),
    "a table inside": (
        _with(lambda s, b, h, m, n: s + torch.tensor(_OF_HEADS, device=s.device)[h]),
        "capture it",
    ),
    "a low fill, and the log-sum-exp": (_with_lse_of_filled, "fill them with -inf, or with -3.4"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_understood_stays_flex_attention(name: str) -> None:
    program, reason = REFUSED[name]
    operands = _operands()
    actual, report, graph = _run(program, operands)
    torch.testing.assert_close(actual, program(*operands))
    (site,) = report.sites
    assert not site.lowered
    assert reason in site.reason
    assert (_count(graph, flex_operator), _count(graph, MARKED_FLEX)) == (1, 0)


def test_a_number_is_added_where_it_matters_and_where_it_does_not() -> None:
    """Two sites that differ in numbers that their functions hold, alone."""

    def two(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        first = attend(q, k, v, None, lambda s, b, h, m, n: s + torch.where(n > 3, 2.0, torch.tensor(1.0)) - 3)
        return first, attend(q, k, v, None, lambda s, b, h, m, n: s + torch.where(n > 3, 2.0, torch.tensor(-1.0)) - 3)

    operands = _operands()
    actual, report, _ = _run(two, operands)
    torch.testing.assert_close(actual, two(*operands))
    assert len(report.lowered) == 2, str(report)


def _captured_by_turns(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Two sites whose functions differ in the tensor that they captured, alone."""
    one, other = q[0, :, 0, 0] * 1, q[1, :, 0, 0] * 2
    return tuple(attend(q, k, v, None, lambda s, b, h, m, n, t=t: s + t[h] * n) for t in (one, other))  # type: ignore[return-value]


def test_sites_share_what_they_compute_alike_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    operands = _operands()
    expected = _captured_by_turns(*operands)
    actual, report, _ = _run(_captured_by_turns, operands)
    torch.testing.assert_close(actual, expected)
    assert len(report.lowered) == 2, str(report)
    monkeypatch.setattr(index_functions, "value_number", lambda node: 0)
    torch._dynamo.reset()
    actual, _, _ = _run(_captured_by_turns, operands)
    with pytest.raises(AssertionError, match="not close"):
        torch.testing.assert_close(actual, expected)


def test_a_site_that_fails_to_lower_stays_flex_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise Refused("not this one")

    program = _with(lambda s, b, h, m, n: s + n)
    operands = _operands()
    monkeypatch.setattr(rewrite, "select", refuse)
    actual, report, graph = _run(program, operands)
    torch.testing.assert_close(actual, program(*operands))
    assert "not this one" in report.sites[0].reason
    assert (_count(graph, flex_operator), _count(graph, MARKED_FLEX)) == (1, 0)


def test_a_log_sum_exp_that_nobody_uses_is_no_obstacle() -> None:
    """Which transformers asks for on every GPU."""
    operands = _operands()
    actual, report, graph = _run(_with_unused_lse, operands)
    torch.testing.assert_close(actual, _with_unused_lse(*operands))
    assert len(report.lowered) == 1, str(report)
    assert _count(graph, flex_operator) == 0


def test_a_maximum_that_is_used_is_refused() -> None:
    """Which flex attention does not return on a CPU."""
    graph = Graph()
    call = graph.call_function(flex_operator)
    graph.output(graph.call_function(operator.getitem, (call, 2)))
    with pytest.raises(Refused, match="call flex_attention without max_scores"):
        flex_call._log_sum_exps(call)


def test_prefill_and_decode_in_one_graph() -> None:
    def both(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        prompt = attend(q, k, v, None, lambda s, b, h, m, n: torch.where(m >= n, s, -float("inf")))
        k[:, :, :17] += prompt
        return prompt, attend(prompt[:, :, -1:], k, v, None)

    actual, report, graph = _run(both, _operands(q_len=17))
    torch.testing.assert_close(actual, both(*_operands(q_len=17)))
    assert [(site.lowered, site.decode) for site in report.sites] == [(False, False), (True, True)], str(report)
    assert "prefill: 17 queries" in report.sites[0].reason
    assert _count(graph, flex_operator) == 1


def test_training_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flex, "_validate_device", lambda *operands: None)  # which takes no gradients on a CPU
    q, k, v = _operands()
    reports: list[SiteReport] = []

    def look(module: GraphModule, _: Any) -> Any:
        reports.extend(mark(module).reports.values())
        return lambda *_: (q,)

    torch.compile(lambda q, k, v: flex.flex_attention(q, k, v), backend=look)(q.requires_grad_(), k, v)
    (site,) = reports
    assert "gradients are on" in site.reason
    assert not site.decode


def test_marks_can_be_taken_back() -> None:
    seen: list[tuple[str, str, str]] = []

    def look(module: GraphModule, _: Any) -> Any:
        before = str(module.graph)
        marks = mark(module)
        marked = str(module.graph)
        marks.undo()
        seen.append((before, marked, str(module.graph)))
        return module.forward

    with torch.no_grad():
        torch.compile(_with_lse, backend=look)(*_operands())
    ((before, marked, after),) = seen
    assert before == after
    assert "marked_flex" in marked


def _lists_of_their_own() -> BlockMask:
    """Blocks of two queries and four keys, of which a sequence lists other ones than ``mask_mod`` shows."""
    counts = torch.tensor([[[2, 1]], [[3, 0]]], dtype=torch.int32, device=DEVICE)
    indices = torch.tensor([[[[1, 3, 0, 0, 0], [4, 0, 0, 0, 0]]], [[[0, 2, 4, 0, 0], [1, 0, 0, 0, 0]]]])
    full_counts = torch.tensor([[[1, 0]], [[0, 2]]], dtype=torch.int32, device=DEVICE)
    full_indices = torch.tensor([[[[4, 0, 0, 0, 0], [0, 0, 0, 0, 0]]], [[[1, 0, 0, 0, 0], [0, 3, 0, 0, 0]]]])
    return BlockMask.from_kv_blocks(
        counts,
        indices.to(DEVICE, torch.int32),
        full_counts,
        full_indices.to(DEVICE, torch.int32),
        BLOCK_SIZE=(2, 4),
        mask_mod=lambda b, h, m, n: (n + m) % 3 != 0,
        seq_lengths=(3, KV_LEN),
    )


def _seen_by_lists() -> Tensor:
    """The same block by block: ``listed[sequence][block of queries]``."""
    listed = [[[1, 3], [4]], [[0, 2, 4], []]]
    full: list[list[list[int]]] = [[[4], []], [[], [0, 3]]]
    seen = torch.zeros(2, 1, 3, KV_LEN, dtype=torch.bool)
    for b in range(2):
        for m in range(3):
            for n in range(KV_LEN):
                asked = n // 4 in listed[b][m // 2] and (n + m) % 3 != 0
                seen[b, 0, m, n] = asked or n // 4 in full[b][m // 2]
    return seen.to(DEVICE)


def _problem_of_lists() -> tuple[Tensor, Attention, Report]:
    operands, block_mask = _operands(q_len=3), _lists_of_their_own()
    actual, report, _ = _run(lambda q, k, v: attend(q, k, v, block_mask), operands)
    return actual, Attention(*operands, _seen_by_lists(), False, 0.25), report


def test_lists_of_blocks_count_as_in_compiled_flex_attention() -> None:
    actual, problem, report = _problem_of_lists()
    assert len(report.lowered) == 1, str(report)
    assert_within_bound(actual, problem)
    without = replace(problem, mask=torch.ones_like(_seen_by_lists()))
    with pytest.raises(AssertionError, match="err too much"):
        assert_within_bound(actual, without)


@pytest.mark.parametrize("blind", [blindness.to_block_lists, blindness.to_full_blocks])
def test_a_pass_blind_to_lists_of_blocks_is_caught(blind: blindness.Blind, monkeypatch: pytest.MonkeyPatch) -> None:
    blind(monkeypatch)
    actual, problem, report = _problem_of_lists()
    assert len(report.lowered) == 1, str(report)
    with pytest.raises(AssertionError, match="err too much"):
        assert_within_bound(actual, problem)
