"""``python -m tests.gpu.sanitize``: our kernels under compute-sanitizer, and what it finds, as a table.

memcheck sees accesses out of bounds, racecheck races in shared memory, initcheck reads of memory that nobody wrote.
Exits with 1 where there are findings, and with 2 where a tool could not run to the end."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from prefetch_compiler.templates.manifest import TEMPLATES

from prefetch_compiler.bench.table import Table, show

ROOT = Path(__file__).parents[2]
TOOLS = ("memcheck", "racecheck", "initcheck")
# What the sanitizer exits with where it found something.
FOUND = 9
WORKER = "tests.gpu.sanitized_launches"
TIMEOUT_S = 600
NOTHING_RAN = "no case could run here"
_SUMMARY = re.compile(
    r"^========= (?:ERROR SUMMARY: (?P<errors>\d+) error|RACECHECK SUMMARY: (?P<hazards>\d+) hazard)", re.MULTILINE
)
_CASE = re.compile(r"^case: (?P<name>.+)$")
_DONE = re.compile(r"^done: (?P<cases>\d+)$", re.MULTILINE)
_UNWATCHED = re.compile(
    r"^========= Error: (?:No attachable process|Target application terminated before).*$", re.MULTILINE
)
# What the tools begin an account of a finding with; details follow, indented.
_FINDING = re.compile(
    r"^========= (?P<text>(?:Invalid|Misaligned|Uninitialized|Race reported|Error: Race|Warning: Race"
    r"|Potential (?:RAW|WA)|Program hit|Out-of-range|Unused|Stack overflow|Hardware stack|Illegal|Warp ).*)$"
)
# Where that happened: the place of an access, and the places of those that race with it.
_PLACE = re.compile(r"^=========     (?P<place>(?:at|and) .*(?:\+0x| at ).*)$")
# Beyond these of a process, findings are counted but not told.
PRINT_LIMIT = 1000
# Of a program, at most: of stages, twice or three times.
BARRIERS = 64


@dataclass(frozen=True)
class Outcome:
    """Of one tool. ``findings`` are (case, what and where), each once; ``count`` is the tool's own; ``problem`` says
    why it did not reach the end."""

    tool: str
    cases: int
    count: int
    findings: tuple[tuple[str, str], ...]
    problem: str = ""


def kernel_names() -> tuple[str, ...]:
    """Of every kernel that templates launch."""
    return tuple(dict.fromkeys(entry.rpartition(".")[2] for template in TEMPLATES for entry in template.entries))


@dataclass(frozen=True)
class Part:
    """Of the cases whose name has ``only`` in it, every ``shares``-th from ``share`` on."""

    only: str = ""
    share: int = 0
    shares: int = 1

    def command(self) -> list[str]:
        return [sys.executable, "-m", WORKER, self.only, str(self.share), str(self.shares)]


def parts_of(only: str, jobs: int) -> list[Part]:
    return [Part(only, share, jobs) for share in range(jobs)]


def command(sanitizer: str, tool: str, part: Part) -> list[str]:
    """initcheck instruments all kernels: to it, what an unwatched one writes is not written. By default a tool gives up
    a process that does not use its GPU soon, and what that does later goes unwatched: importing torch takes long where
    many do it at once. Nor does it find the barriers of kernels that nvcc did not build
    (https://docs.nvidia.com/compute-sanitizer/api/group__SANITIZER__BARRIER__API.html)."""
    filters = [] if tool == "initcheck" else [f"--kernel-name=kns={name}" for name in kernel_names()]
    barriers = ["--num-cuda-barriers", str(BARRIERS)] if tool == "racecheck" else []
    return [
        sanitizer, "--tool", tool, "--error-exitcode", str(FOUND), "--target-processes", "application-only",
        "--launch-timeout", "0", "--show-backtrace", "no", "--print-limit", str(PRINT_LIMIT), *barriers, *filters,
        *part.command(),
    ]  # fmt: skip


def environment(tool: str, share: int = 0) -> dict[str, str]:
    """Without PyTorch's pool each tensor is an allocation of its own: whatever lies beyond it is nobody's. Shares are
    dealt to the GPUs in turn."""
    changed = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    gpus = os.environ["CUDA_VISIBLE_DEVICES"].split(",") if "CUDA_VISIBLE_DEVICES" in os.environ else None
    if gpus is None:
        gpus = [str(index) for index in range(torch.cuda.device_count())]
    if gpus:
        changed["CUDA_VISIBLE_DEVICES"] = gpus[share % len(gpus)]
    if tool != "racecheck":
        changed["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
    return changed


def outcome_of(tool: str, code: int, output: str) -> Outcome:
    """What a run's exit code and output say."""
    findings: list[tuple[str, str]] = []
    case = "before the first case"
    told = False
    for line in output.splitlines():
        if begun := _CASE.match(line):
            case = begun["name"]
        elif found := _FINDING.match(line):
            findings.append((case, found["text"]))
            told = True
        elif told and (found := _PLACE.match(line)):
            findings[-1] = (case, f"{findings[-1][1]} {found['place']}")
        else:
            told = False
    done, summary = _DONE.search(output), _SUMMARY.search(output)
    unwatched = _UNWATCHED.search(output)
    count = int(summary["errors"] or summary["hazards"]) if summary else len(findings)
    problem = ""
    if code not in (0, FOUND):
        problem = f"exit code {code}: {output.strip()[-300:]}"
    elif unwatched:
        problem = f"nothing was watched: {unwatched[0]}"
    elif done is None or summary is None:
        problem = f"it did not reach the end: {output.strip()[-300:]}"
    elif int(done["cases"]) == 0:
        problem = NOTHING_RAN
    elif code == FOUND and count == 0:
        problem = f"it exits with {FOUND} and names no finding: {output.strip()[-300:]}"
    once = tuple(dict.fromkeys(findings))
    return Outcome(tool, int(done["cases"]) if done else 0, max(count, len(findings)), once, problem)


def find_sanitizer() -> str | None:
    """COMPUTE_SANITIZER, or where it is installed."""
    given = os.environ.get("COMPUTE_SANITIZER")
    usual = [shutil.which("compute-sanitizer"), "/usr/local/cuda/bin/compute-sanitizer"]
    candidates = [given] if given else usual
    return next((path for path in candidates if path and Path(path).is_file()), None)


def together(outcomes: Sequence[Outcome]) -> Outcome:
    """Of one tool, the parts as one. A part in which nothing could run is a problem only if all are such."""
    problems = [one.problem for one in outcomes if one.problem and one.problem != NOTHING_RAN]
    cases = sum(one.cases for one in outcomes)
    if cases == 0 and not problems:
        problems = [NOTHING_RAN]
    findings = tuple(finding for one in outcomes for finding in one.findings)
    return Outcome(outcomes[0].tool, cases, sum(one.count for one in outcomes), findings, "; ".join(problems))


def run_tool(
    sanitizer: str, tool: str, parts: Sequence[Part], seconds: float = TIMEOUT_S, logs: Path | None = None
) -> Outcome:
    """All parts at once. ``logs`` is a folder for what the tool prints, a file for each part."""
    with ThreadPoolExecutor(len(parts)) as pool:
        return together(list(pool.map(lambda part: run_part(sanitizer, tool, part, seconds, logs), parts)))


def run_part(sanitizer: str, tool: str, part: Part, seconds: float, logs: Path | None = None) -> Outcome:
    """What was found until then counts where ``seconds`` are not enough."""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command(sanitizer, tool, part), cwd=ROOT, env=environment(tool, part.share), text=True, stdout=log,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            code: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            # The tool and what it watches: that would go on without it.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            code = None
        log.seek(0)
        output = log.read()
    if logs is not None:
        (logs / f"{tool}-{part.share}.log").write_text(output)
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


def compile_kernels(parts: Sequence[Part]) -> str:
    """Launches everything without a sanitizer, so that what is watched finds its kernels compiled. Returns what went
    wrong, if anything did."""

    def plain(part: Part) -> str:
        run = subprocess.run(
            part.command(), cwd=ROOT, env=environment("memcheck", part.share), text=True, capture_output=True,
            check=False,
        )  # fmt: skip
        return run.stderr.strip()[-500:] or f"exit code {run.returncode}" if run.returncode else ""

    with ThreadPoolExecutor(len(parts)) as pool:
        return "; ".join(filter(None, pool.map(plain, parts)))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.sanitize", description=__doc__)
    parser.add_argument("--tools", default=",".join(TOOLS), help="comma-separated")
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--seconds", type=float, default=TIMEOUT_S, help="of each tool")
    parser.add_argument("--jobs", type=int, default=1, help="processes, each with its share of the cases")
    parser.add_argument("--logs", type=Path, help="a folder for all that the tools print")
    given = parser.parse_args()
    sanitizer = find_sanitizer()
    if sanitizer is None:
        print(
            "error: there is no compute-sanitizer; install the CUDA toolkit or set COMPUTE_SANITIZER", file=sys.stderr
        )
        return 2
    if given.logs is not None:
        given.logs.mkdir(parents=True, exist_ok=True)
    parts = parts_of(given.only, max(1, given.jobs))
    failure = compile_kernels(parts)
    if failure:
        print(f"error: the launches fail without a sanitizer: {failure}", file=sys.stderr)
        return 2
    outcomes = []
    for tool in given.tools.split(","):
        print(f"{tool} ...", file=sys.stderr, flush=True)
        outcomes.append(run_tool(sanitizer, tool, parts, given.seconds, given.logs))
        # At once: what tools found after minutes should not depend on what comes after.
        print(json.dumps(asdict(outcomes[-1])), file=sys.stderr, flush=True)
    show(table_of(outcomes))
    for one in outcomes:
        for case, text in one.findings:
            print(f"{one.tool}: {case}: {text}")
    return exit_code(outcomes)


if __name__ == "__main__":
    sys.exit(main())
