"""What ``ncu`` runs: each case's variants of the paper's kernel, warmed up, then once each between profiler marks.

``python -m prefetch_compiler.bench.paper.profiled --seed 0 Llama3-8B:64x527@4 ...``: cases, each with its warps.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch

from .case import PaperCase
from .contestants import paper_style
from .inputs import make_inputs
from .ncu import PROFILED_COLUMNS, Job


def parse_job(text: str) -> Job:
    """``"Llama3-8B:64x527@4"``: a case, and the warps of the kernel."""
    case, _, warps = text.partition("@")
    return PaperCase.parse(case), int(warps)


def run(jobs: Sequence[Job], seed: int, device: torch.device) -> int:
    """Launch everything; the number of launches between marks."""
    marked = 0
    for case, warps in jobs:
        inputs = make_inputs(case, 1, device, seed)
        inputs.write_queries(0)
        contestants = [paper_style(inputs, column, warps) for column in PROFILED_COLUMNS]
        for contestant in contestants:
            contestant.launch(0)
        torch.cuda.synchronize(device)
        torch.cuda.profiler.start()
        for contestant in contestants:
            contestant.launch(0)
            marked += 1
        torch.cuda.synchronize(device)
        torch.cuda.profiler.stop()
    return marked


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Launch the paper's kernel for ncu.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("jobs", nargs="+", type=parse_job)
    options = parser.parse_args(arguments)
    run(options.jobs, options.seed, torch.device("cuda"))


if __name__ == "__main__":
    main()
