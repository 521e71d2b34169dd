"""Examples of documents that are marked with ``<!-- run -->`` run as they stand, and no kernel is stood in for."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from prefetch_compiler.lower import call_op

REPOSITORY = Path(__file__).parents[2]
EXAMPLE = re.compile(r"<!-- run -->\n```python\n(.*?)```", re.DOTALL)
EXAMPLES = [
    pytest.param(code, id=f"{document}-{number}")
    for document in ("README.md", "docs/forms.md", "docs/paged.md", "docs/quantised.md")
    if (REPOSITORY / document).exists()
    for number, code in enumerate(EXAMPLE.findall((REPOSITORY / document).read_text()))
]


@pytest.mark.parametrize("code", EXAMPLES)
def test_example(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Tensor:
        raise AssertionError("the kernel was not used")

    monkeypatch.setattr(call_op, "plain_attention", refuse)
    torch._dynamo.reset()
    exec(compile(code, "example", "exec"), {})


@pytest.mark.skipif(not (REPOSITORY / "docs").exists(), reason="the documents are not here")
def test_each_document_has_examples() -> None:
    assert len(EXAMPLES) == 6
