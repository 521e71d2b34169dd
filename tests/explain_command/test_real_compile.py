"""What explain says of a model without weights is what a real compile of the model reports, site by site."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from prefetch_compiler.device import profile
from prefetch_compiler.explain_command import explained
from prefetch_compiler.explain_command.explained import ExplainRequest, explain_model
from prefetch_compiler.report import SiteReport

from ..tuning.tiny_models import BATCH, CAPACITY, CONFIGS, HELD, explained_sites

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def told(site: SiteReport) -> dict[str, Any]:
    """What a site's report says, but for which graph of how many it is in."""
    return {name: value for name, value in site.to_dict().items() if name not in ("graph", "index")}


# Gemma 3 has a layer with a window, which is full here, and one without; the second step of a growing cache counts.
@pytest.mark.parametrize(("name", "cache", "held"), [("gemma3", "static", HELD), ("gpt2", "dynamic", HELD + 1)])
def test_what_is_explained_is_what_is_compiled(
    monkeypatch: pytest.MonkeyPatch, name: str, cache: str, held: int
) -> None:
    monkeypatch.setattr(explained, "choose_gpu", lambda text, databases: profile(DEVICE))
    request = ExplainRequest(
        CONFIGS[name], cache=explained.CacheKind(cache), batch=BATCH, capacity=CAPACITY, held=held, dtype="float32"
    )
    found = explain_model(request).report.sites
    real = explained_sites(name, cache, HELD, str(DEVICE), torch.float32)
    assert [told(site) for site in found] == [told(site) for site in real]
    assert all(site.read_bytes for site in found)
