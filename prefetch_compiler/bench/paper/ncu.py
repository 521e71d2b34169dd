"""Hardware counters by Nsight Compute, in another process: ``ncu`` runs :mod:`.profiled`, whose launches it replays.

Its command line and its CSV: NVIDIA, "Nsight Compute CLI". With ``--csv`` each metric of each launch is one line; lines
before the header are the profiled program's own and ncu's log, which begins with ``==``. By default ncu flushes all
caches before each launch, so L2 is cold, as it is in the measurement.
"""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence

from .case import PaperCase
from .errors import NcuOutputError
from .result import CaseResult, CounterRow, Counters
from .variant import Column

# Metric -> what people call it.
METRICS = {
    "lts__t_sector_hit_rate.pct": "L2 hit rate %",
    "smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio": "long-scoreboard stalls per issue",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "DRAM throughput %",
    "gpu__time_duration.sum": "time under ncu, ns",
}
PROFILED_COLUMNS = (Column.NONE, Column.CONTROL, Column.NEXT_1)
KERNEL = "paper_decode"
TIMEOUT_S = 240
# Cases that are profiled: those with the least and the most programs at this context.
PROFILED_CONTEXT = 527
# Columns of the CSV that are read.
_ID, _NAME, _METRIC, _VALUE = "ID", "Kernel Name", "Metric Name", "Metric Value"

Job = tuple[PaperCase, int]


def jobs_of(cases: Sequence[CaseResult]) -> list[Job]:
    """What to profile: cases and their warps, at one context, with the smallest and the largest batch."""
    chosen = [case for case in cases if case.paper_case.context == PROFILED_CONTEXT] or list(cases[:1])
    batches = {case.paper_case.batch for case in chosen}
    ends = (min(batches), max(batches)) if batches else ()
    return [(case.paper_case, case.warps) for case in chosen if case.paper_case.batch in ends]


def command(ncu: str, jobs: Sequence[Job], seed: int) -> list[str]:
    """Only what :mod:`.profiled` marks is profiled; clocks are left as they are."""
    return [
        ncu, "--csv", "--page", "details", "--target-processes", "all", "--profile-from-start", "off",
        "--clock-control", "none", "--print-units", "base", "--kernel-name", KERNEL, "--metrics", ",".join(METRICS),
        sys.executable, "-m", f"{__package__}.profiled", "--seed", str(seed),
        *(f"{case}@{warps}" for case, warps in jobs),
    ]  # fmt: skip


def collect(jobs: Sequence[Job], seed: int) -> Counters:
    """Counters of every job's variants. Never raises for what ncu does: the reason is kept."""
    ncu = shutil.which("ncu")
    if ncu is None:
        return Counters(failure="ncu (Nsight Compute) is not on PATH")
    if not jobs:
        return Counters(failure="no case was measured")
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    try:
        done = subprocess.run(
            command(ncu, jobs, seed), capture_output=True, text=True, timeout=TIMEOUT_S, check=False, env=environment
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Counters(failure=f"{type(error).__name__}: {str(error).splitlines()[0][:300]}")
    refusal = why_refused(done.returncode, done.stdout + done.stderr)
    if refusal is not None:
        return Counters(failure=refusal)
    try:
        return Counters(rows=counter_rows(done.stdout, jobs))
    except NcuOutputError as error:
        return Counters(failure=str(error))


def why_refused(exit_code: int, output: str) -> str | None:
    """ncu's own reason for having measured nothing, such as ``ERR_NVGPUCTRPERM`` without permission; None if it did."""
    errors = [line.strip() for line in output.splitlines() if line.startswith("==ERROR==")]
    if errors:
        return errors[0].removeprefix("==ERROR==").strip()
    if exit_code != 0:
        last = output.strip().splitlines()[-1:] or ["no output"]
        return f"ncu ended with exit code {exit_code}: {last[0]}"[:300]
    return None


def parse_csv(text: str) -> list[dict[str, float]]:
    """The metrics of each profiled launch of the kernel, in the order of the launches.

    Raises:
        NcuOutputError: there is no table, or a value is no number.
    """
    lines = text.splitlines()
    header = next((number for number, line in enumerate(lines) if _METRIC in line and _VALUE in line), None)
    if header is None:
        raise NcuOutputError("no line with the column names")
    launches: dict[int, dict[str, float]] = {}
    for row in csv.DictReader(line for line in lines[header:] if not line.startswith("==")):
        if KERNEL not in (row.get(_NAME) or "") or row.get(_METRIC) not in METRICS:
            continue
        try:
            launch, value = int(row[_ID]), float(row[_VALUE].replace(",", ""))
        except (KeyError, ValueError, AttributeError) as error:
            raise NcuOutputError(f"{row.get(_METRIC)} of launch {row.get(_ID)} is {row.get(_VALUE)!r}") from error
        launches.setdefault(launch, {})[str(row[_METRIC])] = value
    return [launches[launch] for launch in sorted(launches)]


def counter_rows(text: str, jobs: Sequence[Job]) -> list[CounterRow]:
    """ncu's table with a name for each launch: the driver launches every job's variants in order, once each.

    Raises:
        NcuOutputError: there are not as many launches.
    """
    launches = parse_csv(text)
    names = [(case, column) for case, _ in jobs for column in PROFILED_COLUMNS]
    if len(launches) != len(names):
        raise NcuOutputError(f"{len(launches)} launches and not {len(names)}")
    return [CounterRow(str(case), column, metrics) for (case, column), metrics in zip(names, launches, strict=True)]
