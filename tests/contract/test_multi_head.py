"""nn.MultiheadAttention and the layers made of it, compiled and eager."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prefetch_compiler.report import Report, collect_reports

from .uncompiled import graphs_run_uncompiled

pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BATCH, KEYS, WIDTH, HEADS = 2, 20, 64, 4


@pytest.fixture(autouse=True)
def _afresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def _normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(DEVICE)


def _padding() -> Tensor:
    hidden = torch.zeros(BATCH, KEYS, dtype=torch.bool, device=DEVICE)
    hidden[0, :7] = True
    return hidden


def _module(**options: Any) -> nn.MultiheadAttention:
    torch.manual_seed(2)
    return nn.MultiheadAttention(WIDTH, HEADS, **options).to(DEVICE).eval()


def _run(module: nn.Module, *arguments: Tensor, **options: Any) -> tuple[Any, Any, Report]:
    with torch.no_grad():
        eager = module(*arguments, **options)
        with graphs_run_uncompiled(), collect_reports() as report:
            compiled = torch.compile(module, backend="kvprefetch")(*arguments, **options)
    return compiled, eager, report


CALLS: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    "plain": ({"batch_first": True}, {"need_weights": False}, 1),
    "queries in a row": ({"batch_first": True}, {"need_weights": False}, 5),
    "padded": ({"batch_first": True}, {"need_weights": False, "key_padding_mask": _padding()}, 1),
    "masked": ({"batch_first": True}, {"need_weights": False, "attn_mask": _normal(3, KEYS)}, 3),
    "masked by head": ({"batch_first": True}, {"need_weights": False, "attn_mask": _normal(BATCH * HEADS, 2, KEYS)}, 2),
    "more keys": ({"batch_first": True, "add_bias_kv": True, "add_zero_attn": True}, {"need_weights": False}, 1),
    "other widths": ({"batch_first": True, "bias": False}, {"need_weights": False}, 16),
}


@pytest.mark.parametrize("name", CALLS)
def test_every_call_is_lowered_and_follows_eager(name: str) -> None:
    built, called, q_len = CALLS[name]
    memory = _normal(BATCH, KEYS, WIDTH)
    (compiled, none), (eager, _), report = _run(
        _module(**built), _normal(BATCH, q_len, WIDTH), memory, memory, **called
    )
    assert none is None
    (site,) = report.sites
    assert site.lowered, site.reason
    assert site.form == "multi_head"
    torch.testing.assert_close(compiled, eager)


def test_weights_that_nobody_reads_are_in_nobodys_way() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = _module(batch_first=True)

        def forward(self, q: Tensor, memory: Tensor) -> Tensor:
            output: Tensor = self.attention(q, memory, memory, key_padding_mask=_padding())[0]
            return output

    compiled, eager, report = _run(Reader(), _normal(BATCH, 1, WIDTH), _normal(BATCH, KEYS, WIDTH))
    assert len(report.lowered) == len(report.sites) == 1
    torch.testing.assert_close(compiled, eager)


def test_weights_that_are_returned_are_kept() -> None:
    memory = _normal(BATCH, KEYS, WIDTH)
    compiled, eager, report = _run(_module(batch_first=True), _normal(BATCH, 1, WIDTH), memory, memory)
    torch.testing.assert_close(compiled, eager)
    assert "need_weights=False" in report.sites[0].reason


def test_a_decoder_layer_is_lowered_whole() -> None:
    torch.manual_seed(3)
    layer = nn.TransformerDecoderLayer(WIDTH, HEADS, 32, batch_first=True).to(DEVICE).eval()
    mask = nn.Transformer.generate_square_subsequent_mask(4, device=DEVICE)
    compiled, eager, report = _run(
        layer, _normal(BATCH, 4, WIDTH), _normal(BATCH, KEYS, WIDTH), tgt_mask=mask, tgt_is_causal=True,
        memory_key_padding_mask=_padding(),
    )  # fmt: skip
    assert len(report.lowered) == len(report.sites) == 2, str(report)
    torch.testing.assert_close(compiled, eager)


def test_what_is_no_decode_step_is_left_alone() -> None:
    memory = _normal(BATCH, KEYS, WIDTH)
    _, _, report = _run(_module(batch_first=True), _normal(BATCH, 17, WIDTH), memory, memory, need_weights=False)
    assert not report.sites[0].decode
    assert "prefill" in report.sites[0].reason


def test_training_is_left_alone() -> None:
    memory = _normal(BATCH, KEYS, WIDTH)
    torch._dynamo.reset()
    with graphs_run_uncompiled(), collect_reports() as report:
        torch.compile(_module(batch_first=True), backend="kvprefetch")(memory[:, :1], memory, memory)
    assert "gradients are on" in report.sites[0].reason
    with graphs_run_uncompiled(), collect_reports() as report, torch.no_grad():
        dropping = _module(batch_first=True, dropout=0.5).train()
        torch.compile(dropping, backend="kvprefetch")(memory[:, :1], memory, memory)
    assert "call model.eval()" in report.sites[0].reason
