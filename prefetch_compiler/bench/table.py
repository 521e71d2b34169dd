"""Results as tables: rich ones where rich is installed, plain text elsewhere."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace

from .case import Case
from .compile_time import CompileComparison
from .floor import StepBytes
from .result import CaseResult, RunResult, VariantResult
from .samples import Samples

MISSING = "-"
WIDTH_WITHOUT_TERMINAL = 170
_LEAST_LAST_CELL = 12
_WIDEST = 10_000
# Figures, with units of one character, quantiles and shares; or none.
_NUMBERS = re.compile(r"[-+\d.,%×e–() ]*")


@dataclass(frozen=True)
class Table:
    """A title, column names, rows of as many strings, and lines to print below. ``one_line``: a last cell that does not
    fit is cut off, and takes no second line."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    notes: Sequence[str] = ()
    one_line: bool = False


def show(table: Table) -> None:
    """Print to standard output."""
    try:
        import rich.box
        import rich.console
        import rich.measure
        import rich.table
    except ImportError:
        print(plain_text(table))
        return
    width = shutil.get_terminal_size((WIDTH_WITHOUT_TERMINAL, 50)).columns
    if table.one_line:
        table = cut_to(table, width)
    shown = rich.table.Table(title=table.title, box=rich.box.SIMPLE_HEAD, title_justify="left", collapse_padding=True)
    for index, column in enumerate(table.columns):
        cells = [row[index] for row in table.rows]
        number = index > 0 and all(_NUMBERS.fullmatch(cell) for cell in cells)
        # Text gives way before numbers do, and no word of a heading is broken.
        whole = [*column.split(), *(cells if number else ())]
        least = max(len(text) for text in whole) if whole else None
        shown.add_column(column, justify="right" if number else "left", overflow="fold", min_width=least)
    for row in table.rows:
        shown.add_row(*row)
    # What is too wide runs over: Rich would leave nothing of the rows but an ellipsis.
    roomy = rich.console.Console(width=_WIDEST)
    width = max(width, rich.measure.Measurement.get(roomy, roomy.options, shown).minimum)
    console = rich.console.Console(width=width, highlight=False, markup=False)
    console.print(shown)
    for note in table.notes:
        console.print(note, soft_wrap=True)


def cut_to(table: Table, width: int) -> Table:
    """``table`` with its last cells cut off where a line would be longer than ``width``."""
    rows = [table.columns, *table.rows]
    others = sum(max(len(row[index]) for row in rows) + 3 for index in range(len(table.columns) - 1))
    room = max(_LEAST_LAST_CELL, width - others - 4)
    cut = [(*row[:-1], row[-1] if len(row[-1]) <= room else row[-1][: room - 1] + "…") for row in table.rows]
    return replace(table, rows=cut)


def plain_text(table: Table) -> str:
    """Columns padded with spaces."""
    lines = [table.columns, *table.rows]
    widths = [max(len(line[index]) for line in lines) for index in range(len(table.columns))]
    body = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join((table.title, *body, *table.notes))


def bytes_table(counted: Sequence[tuple[Case, StepBytes]]) -> Table:
    """What a dry run shows: bytes only, in megabytes of 10^6."""
    columns = ("case", "all parameters", "weights read", "valid KV", "capacity KV", "floor: all", "floor: must read")
    rows = [
        (
            str(case),
            *(_megabytes(count) for count in (size.parameter_bytes, size.weight_bytes, size.kv_bytes)),
            *(_megabytes(count) for count in (size.capacity_bytes, size.all_bytes, size.must_read_bytes)),
        )
        for case, size in counted
    ]
    return Table("Bytes of one decode step (MB)", columns, rows)


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f}"


def e2e_tables(result: RunResult) -> list[Table]:
    """The whole run: step times, correctness, generation and compile time, as far as they were measured."""
    tables = [times_table(result), checks_table(result)]
    if any(variant.generation for case in result.cases for variant in case.variants):
        tables.append(generation_table(result))
    if result.compile_time is not None:
        tables.append(compile_table(result.compile_time))
    return tables


def times_table(result: RunResult) -> Table:
    """Medians with p20–p80, ratios inside this run."""
    columns = (
        "case",
        "variant",
        "step ms (p20–p80)",
        "faster than Inductor+SDPA",
        "× floor: all parameters",
        "× floor: must read",
        "with host ms (p20–p80)",
        "host ms",
    )
    rows = [row for case in result.cases for row in (*_variant_times(case), *_floor_times(case))]
    environment = result.environment
    title = f"Decode step: {result.settings['model']}, {environment['device']}, torch {environment['torch']}"
    return Table(title, columns, rows, [note for case in result.cases for note in _case_notes(case)])


def _case_notes(case: CaseResult) -> list[str]:
    failures = [f"{result.variant.name} failed: {result.failure}" for result in case.variants if result.failure]
    return [f"{case.case}: {note}" for note in (*failures, *case.notes)]


def _variant_times(case: CaseResult) -> list[tuple[str, ...]]:
    return [_variant_row(case, result) for result in case.variants]


def _variant_row(case: CaseResult, result: VariantResult) -> tuple[str, ...]:
    variant, times = result.variant, result.times
    if result.failure is not None or times is None:
        return (str(case.case), variant.name, "failed, see below", *[MISSING] * 5)
    return (
        str(case.case),
        variant.name,
        _spread(times.burst),
        _ratio(case.speedup(variant)),
        _ratio(case.over_floor(variant, case.all_floor_us)),
        _ratio(case.over_floor(variant, case.must_read_floor_us)),
        _spread(times.synchronous),
        f"{times.dispatch.median_us * 1e-3:.3f}",
    )


def _floor_times(case: CaseResult) -> list[tuple[str, ...]]:
    if case.ceiling is None:
        return []
    rate = f"{case.ceiling.tb_per_s:.2f} TB/s"
    floors = (("floor: all parameters", case.all_floor_us), ("floor: must read", case.must_read_floor_us))
    return [(str(case.case), f"{name}, {rate}", _milliseconds(floor), *[MISSING] * 5) for name, floor in floors]


def checks_table(result: RunResult) -> Table:
    """Relative errors, sites and graphs."""
    columns = (
        "case",
        "variant",
        "logits vs float64",
        "vs eager",
        "vs Inductor+SDPA",
        "cache write vs eager",
        "length +1",
        "sites lowered",
        "graphs",
        "CUDA graph skips",
        "first call s",
    )
    rows = []
    for case in result.cases:
        rows.append((str(case.case), "eager", _error(case.eager_float64_error), *[MISSING] * 8))
        rows.extend(_check_row(case, variant) for variant in case.variants)
    return Table("Correctness of one step from the same state (relative errors)", columns, rows)


def _check_row(case: CaseResult, result: VariantResult) -> tuple[str, ...]:
    errors, facts = result.errors, result.compiled
    if errors is None or facts is None:
        return (str(case.case), result.variant.name, *[MISSING] * 9)
    sites = MISSING if facts.sites is None else f"{facts.lowered} of {facts.sites}"
    return (
        str(case.case),
        result.variant.name,
        _error(errors.logits_float64),
        _error(errors.logits_eager),
        _error(errors.logits_inductor),
        _error(errors.cache_eager),
        "yes" if errors.lengths_advanced else "NO",
        sites,
        str(facts.graphs),
        str(facts.cudagraph_skips),
        f"{facts.first_call_s:.1f}",
    )


def generation_table(result: RunResult) -> Table:
    """Greedy decoding of a real model."""
    columns = ("case", "variant", "tokens/s", "tokens", "equal to eager's")
    rows = []
    for case in result.cases:
        for variant in case.variants:
            if (done := variant.generation) is not None:
                equal = "yes" if done.equals_eager else "no"
                rows.append((str(case.case), variant.variant.name, f"{done.tokens_per_s:,.0f}", str(done.steps), equal))
    return Table(f"Greedy decoding: {result.settings['model']}", columns, rows)


def compile_table(comparison: CompileComparison) -> Table:
    """Cold compile times in seconds."""
    rows = []
    for timed in (comparison.inductor, comparison.ours):
        samples = ", ".join(f"{seconds:.1f}" for seconds in timed.first_call_s) or str(timed.failure)
        median = MISSING if timed.median_s is None else f"{timed.median_s:.2f}"
        rows.append((str(comparison.case), timed.variant.name, median, samples))
    overhead = MISSING if comparison.overhead is None else f"{comparison.overhead:+.1%}"
    return Table(f"Cold compile: overhead {overhead}", ("case", "variant", "median s", "samples s"), rows)


def _spread(samples: Samples) -> str:
    low, middle, high = (samples.quantile_us(fraction) * 1e-3 for fraction in (0.2, 0.5, 0.8))
    return f"{middle:.3f} ({low:.3f}–{high:.3f})"


def _ratio(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2f}"


def _milliseconds(value_us: float | None) -> str:
    return MISSING if value_us is None else f"{value_us * 1e-3:.3f}"


def _error(value: float | None) -> str:
    return MISSING if value is None else f"{value:.1e}"
