"""``python -m tests.gpu.sanitize``: our kernels under compute-sanitizer, and what it finds, as a table.

memcheck sees accesses out of bounds, racecheck races in shared memory, initcheck reads of memory that nobody wrote.
Exits with 1 where there are findings, and with 2 where a tool could not run to the end."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from prefetch_compiler.templates.manifest import TEMPLATES

from prefetch_compiler.bench.table import Table, show

ROOT = Path(__file__).parents[2]
TOOLS = ("memcheck", "racecheck", "initcheck")
# What the sanitizer exits with where it found something.
FOUND = 9
WORKER = "tests.gpu.sanitized_launches"
TIMEOUT_S = 600
_SUMMARY = re.compile(
    r"^========= (?:ERROR SUMMARY: (?P<errors>\d+) error|RACECHECK SUMMARY: (?P<hazards>\d+) hazard)", re.MULTILINE
)
_CASE = re.compile(r"^case: (?P<name>.+)$")
_DONE = re.compile(r"^done: (?P<cases>\d+)$", re.MULTILINE)
# What the tools begin an account of a finding with; details follow, indented.
_FINDING = re.compile(
    r"^========= (?P<text>(?:Invalid|Misaligned|Uninitialized|Race reported|Error: |Warning: Race|Potential (?:RAW|WA)"
    r"|Program hit|Out-of-range|Unused|Stack overflow|Hardware stack|Illegal|Warp ).*)$"
)


@dataclass(frozen=True)
class Outcome:
    """Of one tool. ``findings`` are (case, what); ``count`` is the tool's own; ``problem`` says why it did not reach
    the end."""

    tool: str
    cases: int
    count: int
    findings: tuple[tuple[str, str], ...]
    problem: str = ""


def kernel_names() -> tuple[str, ...]:
    """Of every kernel that templates launch."""
    return tuple(dict.fromkeys(entry.rpartition(".")[2] for template in TEMPLATES for entry in template.entries))


def command(sanitizer: str, tool: str, only: str = "") -> list[str]:
    """initcheck instruments all kernels: to it, what an unwatched one writes is not written."""
    filters = [] if tool == "initcheck" else [f"--kernel-regex=kns={name}" for name in kernel_names()]
    return [
        sanitizer, "--tool", tool, "--error-exitcode", str(FOUND), "--target-processes", "application-only", *filters,
        sys.executable, "-m", WORKER, *([only] if only else []),
    ]  # fmt: skip


def environment(tool: str) -> dict[str, str]:
    """Without PyTorch's pool each tensor is an allocation of its own: whatever lies beyond it is nobody's."""
    changed = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    if tool != "racecheck":
        changed["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
    return changed


def outcome_of(tool: str, code: int, output: str) -> Outcome:
    """What a run's exit code and output say."""
    findings: list[tuple[str, str]] = []
    case = "before the first case"
    for line in output.splitlines():
        if begun := _CASE.match(line):
            case = begun["name"]
        elif found := _FINDING.match(line):
            findings.append((case, found["text"]))
    done, summary = _DONE.search(output), _SUMMARY.search(output)
    count = int(summary["errors"] or summary["hazards"]) if summary else len(findings)
    problem = ""
    if code not in (0, FOUND):
        problem = f"exit code {code}: {output.strip()[-300:]}"
    elif done is None or summary is None:
        problem = f"it did not reach the end: {output.strip()[-300:]}"
    elif int(done["cases"]) == 0:
        problem = "no case could run here"
    elif code == FOUND and count == 0:
        problem = f"it exits with {FOUND} and names no finding: {output.strip()[-300:]}"
    return Outcome(tool, int(done["cases"]) if done else 0, max(count, len(findings)), tuple(findings), problem)


def find_sanitizer() -> str | None:
    """COMPUTE_SANITIZER, or where it is installed."""
    given = os.environ.get("COMPUTE_SANITIZER")
    usual = [shutil.which("compute-sanitizer"), "/usr/local/cuda/bin/compute-sanitizer"]
    candidates = [given] if given else usual
    return next((path for path in candidates if path and Path(path).is_file()), None)


def run_tool(sanitizer: str, tool: str, only: str, seconds: float = TIMEOUT_S) -> Outcome:
    """What was found until then counts where ``seconds`` are not enough."""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command(sanitizer, tool, only), cwd=ROOT, env=environment(tool), text=True, stdout=log,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            code: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            code = None
        log.seek(0)
        output = log.read()
    if code is not None:
        return outcome_of(tool, code, output)
    begun = [found["name"] for line in output.splitlines() if (found := _CASE.match(line))]
    partly = outcome_of(tool, 0, output)
    return replace(partly, cases=len(begun), problem=f"no end after {seconds:g} s: {begun[-1] if begun else 'no case'}")


def table_of(outcomes: Sequence[Outcome]) -> Table:
    rows = [(one.tool, str(one.cases), str(one.count), one.problem or _first(one)) for one in outcomes]
    return Table("compute-sanitizer over our kernels", ("tool", "cases", "findings", "the first"), rows)


def _first(outcome: Outcome) -> str:
    return "-" if not outcome.findings else ": ".join(outcome.findings[0])


def exit_code(outcomes: Sequence[Outcome]) -> int:
    if any(one.problem for one in outcomes):
        return 2
    return 1 if any(one.count for one in outcomes) else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.sanitize", description=__doc__)
    parser.add_argument("--tools", default=",".join(TOOLS), help="comma-separated")
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--seconds", type=float, default=TIMEOUT_S, help="of each tool")
    given = parser.parse_args()
    sanitizer = find_sanitizer()
    if sanitizer is None:
        print(
            "error: there is no compute-sanitizer; install the CUDA toolkit or set COMPUTE_SANITIZER", file=sys.stderr
        )
        return 2
    # Without the sanitizer first, so that what is watched finds its kernels compiled.
    plain = subprocess.run(
        [sys.executable, "-m", WORKER, *([given.only] if given.only else [])], cwd=ROOT, env=environment("memcheck"),
        text=True, capture_output=True, check=False,
    )  # fmt: skip
    if plain.returncode != 0:
        print(f"error: the launches fail without a sanitizer: {plain.stderr.strip()[-500:]}", file=sys.stderr)
        return 2
    outcomes = []
    for tool in given.tools.split(","):
        print(f"{tool} ...", file=sys.stderr, flush=True)
        outcomes.append(run_tool(sanitizer, tool, given.only, given.seconds))
    show(table_of(outcomes))
    for one in outcomes:
        for case, text in one.findings:
            print(f"{one.tool}: {case}: {text}")
    return exit_code(outcomes)


if __name__ == "__main__":
    sys.exit(main())
