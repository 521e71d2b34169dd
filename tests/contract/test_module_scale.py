"""A scale that a module holds as a float is an input of the graph under ``dynamic=True``, and a constant to SDPA."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from prefetch_compiler.report import collect_reports

from .uncompiled import graphs_run_uncompiled

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

# Triton's interpreter warns at every scalar that it converts.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")


class _Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scaling = 0.3

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(q, k, v, scale=self.scaling)


@pytest.fixture(autouse=True)
def _afresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_each_value_of_the_scale_is_lowered_and_used() -> None:
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(2, 4, length, 16, generator=generator).to(DEVICE) for length in (1, 9, 9))
    module = _Scaled()
    compiled = torch.compile(module, backend="kvprefetch", dynamic=True)
    with torch.no_grad(), graphs_run_uncompiled(), collect_reports() as report:
        for scale in (0.3, 2.0, 0.3):
            module.scaling = scale
            torch.testing.assert_close(compiled(q, k, v), module(q, k, v))
    assert len(report.lowered) == len(report.sites) > 0, str(report)
