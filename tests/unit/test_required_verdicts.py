"""What --require asks for, and which sites fall short of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from prefetch_compiler.errors import InvalidOptionError
from prefetch_compiler.explain_command.required_verdicts import parse_verdicts, shortfalls
from prefetch_compiler.report import Report, SiteReport, Verdict

EXACT = SiteReport(0, 0, "model.layers.0.self_attn", "sdpa", Verdict.EXACT, "tuned")
HEURISTIC = SiteReport(1, 0, "model.layers.1.cross_attn", "sdpa", Verdict.HEURISTIC, "heuristic for NVIDIA H200")
LEFT = SiteReport(2, 0, "model.layers.2.self_attn", "sdpa", reason="gradients are on")
PREFILL = replace(LEFT, layer="encoder.attn", reason="q_len 512 is over 16", decode=False)
TUNED = parse_verdicts("exact,bucket")


def test_verdicts_by_their_names() -> None:
    assert {Verdict.EXACT, Verdict.BUCKET} == TUNED
    assert parse_verdicts(" Family ") == {Verdict.FAMILY}


@pytest.mark.parametrize("text", ["", "exact,", "tuned", "exact bucket"])
def test_another_word_is_an_error_that_names_it(text: str) -> None:
    with pytest.raises(InvalidOptionError) as raised:
        parse_verdicts(text)
    assert repr(text) in str(raised.value)
    assert "heuristic" in str(raised.value)


@pytest.mark.parametrize("short", [HEURISTIC, LEFT])
def test_a_site_with_another_verdict_is_named_with_its_reason(short: SiteReport) -> None:
    (line,) = shortfalls(Report([EXACT, short], graphs=1), TUNED)
    assert line.startswith(f"{short.layer}: {short.verdict.value}, not bucket or exact: ")
    assert short.reason in line


def test_alike_sites_share_a_line() -> None:
    alike = [replace(HEURISTIC, index=number, layer=f"layers.{number}") for number in range(4)]
    (line,) = shortfalls(Report(alike, graphs=1), TUNED)
    assert line.startswith("layers.0-3: ")


def test_attention_that_is_no_decode_step_is_not_asked() -> None:
    assert not list(shortfalls(Report([EXACT, PREFILL], graphs=1), TUNED))


def test_no_decode_attention_at_all_falls_short() -> None:
    assert len(list(shortfalls(Report(), TUNED))) == 1
    assert len(list(shortfalls(Report([PREFILL], graphs=1), TUNED))) == 1
