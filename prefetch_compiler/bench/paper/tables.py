"""A run as tables."""

from __future__ import annotations

from collections.abc import Sequence

from ..table import MISSING, Table
from .case import PaperCase
from .inputs import caches_for, needed_bytes
from .models import MODELS
from .ncu import METRICS
from .result import CaseResult, Counters, PaperRun
from .summary import Gain, Summary, gain_over, summarize
from .variant import OURS, PREFETCHING, Column

PROTOCOL = (
    "Medians in µs, as deployed: CUDA graph, cold L2, interleaved rounds; every kernel verified against float64 first. "
    "p20–p80: the widest of the row's columns, relative to its median."
)

_GAIN_COLUMNS = (
    "best depth", "control", "switched off", *(column.value for column in PREFETCHING), "best over switched off",
)  # fmt: skip


def dry_run_table(cases: Sequence[PaperCase], l2_bytes: int) -> Table:
    """Cases and bytes, on a device whose L2 holds ``l2_bytes``."""
    rows = []
    for case in cases:
        model, caches = case.model, caches_for(case.kv_bytes, l2_bytes)
        heads = f"{model.query_heads}q/{model.kv_heads}kv d{model.head_dim}"
        memory = f"{needed_bytes(case, caches) / 1e9:,.1f}"
        rows.append(
            (model.name, heads, str(case.batch), str(case.context), f"{case.kv_bytes / 1e6:,.1f}", str(caches), memory)
        )
    columns = ("model", "heads", "batch", "context", "KV MB", "caches", "device memory GB")
    return Table(f"{len(cases)} cases; caches for an L2 of {l2_bytes / 1e6:.0f} MB", columns, rows)


def run_tables(run: PaperRun) -> list[Table]:
    """Everything that a run says."""
    summary = summarize(run)
    tables = [times_table(run), gains_table(summary), papers_table(run), configs_table(run)]
    if run.counters is not None:
        tables.append(counters_table(run.counters))
    return [*tables, summary_table(summary)]


def in_order(cases: Sequence[CaseResult]) -> list[CaseResult]:
    """By model, batch and context, for people to read; runs take them in another order."""

    def place(case: CaseResult) -> tuple[int, int, int]:
        parsed = case.paper_case
        return MODELS.index(parsed.model), parsed.batch, parsed.context

    return sorted(cases, key=place)


def times_table(run: PaperRun) -> Table:
    """One row a case, one column a kernel."""
    columns = ("model", "batch × context", *(column.value for column in Column), "p20–p80")
    rows = [_times_row(case) for case in in_order(run.cases)]
    title = f"Decode attention, fp16: {run.environment.get('device')}, torch {run.environment.get('torch')}"
    failures = [
        f"{case.case}: {result.column.value} failed: {result.failure}"
        for case in run.cases
        for result in case.columns
        if result.failure is not None
    ]
    left_out = [f"{left.case}: not measured: {left.reason}" for left in run.left_out]
    return Table(title, columns, rows, [PROTOCOL, *failures, *left_out])


def _times_row(case: CaseResult) -> tuple[str, ...]:
    parsed = case.paper_case
    times = (_us(case.us(column)) for column in Column)
    return parsed.model.name, f"{parsed.batch} × {parsed.context}", *times, _widest_spread(case)


def _widest_spread(case: CaseResult) -> str:
    spreads = [
        (result.samples.quantile_us(0.8) - result.samples.quantile_us(0.2)) / result.samples.median_us
        for result in case.columns
        if result.samples_us
    ]
    return f"{max(spreads):.1%}" if spreads else MISSING


def gains_table(summary: Summary) -> Table:
    """What prefetching and its control gain, by model and batch."""
    columns = ("model", "batch", "contexts", *_GAIN_COLUMNS)
    rows = [(gain.model, str(gain.batch), str(gain.contexts), *_gain_cells(gain)) for gain in summary.gains]
    title = "The paper's kernel: time without prefetch over time with (geomean over contexts)"
    notes = (
        "Control: the same instruction, on the tile just asked for. Switched off: the same binary, no prefetch issued. "
        "What these gain is owed to the code around the statement; the last column is what the prefetches add.",
    )
    return Table(title, columns, rows, notes)


def papers_table(run: PaperRun) -> Table:
    """The paper's setting beside its figures."""
    columns = ("model", "paper's gain, H20", *_GAIN_COLUMNS)
    rows = []
    for case in run.cases:
        parsed = case.paper_case
        if parsed.is_the_papers:
            gain = gain_over([case], parsed.model.name, parsed.batch)
            rows.append((parsed.model.name, f"{parsed.model.gain:.2f}", *_gain_cells(gain)))
    return Table("The paper's setting, batch 64 and context 527: gains of kernel time", columns, rows)


def _gain_cells(gain: Gain) -> tuple[str, ...]:
    depths = (gain.depths[column.value] for column in PREFETCHING)
    return tuple(_ratio(value) for value in (gain.best, gain.control, gain.off, *depths, gain.over_off))


def configs_table(run: PaperRun) -> Table:
    """Which configurations ran, and where each came from."""
    rows = []
    for case in in_order(run.cases):
        found = [result for column in OURS if (result := case.find(column)) is not None]
        for detail in dict.fromkeys(result.detail for result in found):
            names = [result.column.value for result in found if result.detail == detail]
            config, _, source = detail.partition(", ")
            rows.append((case.case, str(case.warps), "ours, both" if len(names) > 1 else names[0], config, source))
    columns = ("case", "warps", "column", "configuration", "where it came from")
    notes = ["warps: of the paper's kernel"]
    return Table("Configurations", columns, rows, notes, one_line=True)


def counters_table(counters: Counters) -> Table:
    """Hardware counters, or why there are none."""
    names = tuple(METRICS.values())
    rows = [
        (row.case, row.column.value, *(_value(row.metrics.get(metric)) for metric in METRICS)) for row in counters.rows
    ]
    notes = [] if counters.failure is None else [f"no counters: {counters.failure}"]
    notes.append("An L2 hit rate counts the prefetches' own misses too. A long-scoreboard stall waits for memory.")
    return Table(
        "Hardware counters of the paper's kernel (ncu, caches flushed)", ("case", "variant", *names), rows, notes
    )


def summary_table(summary: Summary) -> Table:
    """The ratios that the run is about."""
    verdict = "met" if summary.goal_met else "not met"
    over = f"geomean over {summary.cases} cases"
    rows = [
        (
            "ours (any depth) over the paper's kernel at its best prefetch depth",
            _times(summary.over_best_prefetch),
            over,
        ),
        ("the same, ours at depth 0", _times(summary.over_best_prefetch_depth0), over),
        ("ours (any depth) over the paper's fastest variant, prefetching or not", _times(summary.over_fastest), over),
        ("ours (any depth) over SDPA cuDNN", _times(summary.cudnn_over_ours), "geomean where cuDNN ran"),
    ]
    notes = [f"Goal: at least {summary.goal:g}× over the paper's kernel at its best prefetch depth: {verdict}."]
    return Table("Summary: how many times faster", ("what", "", "×"), [(a, c, b) for a, b, c in rows], notes)


def _us(value: float | None) -> str:
    return MISSING if value is None else f"{value:.1f}"


def _ratio(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2f}"


def _times(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2f}×"


def _value(value: float | None) -> str:
    return MISSING if value is None else f"{value:.1f}"
