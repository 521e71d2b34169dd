"""A run as tables: ours beside the best peer and the ceiling, geometric means, everyone, and who was not measured."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..table import MISSING, Table
from .cases import Case
from .peers.peer import Peer
from .result import (
    BEST_BARE,
    BEST_PREFETCHING,
    DETERMINISTIC,
    HEURISTIC,
    OURS,
    SHIPPED,
    CaseResult,
    KernelRun,
    PeerResult,
    Status,
)
from .summary import GroupSummary, summaries

_OUR_WORDS = {
    SHIPPED: "shipped",
    HEURISTIC: "heuristic",
    DETERMINISTIC: "deterministic",
    BEST_BARE: "depth 0",
    BEST_PREFETCHING: "depth > 0",
}
_BEST_PEERS = 3
_REASON_CHARACTERS = 150
_OURS_NOTE = (
    "shipped: what users get; depth 0, depth > 0: the best found without and with prefetch; deterministic: what users "
    "get whose results must not depend on the batch; faster: than the best peer."
)
_VERDICT_NOTE = "Of shipped: exact, bucket or family say that a tuning database decided; heuristic that none did."


def run_tables(run: KernelRun, everyone: bool = False) -> list[Table]:
    """The whole run, most telling last, where it is seen. ``everyone``: every peer and every reason."""
    left_out = left_out_table(run, everyone)
    tables = [everyone_table(run, everyone), summary_table(run), ours_table(run)]
    return [left_out, *tables] if left_out.rows else tables


def ours_table(run: KernelRun) -> Table:
    """Medians in microseconds; ratios within this run."""
    columns = (
        "case", "ceiling", "shipped", "depth 0", "depth > 0", "deterministic", "of ceiling", "best peer", "its µs",
        "faster",
    )  # fmt: skip
    environment = run.environment
    title = f"Decode attention, µs: {environment.get('device')}, torch {environment.get('torch')}"
    notes = [f"not run: {one.case.name}: {brief(one.reason)}" for one in run.not_run]
    ceilings = [note for case in run.cases for note in _ceiling_notes(case)]
    return Table(title, columns, [_ours_row(case) for case in run.cases], [_OURS_NOTE, *ceilings, *notes])


def _ours_row(case: CaseResult) -> tuple[str, ...]:
    best = case.best_peer
    return (
        case.case.name,
        f"{case.ceiling.time_us:.1f}",
        *(_us(case.time_us(name)) for name in (SHIPPED, BEST_BARE, BEST_PREFETCHING, DETERMINISTIC)),
        _percent(case.ceiling_share(SHIPPED)),
        MISSING if best is None else best.name,
        MISSING if best is None else _us(best.ranked_us),
        _ratio(case.faster_than_best_peer(SHIPPED)),
    )


def _ceiling_notes(case: CaseResult) -> list[str]:
    """What there is to say of a ceiling that somebody was faster than."""
    name, ceiling, beaten_by = case.case.name, case.ceiling, case.ceiling_beaten_by
    if beaten_by is not None:
        faster = f"{beaten_by.name} took {beaten_by.samples.median_us:.1f} µs, the ceiling {ceiling.time_us:.1f}"
        return [f"{name}: {faster}: no ceiling, and no shares of it"]
    if ceiling.first_us is not None:
        first = f"{ceiling.first_us:.1f} µs at first, which {ceiling.first_beaten_by} beat"
        return [f"{name}: ceiling measured again, with {len(ceiling.shapes)} launch shapes: {first}"]
    return []


def summary_table(run: KernelRun) -> Table:
    """Geometric means of what users get, and of the best of ours."""
    columns = (
        "group", "cases", "of ceiling", "faster than the best peer", "best of ours", "worst", "worst case",
    )  # fmt: skip
    rows = [_summary_row(group) for group in summaries(run)]
    title = "Geometric means of the shipped configuration"
    return Table(title, columns, rows, ["above 1: faster than the fastest peer of each case that is right"])


def _summary_row(group: GroupSummary) -> tuple[str, ...]:
    return (
        group.group,
        str(group.cases) if group.compared == group.cases else f"{group.cases} ({group.compared} compared)",
        _percent(group.ceiling_share),
        _ratio(group.faster),
        _ratio(group.best_of_ours_faster),
        _ratio(group.worst),
        group.worst_case or MISSING,
    )


def everyone_table(run: KernelRun, everyone: bool = True) -> Table:
    """What was timed, the fastest first in each case; what is wrong comes last and is not ranked. Unless ``everyone``:
    of the peers that are right, the fastest few."""
    columns = ("case", "who", "µs (p20–p80)", "of ceiling", "error / bound", "relative error", "configuration")
    rows = [row for case in run.cases for row in _case_rows(case, everyone)]
    if everyone:
        return Table("Everyone", columns, rows, [_VERDICT_NOTE], one_line=True)
    dropped = ("error / bound", "relative error")
    kept = [index for index, column in enumerate(columns) if column not in dropped]
    title = f"Ours, the fastest {_BEST_PEERS} peers of each case, and what is wrong (--all: everyone)"
    return Table(
        title,
        tuple(columns[index] for index in kept),
        [tuple(row[index] for index in kept) for row in rows],
        [_VERDICT_NOTE],
        one_line=True,
    )


def _case_rows(case: CaseResult, everyone: bool) -> list[tuple[str, ...]]:
    """The case is named in the first row only."""
    shown = _by_time(case)
    if not everyone:
        best = [peer for peer in shown if not peer.is_ours and peer.ranked_us is not None][:_BEST_PEERS]
        shown = [peer for peer in shown if peer.is_ours or peer.ranked_us is None or peer in best]
    rows = [_everyone_row(case, alike) for alike in _measured_once(shown)]
    return [(case.case.name if place == 0 else "", *row) for place, row in enumerate(rows)]


def _measured_once(peers: Sequence[PeerResult]) -> list[list[PeerResult]]:
    """Of ours, several names may stand for one configuration; everyone else stands alone."""
    groups: dict[str, list[PeerResult]] = {}
    for peer in peers:
        groups.setdefault(peer.config or peer.name, []).append(peer)
    return list(groups.values())


def _by_time(case: CaseResult) -> list[PeerResult]:
    timed = [peer for peer in case.peers if peer.samples.samples_us]
    return sorted(timed, key=lambda peer: (peer.ranked_us is None, peer.samples.median_us))


def _everyone_row(case: CaseResult, alike: Sequence[PeerResult]) -> tuple[str, ...]:
    peer = alike[0]
    checked = peer.correctness
    return (
        f"ours: {', '.join(_OUR_WORDS[one.name] for one in alike)}" if peer.is_ours else peer.name,
        _spread(peer),
        _percent(case.ceiling_share(peer.name)),
        MISSING if checked is None or checked.bound_share is None else f"{checked.bound_share:.2g}",
        MISSING if checked is None or checked.relative_error is None else f"{checked.relative_error:.1e}",
        ", ".join(_remarks(alike)),
    )


def _remarks(alike: Sequence[PeerResult]) -> list[str]:
    """Wrong or not; how the shipped configuration was chosen, and which it is."""
    wrong = ["WRONG"] if alike[0].status is Status.WRONG else []
    verdicts = [str(one.verdict).split(":")[0] for one in alike if one.name == SHIPPED]
    return [*wrong, *verdicts, *([] if alike[0].config is None else [alike[0].config])]


def left_out_table(run: KernelRun, everyone: bool = True) -> Table:
    """Who was not ranked, and why, a line for each reason: what went wrong first. Unless ``everyone``, without what
    cannot be otherwise: a spelling that does not fit a case."""
    names: dict[tuple[Status, str], dict[str, int]] = {}
    for case in run.cases:
        for peer in case.peers:
            if peer.status is not Status.MEASURED:
                counts = names.setdefault((peer.status, brief(peer.reason)), {})
                counts[peer.name] = counts.get(peer.name, 0) + 1
    order = (Status.WRONG, Status.FAILED, Status.UNAVAILABLE, Status.UNSUPPORTED)
    shown = order if everyone else order[:-1]
    lines = sorted(
        (line for line in names.items() if line[0][0] in shown or _is_ours(line[1])),
        key=lambda line: order.index(line[0][0]),
    )
    rows = [
        (status.value, _first_of(list(counts)), str(max(counts.values())), reason) for (status, reason), counts in lines
    ]
    title = "Not ranked" if everyone else "Not ranked (--all: also who takes no such case)"
    notes = ["Reasons in full: --json or --out"] if rows else []
    return Table(title, ("what", "who", "cases", "why"), rows, notes, one_line=True)


def _is_ours(names: dict[str, int]) -> bool:
    return any(name in OURS for name in names)


def _first_of(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]}, {len(names) - 1} more"


def brief(reason: str) -> str:
    """The first sentence of the first line, cut where it is long."""
    line = next((line.strip() for line in reason.splitlines() if line.strip()), "")
    sentence = re.split(r"(?<=[a-z)])\. (?=[A-Z])", line, maxsplit=1)[0]
    return sentence if len(sentence) <= _REASON_CHARACTERS else sentence[: _REASON_CHARACTERS - 1] + "…"


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
