"""Every way to run without gradients: the sites are lowered, and results and caches are eager's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from prefetch_compiler.report import collect_reports

from ..contract.uncompiled import graphs_run_uncompiled
from ..export.decoder import decoder, empty_cache, step_inputs

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def _afresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("mode", "made_inside"), [(torch.no_grad, False), (torch.inference_mode, False), (torch.inference_mode, True)]
)
def test_lowered_and_equal(mode: Callable[[], Any], made_inside: bool) -> None:
    """Caches and weights that are made in inference mode are inference tensors, and others are not."""
    with mode() if made_inside else torch.enable_grad():
        model, eager = decoder(DEVICE), decoder(DEVICE)
        cache, eagers_cache = empty_cache(device=DEVICE), empty_cache(device=DEVICE)
    with graphs_run_uncompiled(), collect_reports() as report, mode():
        step = torch.compile(model, backend="kvprefetch", fullgraph=True, options={"kvprefetch.strict": True})
        for number in range(2):
            x, position = step_inputs(number, device=DEVICE)
            torch.testing.assert_close(step(x, cache, position), eager(x, eagers_cache, position))
            torch.testing.assert_close(cache, eagers_cache)
    assert report.graphs == 1
    assert [(site.layer, site.lowered) for site in report.sites] == [("cached", True), ("over_memory", True)]


def test_one_compiled_model_under_both() -> None:
    """As a server has it that warms up under one of them."""
    model, eager = decoder(DEVICE), decoder(DEVICE)
    cache, eagers_cache = empty_cache(device=DEVICE), empty_cache(device=DEVICE)
    with graphs_run_uncompiled(), collect_reports() as report:
        step = torch.compile(model, backend="kvprefetch", options={"kvprefetch.strict": True})
        for number, mode in enumerate((torch.no_grad, torch.inference_mode, torch.no_grad)):
            x, position = step_inputs(number, device=DEVICE)
            with mode():
                torch.testing.assert_close(step(x, cache, position), eager(x, eagers_cache, position))
            torch.testing.assert_close(cache, eagers_cache)
    assert len(report.lowered) == len(report.sites) == 2 * report.graphs
