"""Attention written by hand of which something is not understood: left as it is, with a reason, and still right."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from prefetch_compiler.report import Report, collect_reports

from .golden.graph import DEVICE
from .uncompiled import graphs_run_uncompiled

pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")

Program = Callable[[Tensor, Tensor, Tensor], Any]


@pytest.fixture(autouse=True)
def _afresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def _operands(q_len: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    q, k, v = (torch.randn(2, 4, length, 16, generator=generator).to(DEVICE) for length in (q_len, 20, 20))
    return q, k, v


def _scores(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.transpose(-1, -2) / 4


def _returned(q: Tensor, k: Tensor, v: Tensor) -> Any:
    weights = _scores(q, k).softmax(-1)
    return weights @ v, weights


def _kept_scores(q: Tensor, k: Tensor, v: Tensor) -> Any:
    scores = _scores(q, k)
    return scores.softmax(-1) @ v, scores


def _renormalised(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (_scores(q, k).softmax(-1) * 0.5) @ v


def _cubed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (_scores(q, k) ** 3).softmax(-1) @ v


def _in_whole_numbers(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return _scores(q, k).to(torch.int32).float().softmax(-1) @ v


def _weights_in_eight_bits(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return _scores(q, k).softmax(-1).to(torch.float8_e4m3fn).float() @ v


def _filled_with_five(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return _scores(q, k).masked_fill(torch.arange(20, device=q.device) % 2 == 0, -5.0).softmax(-1) @ v


def _weighted_keys(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (_scores(q, k) * torch.arange(20, device=q.device)).softmax(-1) @ v


def _two_sinks(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.cat([_scores(q, k), q.new_zeros(2, 4, q.shape[2], 2)], -1)
    return scores.softmax(-1)[..., :-2] @ v


def _sink_of_each_query(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.cat([_scores(q, k), q.sum(-1, keepdim=True)], -1)
    return scores.softmax(-1)[..., :-1] @ v


def _capped_after_mask(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.tanh(_scores(q, k) + torch.arange(20, device=q.device) / 20).softmax(-1) @ v


def _in_two_dtypes(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return _scores(q, k).softmax(-1).double() @ v.double()


def _odd_head_dim(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return _scores(q[..., :15], k[..., :15]).softmax(-1) @ v


def _exponentials(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    scores = _scores(q, k)
    maximum = scores.amax(-1, keepdim=True)
    return torch.exp(scores - maximum), maximum


def _maximum_returned(q: Tensor, k: Tensor, v: Tensor) -> Any:
    powers, maximum = _exponentials(q, k)
    return (powers / powers.sum(-1, keepdim=True)) @ v, maximum


def _exponentials_returned(q: Tensor, k: Tensor, v: Tensor) -> Any:
    powers, _ = _exponentials(q, k)
    return (powers / powers.sum(-1, keepdim=True)) @ v, powers


def _sum_kept_from_0(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    powers, _ = _exponentials(q, k)
    return (powers / powers.sum(-1, keepdim=True).clamp(min=1.5)) @ v


def _sum_over_heads(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    # Capped, because Inductor (PyTorch 2.13) takes it for a softmax over the keys otherwise.
    powers = torch.exp(torch.tanh(_scores(q, k)))
    return (powers / powers.sum(1, keepdim=True)) @ v


def _sum_of_others(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    powers, _ = _exponentials(q, k)
    return (powers / _scores(q, k).exp().sum(-1, keepdim=True)) @ v


def _changed_meanwhile(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    powers, _ = _exponentials(q, k)
    total = powers.sum(-1, keepdim=True)
    powers.mul_(torch.arange(20, device=q.device))
    return (powers / total) @ v


def _lse_of_shifted(q: Tensor, k: Tensor, v: Tensor) -> Any:
    powers, _ = _exponentials(q, k)
    total = powers.sum(-1, keepdim=True)
    return (powers / total) @ v, total.log()


def _values_of_lse(q: Tensor, k: Tensor, v: Tensor) -> Any:
    scores = _scores(q, k)
    lse = torch.logsumexp(scores, -1)
    return scores.softmax(-1) @ (v * lse.mean())


def _lse_of_filled(q: Tensor, k: Tensor, v: Tensor) -> Any:
    scores = _scores(q, k).masked_fill(torch.arange(20, device=q.device) > 7, -1e4)
    return scores.softmax(-1) @ v, torch.logsumexp(scores, -1)


_ELSEWHERE = "what is made of the scores is used elsewhere too"

REFUSED: dict[str, tuple[Program, str]] = {
    "probabilities returned": (_returned, "output_attentions=False"),
    "scores returned": (_kept_scores, "scores are used elsewhere too"),
    "probabilities changed": (_renormalised, "probabilities go through aten.mul"),
    "scores cubed": (_cubed, "go through aten.pow"),
    "scores in whole numbers": (_in_whole_numbers, "convert_element_type"),
    "probabilities in eight bits": (_weights_in_eight_bits, "convert_element_type"),
    "a fill that hides nothing": (_filled_with_five, "filled with -5"),
    "keys weighted": (_weighted_keys, "differs between keys"),
    "two sinks": (_two_sinks, "more than one column"),
    "a sink that depends on the query": (_sink_of_each_query, "not one number per query head"),
    "capped after a bias": (_capped_after_mask, "before soft capping"),
    "two dtypes": (_in_two_dtypes, "mixed dtypes"),
    "a maximum returned": (_maximum_returned, _ELSEWHERE),
    "exponentials returned": (_exponentials_returned, _ELSEWHERE),
    "a sum kept from 0": (_sum_kept_from_0, "not divided by their sum"),
    "a sum over something else": (_sum_over_heads, "not divided by their sum"),
    "a sum of others": (_sum_of_others, "not divided by their sum"),
    "changed in place meanwhile": (_changed_meanwhile, "not made of exponentials"),
    "a log-sum-exp of shifted scores": (_lse_of_shifted, _ELSEWHERE),
    "values of the log-sum-exp": (_values_of_lse, "values depend on the log-sum-exp"),
    "a low fill, and the log-sum-exp": (_lse_of_filled, "fill them with -inf, or with -3.4"),
    "an odd head_dim": (_odd_head_dim, "head_dim is 15"),
}


def _run(program: Program, operands: tuple[Tensor, Tensor, Tensor]) -> tuple[Any, Report]:
    with graphs_run_uncompiled(), collect_reports() as report, torch.no_grad():
        return torch.compile(program, backend="kvprefetch")(*operands), report


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_understood_is_refused(name: str) -> None:
    program, reason = REFUSED[name]
    operands = _operands()
    actual, report = _run(program, operands)
    torch.testing.assert_close(actual, program(*operands))
    (site,) = report.sites
    assert not site.lowered
    assert reason in site.reason


def test_a_prefill_is_no_decode_site() -> None:
    _, report = _run(lambda q, k, v: _scores(q, k).softmax(-1) @ v, _operands(q_len=17))
    (site,) = report.sites
    assert not site.decode
    assert "prefill" in site.reason


def test_training_is_left_alone() -> None:
    operands = _operands()
    operands[0].requires_grad_(True)
    with graphs_run_uncompiled(), collect_reports() as report:
        torch.compile(lambda q, k, v: _scores(q, k).softmax(-1) @ v, backend="kvprefetch")(*operands)
    assert "gradients are on" in report.sites[0].reason


def test_a_softmax_that_is_no_attention_is_no_site() -> None:
    """A router of a mixture of experts, and a softmax over what is not the last dimension."""

    def route(x: Tensor, experts: Tensor, v: Tensor) -> Tensor:
        weights = torch.nn.functional.linear(x, experts[0, 0]).softmax(-1)
        return weights.topk(2).values.sum(-1, keepdim=True) + (x @ experts.mT).softmax(-2).sum()

    _, report = _run(route, _operands())
    assert not report.sites


def test_what_interleaved_sites_share_comes_before_both() -> None:
    """Both outputs stand behind both softmaxes, in another order, and between them what needs a log-sum-exp."""

    def interleaved(q: Tensor, k: Tensor, v: Tensor) -> Any:
        hidden = torch.arange(20, device=q.device) > 12
        first, second = (_scores(q, keys).masked_fill(hidden, -float("inf")) for keys in (k, 2 * k))
        lse = torch.logsumexp(first, -1)
        weights = first.softmax(-1)
        queries = q * lse[..., None]
        third = _scores(queries, k).masked_fill(hidden, -float("inf")).softmax(-1) @ v
        other = second.softmax(-1) @ v
        return weights @ v, other, third, torch.logaddexp(lse, torch.logsumexp(second, -1))

    operands = _operands()
    actual, report = _run(interleaved, operands)
    assert len(report.lowered) == 3, str(report)
    torch.testing.assert_close(actual, interleaved(*operands))
