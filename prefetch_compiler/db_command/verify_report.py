"""What verifying a database found, as files to keep: PATH.json for programs, and PATH.txt for people."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from ..bench.environment import describe_environment
from ..database.document import Database
from ..database.errors import describe
from .verify import VERIFY_SEED_OFFSET, Checked, Means
from .view import checked_data

_STEPS = {"compiled": "compiled for its GPU", "ran": "run on inputs that tuning never saw", "timed": "timed"}


def report_data(
    file: Path, database: Database, means: Means, checked: Sequence[Checked], gpu: torch.device | None, stale: int
) -> dict[str, Any]:
    """Plain data. ``complete`` is whether every record was checked."""
    errors = [one.error for one in checked if one.error is not None]
    return {
        "file": file.name,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "device": asdict(database.device),
        "described": describe(database.device),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "environment": describe_environment(gpu or torch.device("cpu")),
        "steps": steps_of(means),
        "seed_offset": VERIFY_SEED_OFFSET,
        "records": len(database.records),
        "complete": len(checked) == len(database.records),
        "checked_records": len(checked),
        "failed": sum(one.problem is not None for one in checked),
        "stale": stale,
        "largest_error_of_bound": max(errors, default=None),
        "checked": checked_data(checked),
    }


def steps_of(means: Means) -> dict[str, bool]:
    return {
        "compiled": means.compiler is not None,
        "ran": means.measurer is not None,
        "timed": means.measurer is not None and means.tolerance is not None,
    }


def report_text(data: dict[str, Any]) -> str:
    """What failed comes first; then every record with its error, as a share of what it may be."""
    environment, steps = data["environment"], ["the file", "admissible"]
    steps += [words for name, words in _STEPS.items() if data["steps"][name]]
    failed = [one for one in data["checked"] if one["problem"] is not None]
    lines = [
        f"{data['file']} (sha256 {data['sha256']}), records of {data['described']}",
        f"{data['date']}, on {environment['device']}, driver {environment['driver']}, torch {environment['torch']}, "
        f"Triton {environment['triton']}",
        f"{data['checked_records']} of {data['records']} records checked ({', '.join(steps)}): "
        f"{data['failed']} failed, {data['stale']} stale",
    ]
    if data["largest_error_of_bound"] is not None:
        lines.append(f"largest error: {data['largest_error_of_bound']:.3f} of its bound")
    lines += ["", "failed:" if failed else "failed: none"]
    lines += [f"  {one['key']}, {one['config']}: {one['problem']}" for one in failed]
    lines += ["", "error of its bound, key, configuration:"]
    lines += [f"  {_share(one['error'])}  {one['key']}, {one['config']}" for one in data["checked"]]
    return "\n".join(lines) + "\n"


def write_report(stem: Path, data: dict[str, Any]) -> None:
    """Both files, each whole at any time: a run that is ended leaves what it had found.

    Raises:
        OSError: they cannot be written.
    """
    texts = {".json": json.dumps(data, indent=1) + "\n", ".txt": report_text(data)}
    for suffix, text in texts.items():
        path = stem.with_name(stem.name + suffix)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)


def _share(error: float | None) -> str:
    return "  -  " if error is None else f"{error:.3f}"
