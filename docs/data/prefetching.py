"""The figures of docs/prefetching.md: `python docs/data/prefetching.py tables` prints them, from the data beside this
file and the shipped tuning database; `compact paper.json` first makes that data of what `bench paper --out` wrote."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from prefetch_compiler.bench.paper.result import CaseResult, PaperRun, read_run
from prefetch_compiler.bench.paper.summary import fastest_paper_style, gain_over, geomean, summarize
from prefetch_compiler.bench.paper.variant import OURS, Column

DATA = Path(__file__).with_name("paper-h200.json")
DATABASE = Path(__file__).parents[2] / "tuning_db" / "nvidia_h200-132sm.json"
SM_COUNT = 132


def compact(path: Path) -> None:
    """Medians in place of samples; of ours, which configuration ran. `bench paper --from` reads the result."""
    plain = read_run(path).to_dict()
    settings = {name: value for name, value in plain["settings"].items() if name != "cases"}
    # Where the program lay on that machine is of no use to others.
    command = "kvprefetch bench " + plain["environment"]["command"].split(" bench ", 1)[1]
    environment = {**plain["environment"], "command": command.replace("/root/out/", "")}
    cases = [_compact_case(case) for case in plain["cases"]]
    written = {"settings": settings, "environment": environment, "cases": cases}
    DATA.write_text(json.dumps(written, separators=(",", ":")).replace('{"case"', '\n{"case"') + "\n")


def _compact_case(case: dict[str, Any]) -> dict[str, Any]:
    columns = []
    for column in case["columns"]:
        detail = column["detail"].split(",")[0] if column["column"].startswith("ours") else ""
        entry = {"column": column["column"], "samples_us": [round(column["median_us"], 3)]}
        columns.append({**entry, "detail": detail} if detail else entry)
    return {**{name: case[name] for name in ("case", "kv_bytes", "caches", "warps")}, "columns": columns}


def tables(run: PaperRun) -> None:
    environment = run.environment
    print(
        ", ".join(f"{name} {environment[name]}" for name in ("device", "driver", "cuda", "torch", "triton", "python"))
    )
    print(environment["command"], len(run.cases), "cases")
    for make in (papers_setting, gains, ratios, depths, database, losses):
        print()
        make(run)


def row(*cells: object) -> None:
    print("|", " | ".join(f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in cells), "|")


def head(*cells: str) -> None:
    row(*cells)
    row(*("---" for _ in cells))


def papers_setting(run: PaperRun) -> None:
    head("model", "paper, H20", "best depth", "control", "switched off", "best depth over switched off")
    for case in run.cases:
        if case.paper_case.is_the_papers:
            gain = gain_over([case], case.paper_case.model.name, case.paper_case.batch)
            row(gain.model, case.paper_case.model.gain, gain.best, gain.control, gain.off, gain.over_off)


def gains(run: PaperRun) -> None:
    head("model", "batch", "best depth", "control", "switched off", "best depth over switched off")
    for gain in summarize(run).gains:
        row(gain.model, gain.batch, gain.best, gain.control, gain.off, gain.over_off)


def ratios(run: PaperRun) -> None:
    """Geometric means of others' times over ours, and their ranges."""
    best: Callable[[CaseResult], Column | None] = CaseResult.best_prefetch
    head("batch", "over the best prefetch depth", "range", "ours at depth 0", "over the fastest variant", "over cuDNN")
    for batch in (1, 16, 64, 0):
        cases = [case for case in run.cases if batch in (0, case.paper_case.batch)]
        over = [case.ratio(best(case), Column.OURS_FREE) or math.nan for case in cases]
        row(
            batch or f"all, {len(cases)} cases",
            geomean(over),
            f"{min(over):.2f} to {max(over):.2f}",
            geomean(case.ratio(best(case), Column.OURS_DEPTH0) for case in cases),
            geomean(case.ratio(fastest_paper_style(case), Column.OURS_FREE) for case in cases),
            geomean(case.ratio(Column.CUDNN, Column.OURS_FREE) for case in cases),
        )


def depths(run: PaperRun) -> None:
    """Where ours, free to prefetch, does so, and what that is worth."""
    gains_by_case = {
        case.case: case.ratio(Column.OURS_DEPTH0, Column.OURS_FREE) or math.nan
        for case in run.cases
        if len({found.detail for column in OURS if (found := case.find(column)) is not None}) > 1
    }
    every = geomean(case.ratio(Column.OURS_DEPTH0, Column.OURS_FREE) for case in run.cases)
    print(f"ours prefetches in {len(gains_by_case)} of {len(run.cases)} cases; depth 0 over any depth {every:.4f}")
    print("of these:", f"{geomean(gains_by_case.values()):.4f},", spread(gains_by_case.values()))
    print("above 1%:", ", ".join(f"{case} {ratio:.3f}" for case, ratio in gains_by_case.items() if ratio > 1.01))
    print("below -1%:", ", ".join(f"{case} {ratio:.3f}" for case, ratio in gains_by_case.items() if ratio < 0.99))


def spread(values: Iterable[float]) -> str:
    listed = list(values)
    return f"{min(listed):.3f} to {max(listed):.3f}" if listed else ""


def database(run: PaperRun) -> None:
    """Records that chose to prefetch, by what they gain over their best without."""
    records = json.loads(DATABASE.read_text())["records"]
    chosen = [record for record in records if prefetches(record["config"])]
    found = sorted(((*_record_gain(record), record) for record in chosen), key=lambda one: -one[0])
    apart = sum(separate for _, separate, _ in found)
    print(f"{len(found)} of {len(records)} records prefetch; {apart} with p20 to p80 apart")
    print(
        f"geomean over those {geomean(gain for gain, _, _ in found):.4f}, range {spread(gain for gain, _, _ in found)}"
    )
    over_all = math.exp(sum(math.log(gain) for gain, _, _ in found) / len(records))
    print(f"geomean over all records {over_all:.5f}; depths", sorted(r["config"]["prefetch_depth"] for r in chosen))
    head("record", "best depth 0, µs", "chosen, µs", "gain", "quantiles apart")
    for gain, separate, record in found:
        key, measured = record["key"], record["evidence"]["measurement"]
        heads = f"{key['group'] * key['kv_heads']}q/{key['kv_heads']}kv d{key['head_dim']}"
        name = f"{key['dtype']} {heads} b{key['batch_bucket']} s{key['capacity_bucket']}"
        times = (measured["best_depth0"]["timing"]["median_us"], measured["timing"]["median_us"])
        row(name, *(f"{time:.2f}" for time in times), f"{gain - 1:+.1%}", "yes" if separate else "no")


def prefetches(config: dict[str, Any]) -> bool:
    return config["prefetch_depth"] > 0 or config["prologue_prefetch"]


def _record_gain(record: dict[str, Any]) -> tuple[float, bool]:
    measured = record["evidence"]["measurement"]
    with_it, without = measured["timing"], measured["best_depth0"]["timing"]
    return without["median_us"] / with_it["median_us"], with_it["p80_us"] < without["p20_us"]


def losses(run: PaperRun) -> None:
    """Where anything else is faster than ours."""
    head("case", "ours, µs", "faster", "its µs", "over ours", "(sequence, KV head) pairs per SM", "ours runs")
    for case in run.cases:
        others = {column: us for column in Column if column not in OURS and (us := case.us(column)) is not None}
        fastest = min(others, key=others.__getitem__)
        ours, own_us = case.find(Column.OURS_FREE), case.us(Column.OURS_FREE)
        if ours is not None and own_us is not None and others[fastest] < own_us:
            per_sm = case.paper_case.batch * case.paper_case.model.kv_heads / SM_COUNT
            times = f"{own_us:.1f}", fastest.value, f"{others[fastest]:.1f}", f"{others[fastest] / own_us:.3f}"
            row(case.case, *times, per_sm, ours.detail)


if __name__ == "__main__":
    if sys.argv[1] == "compact":
        compact(Path(sys.argv[2]))
    tables(read_run(DATA))
