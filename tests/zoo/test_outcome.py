"""What a report says of a cell, and what is no outcome but an error."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from prefetch_compiler.report import Report, SiteReport, Verdict

from . import judge
from .cell import Cell
from .decode import Decoded
from .models import LLAMA, named
from .outcome import Kind, Outcome, first_sentence, outcome_of
from .record import Record
from .rendering import Notes, cell_text, overall
from .workload import PADDED

TWO_SITES = named("Whisper")


def _site(layer: str, lowered: bool, graph: int = 0, reason: str = "why not") -> SiteReport:
    verdict = Verdict.HEURISTIC if lowered else Verdict.UNTOUCHED
    return SiteReport(0, graph, layer, "sdpa", verdict, "" if lowered else reason)


@pytest.mark.parametrize(
    ("sites", "expected"),
    [
        ([], Outcome(Kind.NOT_RECOGNISED)),
        ([_site("a", True)], Outcome(Kind.PARTLY, 1)),
        ([_site("a", True), _site("b", True)], Outcome(Kind.LOWERED, 2)),
        ([_site("a", True), _site("b", False)], Outcome(Kind.PARTLY, 1, ("why not",))),
        ([_site("a", False), _site("b", False)], Outcome(Kind.REFUSED, 0, ("why not",))),
        ([_site("a", True), _site("b", True), _site("b", False, graph=1)], Outcome(Kind.PARTLY, 1, ("why not",))),
    ],
)
def test_a_layer_counts_if_it_is_lowered_in_every_graph(sites: list[SiteReport], expected: Outcome) -> None:
    assert outcome_of(Report(sites), TWO_SITES, 0) == expected


def test_where_dynamo_broke_the_graph_is_the_reason_if_we_saw_no_attention() -> None:
    assert outcome_of(Report([]), TWO_SITES, 0, ("item()",)) == Outcome(Kind.NOT_RECOGNISED, reasons=("item()",))
    seen = Report([_site("a", True), _site("b", True)])
    assert outcome_of(seen, TWO_SITES, 0, ("item()",)) == Outcome(Kind.LOWERED, 2)


def test_an_exception_is_told_in_a_sentence() -> None:
    assert first_sentence(ValueError("\nNo torch.nn here. Please ask\nfor it")) == "ValueError: No torch.nn here"
    assert first_sentence(KeyError()) == "KeyError"


def _decoded(keys: float = 1.0, logits: float = 1.0) -> Decoded:
    cache = DynamicCache()
    cache.update(torch.full((1, 1, 2, 4), keys), torch.ones(1, 1, 2, 4), 0)
    return Decoded(torch.full((1, 1, 1, 3), logits), torch.zeros(1, 1, 1, dtype=torch.long), cache)


@pytest.mark.parametrize("wrong", [{"keys": 1.03}, {"logits": 1.03}, {"keys": float("nan")}])
def test_a_cache_or_logits_farther_off_than_twice_eagers_error_are_wrong(wrong: dict[str, float]) -> None:
    eager, exact = _decoded(keys=1.01, logits=1.01), _decoded()
    judge.assert_follows(_decoded(keys=1.015, logits=0.985), eager, exact)
    with pytest.raises(AssertionError, match="error"):
        judge.assert_follows(_decoded(**{"keys": 1.01, "logits": 1.01} | wrong), eager, exact)


def test_a_stage_of_the_backend_that_fails_is_no_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(*_: Any, **__: Any) -> Decoded:
        logging.getLogger("prefetch_compiler").warning("marking failed, Inductor serves alone")
        return _decoded()

    monkeypatch.setattr(judge, "decode", decode)
    with pytest.raises(AssertionError, match="marking failed"):
        judge.compiled(Cell(LLAMA), PADDED)


def test_what_only_our_backend_cannot_compile_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def compiled(_: Cell, __: object, backend: str = "kvprefetch") -> Any:
        if backend not in broken:
            return None
        raise ValueError(f"{backend} is broken")

    monkeypatch.setattr(judge, "compiled", compiled)
    monkeypatch.setattr(judge, "decode", lambda *_, **__: _decoded())
    broken = {"kvprefetch", "inductor"}
    outcome = judge.judge(Cell(LLAMA), PADDED)
    assert outcome == Outcome(Kind.NOT_COMPILED, reasons=("ValueError: inductor is broken",))
    broken.remove("inductor")
    with pytest.raises(ValueError, match="kvprefetch is broken"):
        judge.judge(Cell(LLAMA), PADDED)


def test_the_table_names_workloads_only_where_they_differ() -> None:
    cell, notes = Cell(TWO_SITES), Notes()
    lowered, refused = Outcome(Kind.LOWERED, 2), Outcome(Kind.REFUSED, 0, ("BartForConditionalGeneration is odd",))
    alike = Record({}, {cell.key: {"batch 4": lowered, "batch 1": lowered}})
    assert cell_text(cell, alike, notes) == "**yes**"
    apart = Record({}, {cell.key: {"batch 4": refused, "batch 1": lowered, "4 tokens": refused}})
    assert cell_text(cell, apart, notes) == "batch 4, 4 tokens: refused [1]; batch 1: **yes**"
    assert notes.lines() == ["1. `this architecture is odd`"]
    assert overall(apart.of(cell)) is Kind.PARTLY
    assert overall({"batch 1": lowered, "batch 4": Outcome(Kind.UNSUPPORTED)}) is Kind.LOWERED
