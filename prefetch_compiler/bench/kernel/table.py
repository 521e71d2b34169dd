"""A run as tables: ours beside the best peer and the ceiling, geometric means, everyone, and who was not measured."""

from __future__ import annotations

from collections.abc import Sequence

from ..table import MISSING, Table
from .cases import Case
from .peers.peer import Peer
from .result import BEST_BARE, BEST_PREFETCHING, HEURISTIC, SHIPPED, CaseResult, KernelRun, PeerResult, Status
from .summary import GroupSummary, summaries

_EVERY_SHOWN = 2
_VERDICT_NOTE = "verdict: exact, bucket or family say that a tuning database decided; heuristic that none did."


def run_tables(run: KernelRun) -> list[Table]:
    """The whole run, most telling first."""
    tables = [ours_table(run), summary_table(run), everyone_table(run)]
    left_out = left_out_table(run)
    return [*tables, left_out] if left_out.rows else tables


def ours_table(run: KernelRun) -> Table:
    """Medians in microseconds; ratios within this run."""
    columns = (
        "case", "best peer", "KV MB", "ceiling", "shipped (p20–p80)", "verdict", "heuristic", "best depth 0",
        "best depth > 0", "of ceiling", "its µs", "faster than it",
    )  # fmt: skip
    environment = run.environment
    title = f"Decode attention, µs: {environment.get('device')}, torch {environment.get('torch')}"
    notes = [f"not run: {one.case.name}: {one.reason}" for one in run.not_run]
    return Table(title, columns, [_ours_row(case) for case in run.cases], [_VERDICT_NOTE, *notes])


def _ours_row(case: CaseResult) -> tuple[str, ...]:
    best, shipped = case.best_peer, case.of(SHIPPED)
    return (
        case.case.name,
        MISSING if best is None else best.name,
        f"{case.valid_bytes / 1e6:,.1f}",
        f"{case.ceiling.time_us:.1f}",
        _spread(shipped),
        MISSING if shipped is None or shipped.verdict is None else shipped.verdict.split(":")[0],
        *(_us(case.time_us(name)) for name in (HEURISTIC, BEST_BARE, BEST_PREFETCHING)),
        _percent(case.ceiling_share(SHIPPED)),
        MISSING if best is None else _us(best.ranked_us),
        _ratio(case.faster_than_best_peer(SHIPPED)),
    )


def summary_table(run: KernelRun) -> Table:
    """Geometric means of what users get, and of the best of ours."""
    columns = (
        "group", "worst case", "cases", "of ceiling", "faster than the best peer", "best of ours", "worst",
    )  # fmt: skip
    rows = [_summary_row(group) for group in summaries(run)]
    title = "Geometric means of the shipped configuration"
    return Table(title, columns, rows, ["above 1: faster than the fastest peer of each case that is right"])


def _summary_row(group: GroupSummary) -> tuple[str, ...]:
    return (
        group.group,
        group.worst_case or MISSING,
        str(group.cases) if group.compared == group.cases else f"{group.cases} ({group.compared} compared)",
        _percent(group.ceiling_share),
        _ratio(group.faster),
        _ratio(group.best_of_ours_faster),
        _ratio(group.worst),
    )


def everyone_table(run: KernelRun) -> Table:
    """Everything that was timed, the fastest first in each case; what is wrong comes last and is not ranked."""
    columns = ("case", "who", "µs (p20–p80)", "of ceiling", "error / bound", "relative error", "")
    rows = [_everyone_row(case, peer) for case in run.cases for peer in _by_time(case)]
    return Table("Everyone", columns, rows)


def _by_time(case: CaseResult) -> list[PeerResult]:
    timed = [peer for peer in case.peers if peer.samples.samples_us]
    return sorted(timed, key=lambda peer: (peer.ranked_us is None, peer.samples.median_us))


def _everyone_row(case: CaseResult, peer: PeerResult) -> tuple[str, ...]:
    checked = peer.correctness
    return (
        case.case.name,
        peer.name,
        _spread(peer),
        _percent(case.ceiling_share(peer.name)),
        MISSING if checked is None or checked.bound_share is None else f"{checked.bound_share:.2g}",
        MISSING if checked is None or checked.relative_error is None else f"{checked.relative_error:.1e}",
        peer.config or ("WRONG" if peer.status is Status.WRONG else ""),
    )


def left_out_table(run: KernelRun) -> Table:
    """Who was not ranked, and why: what went wrong first, a line for each reason with all whom it holds for."""
    cases: dict[tuple[Status, str, str], list[str]] = {}
    for case in run.cases:
        for peer in case.peers:
            if peer.status is not Status.MEASURED:
                cases.setdefault((peer.status, peer.reason, peer.name), []).append(case.case.name)
    alike: dict[tuple[Status, str, tuple[str, ...]], list[str]] = {}
    for (status, reason, name), names in cases.items():
        alike.setdefault((status, reason, tuple(names)), []).append(name)
    order = (Status.WRONG, Status.FAILED, Status.UNAVAILABLE, Status.UNSUPPORTED)
    lines = sorted(alike.items(), key=lambda line: order.index(line[0][0]))
    rows = [(", ".join(who), reason, status.value, _some(names)) for (status, reason, names), who in lines]
    return Table("Not ranked", ("who", "why", "what", "cases"), rows)


def _some(names: Sequence[str]) -> str:
    if len(names) <= _EVERY_SHOWN:
        return "; ".join(names)
    return f"{len(names)}, such as {names[0]}"


def cases_table(cases: Sequence[Case], seed: int) -> Table:
    """What a dry run shows of cases: bytes in megabytes of 10^6."""
    rows = [
        (
            case.name,
            case.heads_kind,
            f"{case.valid_bytes(seed) / 1e6:,.1f}",
            f"{case.capacity_bytes / 1e6:,.1f}",
            f"{min(case.lengths(seed))}–{max(case.lengths(seed))}",
        )
        for case in cases
    ]
    return Table(f"{len(cases)} cases (MB)", ("case", "heads", "KV that is read", "one cache", "keys held"), rows)


def peers_table(peers: Sequence[tuple[Peer, str | None]]) -> Table:
    """What a dry run shows of peers: whether each can be used on this machine."""
    rows = [(peer.name, peer.family, reason or "available") for peer, reason in peers]
    return Table("Peers", ("peer", "family", "here"), rows)


def _spread(peer: PeerResult | None) -> str:
    if peer is None or not peer.samples.samples_us:
        return MISSING
    low, middle, high = (peer.samples.quantile_us(fraction) for fraction in (0.2, 0.5, 0.8))
    return f"{middle:.1f} ({low:.1f}–{high:.1f})"


def _us(value: float | None) -> str:
    return MISSING if value is None else f"{value:.1f}"


def _ratio(value: float | None) -> str:
    return MISSING if value is None else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return MISSING if value is None else f"{value:.0%}"
