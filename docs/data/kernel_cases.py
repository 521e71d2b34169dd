"""The tables of docs/kernel-cases.md and docs/benchmarks.md: `python docs/data/kernel_cases.py part1.json part2.json`
writes them anew from what `bench kernel --out` wrote, and prints the figures that the text around them names."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from prefetch_compiler.bench.kernel.cases import Fill
from prefetch_compiler.bench.kernel.parts import read_parts
from prefetch_compiler.bench.kernel.result import DETERMINISTIC, HEURISTIC, SHIPPED, CaseResult, KernelRun
from prefetch_compiler.bench.kernel.summary import geomean

DOCS = Path(__file__).parents[1]
ALL_CASES, SOME_CASES = DOCS / "kernel-cases.md", DOCS / "benchmarks.md"
FAMILIES = ("SDPA", "FlexAttention", "FlashInfer", "FlashAttention 2", "FlashAttention 3")
HEADER = (
    "| case | KV MB | ceiling | shipped | SDPA | FlexAttention | FlashInfer | FlashAttention 2 | FlashAttention 3 "
    "| best peer | its time over ours | of ceiling |"
)
SIZES = (("below 16 MB", 0, 16), ("16 to 64 MB", 16, 64), ("64 to 256 MB", 64, 256), ("256 MB and more", 256, 1e9))


def row(case: CaseResult) -> str:
    best, ratio, share = case.best_peer, case.faster_than_best_peer(SHIPPED), case.ceiling_share(SHIPPED)
    cells = [
        case.case.name,
        f"{megabytes(case):,.1f}",
        microseconds(case.ceiling.time_us),
        f"**{microseconds(case.time_us(SHIPPED))}**",
        *(microseconds(of_family(case, family)) for family in FAMILIES),
        best.name if best else "–",
        f"{ratio:.3f}" if ratio else "–",
        f"{share:.0%}" if share else "–",
    ]
    return f"| {' | '.join(cells)} |"


def megabytes(case: CaseResult) -> float:
    return case.valid_bytes / 1e6


def microseconds(time_us: float | None) -> str:
    return "–" if time_us is None else f"{time_us:,.1f}"


def of_family(case: CaseResult, family: str) -> float | None:
    """The fastest of a family that is right."""
    times = [peer.ranked_us for peer in case.peers if peer.family == family and peer.ranked_us is not None]
    return min(times, default=None)


def write_rows(path: Path, run: KernelRun) -> int:
    """Put today's rows in place of those of the same cases; how many there were."""
    rows = {case.case.name: row(case) for case in run.cases}
    lines = path.read_text().split("\n")
    at = lines.index(HEADER) + 2
    written = 0
    while lines[at].startswith("|"):
        name = lines[at].split(" | ")[0].removeprefix("| ")
        if name in rows:
            lines[at], written = rows[name], written + 1
        at += 1
    path.write_text("\n".join(lines))
    return written


def write_sizes(cases: Sequence[CaseResult]) -> None:
    text = SOME_CASES.read_text()
    for name, least, most in SIZES:
        chosen = [case for case in cases if least <= megabytes(case) < most]
        over = [case.time_us(SHIPPED) / case.ceiling.time_us for case in chosen]
        new = (
            f"| {name} | {len(chosen)} | {geomean(shares(chosen)):.0%} | {geomean(ratios(chosen)):.3f} "
            f"| {min(over):.2f} to {max(over):.2f} |"
        )
        text = replaced(rf"\| {name} \| \d+ \| \d+% \| [\d.]+ \| [\d.]+ to [\d.]+ \|", new, text)
    heads = sorted({heads_of(case) for case in cases})
    for name in heads:
        chosen = [case for case in cases if heads_of(case) == name]
        new = f"| {name} | {len(chosen)} | {geomean(ratios(chosen)):.3f} |"
        text = replaced(rf"\| {name} \| \d+ \| [\d.]+ \|(?=\n)", new, text)
    SOME_CASES.write_text(text)


def replaced(pattern: str, new: str, text: str) -> str:
    text, count = re.subn(pattern, new, text)
    if count != 1:
        raise ValueError(f"{count} lines like {pattern}, not one")
    return text


def heads_of(case: CaseResult) -> str:
    return f"{case.case.query_heads}/{case.case.kv_heads}"


def ratios(cases: Sequence[CaseResult], name: str = SHIPPED) -> list[float]:
    return [ratio for case in cases if (ratio := case.faster_than_best_peer(name)) is not None]


def shares(cases: Sequence[CaseResult]) -> list[float]:
    return [share for case in cases if (share := case.ceiling_share(SHIPPED)) is not None]


def show(cases: Sequence[CaseResult]) -> None:
    found = ratios(cases)
    print(f"{len(cases)} cases: fastest in {sum(r >= 1 for r in found)}, within 1% in {sum(r >= 0.99 for r in found)}")
    print(f"{geomean(found):.3f} times the best peer, by the heuristic alone {geomean(ratios(cases, HEURISTIC)):.3f}")
    large = [case for case in cases if megabytes(case) >= 256]
    ideal = [
        case.best_peer.ranked_us / case.ceiling.time_us if case in large else case.faster_than_best_peer(SHIPPED)
        for case in cases
    ]
    print(f"with ours at the ceiling from 256 MB on: {geomean(ideal):.3f}")
    print("behind:")
    for case in sorted(cases, key=lambda case: case.faster_than_best_peer(SHIPPED)):
        if (ratio := case.faster_than_best_peer(SHIPPED)) < 1:
            print(f"  {ratio:.3f} {case.case.name} {case.of(SHIPPED).config}")
    print("the heuristic's is faster than what ships by more than 1%:")
    for case in cases:
        if (ratio := case.time_us(HEURISTIC) / case.time_us(SHIPPED)) < 0.99:
            print(f"  {ratio:.3f} {case.case.name} {case.of(SHIPPED).config}, {case.of(HEURISTIC).config}")
    plain = [case for case in cases if case.case.fill is not Fill.RAGGED and not case.case.layout.page_size]
    spans: tuple[tuple[str, Callable[[CaseResult], bool]], ...] = (
        ("from 1 GB", lambda case: megabytes(case) >= 1000),
        ("256 MB to 1 GB, plain, not d80", lambda case: 256 <= megabytes(case) < 1000 and case.case.head_dim != 80),
    )
    for name, chosen in spans:
        of = shares([case for case in (cases if "plain" not in name else plain) if chosen(case)])
        print(f"of the ceiling {name}: {geomean(of):.3f}, {min(of):.2f} to {max(of):.2f}")
    for name, least, most in SIZES[:2]:
        over = {c.case.name: c.time_us(SHIPPED) / c.ceiling.time_us for c in cases if least <= megabytes(c) < most}
        print(f"times the ceiling {name}: {geomean(list(over.values())):.2f}")
        print("  " + ", ".join(f"{one} {ratio:.2f}" for one, ratio in sorted(over.items(), key=lambda pair: pair[1])))
    slower = {case.case.name: case.time_us(DETERMINISTIC) / case.time_us(SHIPPED) for case in cases}
    print(f"deterministic over shipped: {geomean(list(slower.values())):.2f}, largest {max(slower.values()):.2f}")
    show_ragged(cases)


def show_ragged(cases: Sequence[CaseResult]) -> None:
    """Each ragged batch beside the uniform one of as many bytes, or nearly, of the same heads and layout."""
    print("ragged over uniform, scaled by bytes:")
    for case in cases:
        if case.case.fill is not Fill.RAGGED:
            continue
        alike = [other for other in cases if other.case.fill is not Fill.RAGGED and kind_of(other) == kind_of(case)]
        if alike:
            near = min(alike, key=lambda other: abs(other.valid_bytes - case.valid_bytes))
            scaled = near.time_us(SHIPPED) * case.valid_bytes / near.valid_bytes
            print(f"  {case.time_us(SHIPPED) / scaled:.2f} {case.case.name}, beside {near.case.name}")


def kind_of(case: CaseResult) -> tuple[object, ...]:
    return heads_of(case), case.case.head_dim, case.case.layout, case.case.batch > 1


def main(paths: Sequence[str]) -> None:
    run = read_parts([Path(path) for path in paths])
    for missing in run.not_run:
        print(f"not run: {missing.case.name}: {missing.reason}")
    for path in (ALL_CASES, SOME_CASES):
        print(write_rows(path, run), "rows of", path.name)
    write_sizes(run.cases)
    show(run.cases)


if __name__ == "__main__":
    main(sys.argv[1:])
