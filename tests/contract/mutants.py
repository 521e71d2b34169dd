"""Tries every mutant, through the pass as it is and through one blind to the change.

``python -m tests.contract.mutants`` prints a line for each, and how many there were; it fails if any survived, that is,
if a result that is wrong passed for right, or if a registered form has no mutant.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import pytest
import torch
import typer

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports Triton

from ..zoo.quicker_interpreter import quicker_interpreter
from .error_bounds import assert_within_bound
from .forms import forms, forms_met
from .golden.graph import Golden
from .golden.run import assert_follows_eager, run_compiled, run_eagerly
from .mutations import MUTATIONS, Mutation
from .uncompiled import graphs_run_uncompiled

# What the comparison with float64 says of a wrong result; anything else that fails is no catch.
WRONG = "err too much|NaN or infinite|than eager"


class Fate(str, Enum):
    """What became of one change."""

    FOLLOWED = "followed"  # lowered, and right
    REFUSED = "refused"  # left as it was, with a reason, and right
    CAUGHT = "caught"  # wrong, and the comparison said so
    SURVIVED = "SURVIVED"


def assert_matters(mutation: Mutation) -> None:
    """The original's result is wrong for the mutant."""
    original, _ = run_eagerly(mutation.original)
    _, problems = run_eagerly(mutation.mutant)
    with pytest.raises(AssertionError, match=WRONG):
        assert_within_bound(original.outputs[0], problems[0])


def follow(golden: Golden) -> Fate:
    """Every site is lowered or refused with a reason, and the result is eager's.

    Raises:
        AssertionError: it is not.
    """
    eager, problems = run_eagerly(golden)
    with graphs_run_uncompiled():
        compiled, report = run_compiled(golden)
    assert report.sites
    assert all(site.lowered or site.reason for site in report.sites)
    assert_follows_eager(compiled, eager, problems)
    return Fate.FOLLOWED if all(site.lowered for site in report.sites) else Fate.REFUSED


def assert_blind_is_caught(golden: Golden, blind: Callable[[pytest.MonkeyPatch], None]) -> None:
    """A blind pass lowers all the same, and the comparison notices."""
    eager, problems = run_eagerly(golden)
    with pytest.MonkeyPatch.context() as patch:
        blind(patch)
        with graphs_run_uncompiled():
            compiled, report = run_compiled(golden)
    assert report.sites
    assert all(site.lowered for site in report.sites), str(report)
    with pytest.raises(AssertionError, match=WRONG):
        assert_follows_eager(compiled, eager, problems)


@dataclass(frozen=True)
class Tried:
    """``fates`` of the original's result taken for the mutant's, of the mutant, and of the blind pass; ``missed`` are
    forms of the mutation that the blind pass never came to: it was blind to something else."""

    mutation: Mutation
    fates: tuple[Fate, Fate, Fate]
    missed: frozenset[str]

    @property
    def survived(self) -> bool:
        return Fate.SURVIVED in self.fates

    def line(self) -> str:
        fates = "".join(f"{fate.value:<10}" for fate in self.fates)
        missed = f"does not meet {', '.join(sorted(self.missed))}" if self.missed else ""
        return f"{' + '.join(self.mutation.forms):<48}{self.mutation.name:<28}{fates}{missed}".rstrip()


def _fate(trial: Callable[[], object], otherwise: Fate) -> Fate:
    try:
        found = trial()
    # pytest.raises tells of an error that did not come by an exception that is none of Exception's.
    except (Exception, pytest.fail.Exception):
        return Fate.SURVIVED
    return found if isinstance(found, Fate) else otherwise


def try_mutation(mutation: Mutation) -> Tried:
    mutant = _fate(lambda: follow(mutation.mutant), Fate.FOLLOWED)
    with forms_met() as met:
        blind = _fate(lambda: assert_blind_is_caught(mutation.mutant, mutation.blind), Fate.CAUGHT)
    matters = _fate(lambda: assert_matters(mutation), Fate.CAUGHT)
    torch._dynamo.reset()
    return Tried(mutation, (matters, mutant, blind), frozenset(mutation.forms) - met)


def forms_without_mutants() -> list[str]:
    mutated = {form for mutation in MUTATIONS for form in mutation.forms}
    return [form for form in forms() if form not in mutated]


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print(f"{'form':<48}{'mutation':<28}{'original':<10}{'mutant':<10}blind pass")
    tried = []
    with quicker_interpreter():
        for mutation in MUTATIONS:
            tried.append(try_mutation(mutation))
            print(tried[-1].line(), flush=True)
    survivors, missing = sum(one.survived or bool(one.missed) for one in tried), forms_without_mutants()
    of_form = Counter(form for one in tried for form in one.mutation.forms)
    print("\n" + "\n".join(f"{form:<28}{of_form[form]:>4} mutants" for form in forms()))
    fates = Counter(one.fates[1] for one in tried)
    print(
        f"\n{len(tried)} mutants of {len(forms())} forms: {fates[Fate.FOLLOWED]} lowered and right, "
        f"{fates[Fate.REFUSED]} refused; {sum(one.fates[2] is Fate.CAUGHT for one in tried)} blind passes caught; "
        f"{survivors} survivors; {len(missing)} forms without mutants"
    )
    raise typer.Exit(1 if survivors or missing else 0)


if __name__ == "__main__":
    typer.run(main)
