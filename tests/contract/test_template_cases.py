"""Every template solves every contract case within its error bound, reading nothing that no query sees."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from prefetch_compiler.templates.manifest import TEMPLATES, Template
from torch import Tensor

from .cases import CASES, Case, Operands, build, solve, spec_of
from .error_bounds import assert_within_bound

# How to run each template; one that is missing here fails test_every_template_is_under_contract.
RUNNERS: dict[str, Callable[[Case, Operands], Tensor]] = {"split_kv_decode": solve}
# Templates over other operands, and the suites that have cases for them.
OTHER_SUITES = {"quantised_decode": "test_quantised_cases.py", "latent_decode": "test_latent_cases.py"}


def test_every_template_is_under_contract() -> None:
    assert {template.name for template in TEMPLATES} == {*RUNNERS, *OTHER_SUITES}
    assert all(Path(__file__).with_name(suite).is_file() for suite in OTHER_SUITES.values())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("template", [t for t in TEMPLATES if t.name in RUNNERS], ids=lambda template: template.name)
def test_case(template: Template, case: Case) -> None:
    operands = build(case)
    refusal = template.refusal(spec_of(case, operands))
    if refusal is not None:
        pytest.skip(f"not covered by {template.name}: {refusal}")
    out = RUNNERS[template.name](case, operands)
    assert_within_bound(out, operands)
    order = (0, 1, 2, 3) if case.heads_first else (0, 2, 1, 3)
    assert out.permute(order).is_contiguous()
