"""Change one thing that attention depends on: the compiled result must change as eager's does, or the site be refused.

Each mutation is tried three times: it must matter (the original's result is wrong for the mutant), the compiled mutant
must follow eager, and a pass made blind to what was changed must be caught.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from prefetch_compiler.recognize import sdpa

from . import blindness, mutants
from .blindness import Blind
from .forms import forms, forms_met
from .golden import rewritten_caches, sliding_window, static_cache
from .golden.graph import Golden
from .golden.run import run_compiled
from .mutants import Fate, assert_blind_is_caught, assert_matters, follow, forms_without_mutants, try_mutation
from .mutations import GROUPED, MUTATIONS, TREE, Mutation
from .uncompiled import graphs_run_uncompiled

# Triton's interpreter warns at every scalar that it converts: recording them takes longer than computing.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")


@pytest.fixture(autouse=True)
def _afresh() -> Iterator[None]:
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_mutation_matters(mutation: Mutation) -> None:
    assert_matters(mutation)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_mutant_follows_eager(mutation: Mutation) -> None:
    follow(mutation.mutant)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_pass_blind_to_the_mutation_is_caught(mutation: Mutation) -> None:
    with forms_met() as met:
        assert_blind_is_caught(mutation.mutant, mutation.blind)
    assert set(mutation.forms) <= met, "the pass was blinded to something else than what these forms look at"


def test_every_registered_form_has_mutants() -> None:
    assert forms_without_mutants() == [], "add a mutation of each to mutations.py, and a way to blind the pass to it"
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS)


def test_a_new_form_without_mutants_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mutants, "forms", lambda: (*forms(), "is_new_form"))
    assert forms_without_mutants() == ["is_new_form"]


def test_a_mutant_that_survives_is_told() -> None:
    """A pass that is blind to nothing is not caught."""
    (mutation,) = (one for one in MUTATIONS if one.name == "scale")
    tried = try_mutation(replace(mutation, blind=lambda monkeypatch: None, forms=("is_sdpa", "is_sdpa_3d")))
    assert tried.fates == (Fate.CAUGHT, Fate.FOLLOWED, Fate.SURVIVED)
    assert tried.survived
    assert tried.missed == {"is_sdpa_3d"}
    same = try_mutation(replace(mutation, original=mutation.mutant))
    assert same.fates == (Fate.SURVIVED, Fate.FOLLOWED, Fate.CAUGHT)


@pytest.mark.parametrize(
    ("golden", "blind"),
    [
        (rewritten_caches.MASK_BETWEEN_LAYERS, blindness.to_which_mask),
        (static_cache.LLAMA, blindness.to_unread_writes),
        (sliding_window.ROLLING, blindness.to_unread_writes),
        (TREE.golden, blindness.to_unread_writes),
    ],
    ids=["which_mask", "unread_writes", "unread_writes_of_windows", "unread_writes_of_trees"],
)
def test_a_pass_blind_to_the_graph_is_caught(golden: Golden, blind: Blind) -> None:
    follow(golden)
    assert_blind_is_caught(golden, blind)


def _dropped() -> Golden:
    golden = GROUPED.golden

    def attend(**inputs: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(
            inputs["q"], inputs["keys"], inputs["values"], dropout_p=0.5, enable_gqa=True
        )

    return replace(golden, program=attend)


def test_dropout_is_refused() -> None:
    with graphs_run_uncompiled():
        _, report = run_compiled(_dropped())
    (site,) = report.sites
    assert not site.lowered
    assert "dropout_p is 0.5" in site.reason


def test_a_pass_blind_to_dropout_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sdpa, "_require_no_dropout", lambda dropout_p: None)
    with graphs_run_uncompiled():
        _, report = run_compiled(_dropped())
    assert report.sites[0].lowered
