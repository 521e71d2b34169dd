"""The read ceiling over a range of byte counts: measuring it, its data, and its way to JSON and back."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import torch

from ..errors import InvalidOptionError
from .ceiling import LaunchShape, ReadCeiling, measure_ceiling
from .environment import describe_environment
from .errors import InvalidResultError
from .samples import Samples

COMMAND = "bench ceiling"
FORMAT = 1
_UNITS = {"KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30}
LEAST_BYTES = 1 << 17


@dataclass(frozen=True)
class CeilingPoint:
    """The fastest of several launch shapes that read ``region_bytes`` a launch: ``asked_bytes`` rounded up to whole
    blocks, or what fits."""

    asked_bytes: int
    region_bytes: int
    regions: int
    shape: LaunchShape
    samples: Samples

    @property
    def time_us(self) -> float:
        return self.samples.median_us

    @property
    def tb_per_s(self) -> float:
        return self.region_bytes / self.time_us * 1e-6


@dataclass
class CeilingRun:
    """Points from few bytes to many."""

    environment: dict[str, str | None]
    points: list[CeilingPoint] = field(default_factory=list)
    format: int = FORMAT

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, raw samples and their quantiles included."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        for point, written in zip(self.points, plain["points"], strict=True):
            written["tb_per_s"] = point.tb_per_s
            written["samples"] = point.samples.to_dict()
        return plain

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(self.to_dict(), indent=1) + "\n")


def read_ceilings(path: Path) -> CeilingRun:
    """What :meth:`CeilingRun.write` wrote.

    Raises:
        InvalidResultError: it cannot be read, or holds something else.
    """
    try:
        run = msgspec.json.decode(path.read_bytes(), type=CeilingRun)
    except (OSError, msgspec.MsgspecError) as error:
        raise InvalidResultError(path, COMMAND, str(error)) from error
    if run.format != FORMAT:
        raise InvalidResultError(path, COMMAND, f"format {run.format} is not {FORMAT}")
    return run


def parse_bytes(option: str, text: str) -> int:
    """``"1MB"`` or ``"4GB"``, in powers of 1024.

    Raises:
        InvalidOptionError: ``text`` is no such size, or smaller than the smallest block.
    """
    number, unit = text.strip()[:-2], text.strip()[-2:].upper()
    if not number.isdigit() or unit not in _UNITS or int(number) * _UNITS[unit] < LEAST_BYTES:
        raise InvalidOptionError(option, text, "a whole number of KB, MB or GB, 128KB at least")
    return int(number) * _UNITS[unit]


def byte_counts(least: int, most: int) -> Iterator[int]:
    """``least``, doubled until ``most``, which is among them if it is ``least`` times a power of two.

    Raises:
        InvalidOptionError: ``most`` is below ``least``.
    """
    if most < least:
        raise InvalidOptionError("most", most, f"no less than {least}")
    count = least
    while count <= most:
        yield count
        count *= 2


def measure_ceilings(counts: Iterator[int], device: torch.device, say: Callable[[str], None]) -> CeilingRun:
    """Measure each in turn; one that does not fit is measured over as many bytes as do, and is the last."""
    run = CeilingRun(describe_environment(device))
    for count in counts:
        torch.cuda.empty_cache()
        point = point_of(measure_ceiling(count, device), count)
        run.points.append(point)
        say(f"{count / 1e6:,.1f} MB: {point.time_us:.2f} µs, {point.tb_per_s:.2f} TB/s")
        if point.region_bytes < count:
            break
    return run


def point_of(ceiling: ReadCeiling, asked_bytes: int) -> CeilingPoint:
    return CeilingPoint(asked_bytes, ceiling.region_bytes, ceiling.regions, ceiling.shape, ceiling.samples)
