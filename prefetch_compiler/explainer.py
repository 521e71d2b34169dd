"""explain(): compile a model afresh, run it once, and say what became of every attention site."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .lower.ops import observe_keys_read, why_not_launched
from .report import Report, Verdict, collect_reports
from .select.digest import selection_digest


def explain(model: Callable[..., Any], *args: Any, options: dict[str, Any] | None = None, **kwargs: Any) -> Report:
    """Compile ``model`` with this backend and run it once on the given inputs, without gradients.

    The run is real: a KV cache among the inputs is written to, as by any decode step. Compile caches are bypassed, so
    that every site is examined; code compiled before by torch.compile is left as it is.

    Args:
        model: a module or function, as one would give to torch.compile.
        options: as for torch.compile; CUDA graphs stay off.

    Returns:
        Every site with its layer, spec, verdict, config and reason, the KV bytes that it read against the capacity, and
        the digest of what configurations were selected from.
    """
    from torch._inductor import config as inductor_config

    from .backend import kvprefetch

    torch._dynamo.reset()
    compiled = torch.compile(model, backend=kvprefetch, options=options)
    with (
        inductor_config.patch(force_disable_caches=True),
        collect_reports(number_across_graphs=True) as report,
        observe_keys_read() as keys_read,
        torch.no_grad(),
    ):
        compiled(*args, **kwargs)
    _attach(report, keys_read)
    report.digest = selection_digest(options)
    return report


def _attach(report: Report, keys_read: dict[int, float]) -> None:
    for site in report.sites:
        if site.lowered:
            site.keys_read = keys_read.get(site.index)
        config = site.config
        failure = None if config is None else why_not_launched(config)
        if config is not None and failure is not None:
            site.verdict = Verdict.UNTOUCHED
            site.reason = f"kernel {config.encode()} failed to launch, PyTorch serves: {failure}"
            site.template = site.config = site.record = site.keys_read = None
