"""The guard: what is wrong with our own results, whatever their speed. Peers are not judged."""

from __future__ import annotations

from .result import KernelRun, Status


def problems(run: KernelRun) -> list[str]:
    """One line for each of our kernels that failed or was wrong; empty when all is well."""
    bad = (Status.WRONG, Status.FAILED)
    return [
        f"{case.case.name}: {peer.name} ({peer.config}) {peer.status.value}: {peer.reason}"
        for case in run.cases
        for peer in case.peers
        if peer.is_ours and peer.status in bad
    ]
