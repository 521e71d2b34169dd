"""The read ceiling of a case, measured among everyone who is held against it.

Many launch shapes take part in a few rounds, and the fastest of them in the rounds of everyone else. Whoever is then
faster by more than noise shows that the ceiling is none, and it is measured again with more shapes, all of them and the
fastest contestant in the same rounds.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from ...device import DeviceProfile
from ..samples import Samples
from .errors import NoReaderError
from .operands import Operands
from .readers import FIRST_SHAPES, MORE_SHAPES, ReaderShape, readers
from .result import CaseCeiling, ShapeTime
from .stopwatch import Recording, Stopwatch

QUALIFYING_ROUNDS = 3
FINALISTS = 4

Reading = tuple[ReaderShape, Recording]


class CeilingTrial:
    """The read ceiling of one case.

    Args:
        valid_bytes: what the case must read; a reader reads as many.
    """

    def __init__(self, stopwatch: Stopwatch, operands: Operands, valid_bytes: int, profile: DeviceProfile) -> None:
        self._stopwatch, self._operands = stopwatch, operands
        self._valid_bytes, self._profile = valid_bytes, profile
        self._tried: dict[ReaderShape, float] = {}

    def finalists(self) -> list[Reading]:
        """The fastest shapes of a few rounds.

        Raises:
            NoReaderError: none could be captured.
        """
        readings = self._readings(FIRST_SHAPES)
        if not readings:
            raise NoReaderError(self._operands.case.name)
        self._time(readings, QUALIFYING_ROUNDS)
        return sorted(readings, key=lambda reading: self._tried[reading[0]])[:FINALISTS]

    def best(self, finalists: Sequence[Reading], taken: Sequence[Sequence[float]]) -> CaseCeiling:
        """``taken`` are the finalists' microseconds in everyone's rounds."""
        return self._ceiling([shape for shape, _ in finalists], taken)

    def again(self, rival: Recording, rounds: int, first: CaseCeiling, beaten_by: str) -> CaseCeiling:
        """With every shape, beside ``rival``, who was faster than ``first``. The lower of the two ceilings counts."""
        readings = self._readings((*FIRST_SHAPES, *MORE_SHAPES))
        taken = self._stopwatch.rounds([rival, *(recording for _, recording in readings)], rounds)
        found = self._ceiling([shape for shape, _ in readings], taken[1:])
        lower = min((first, found), key=lambda ceiling: ceiling.time_us)
        lower.first_us, lower.first_beaten_by = first.time_us, beaten_by
        lower.rival, lower.shapes = Samples(list(taken[0])), found.shapes
        return lower

    def _readings(self, shapes: tuple[ReaderShape, ...]) -> list[Reading]:
        """Those that compile and run here: smaller GPUs have no room for every shape."""
        found: list[Reading] = []
        for reader in readers(shapes, self._valid_bytes, self._profile):
            try:
                found.append((reader.shape, self._stopwatch.record(reader)))
            except Exception:  # a shape less, whatever the reason
                continue
        return found

    def _time(self, readings: Sequence[Reading], rounds: int) -> None:
        taken = self._stopwatch.rounds([recording for _, recording in readings], rounds)
        self._tried.update({shape: statistics.median(us) for (shape, _), us in zip(readings, taken, strict=True)})

    def _ceiling(self, shapes: Sequence[ReaderShape], taken: Sequence[Sequence[float]]) -> CaseCeiling:
        medians = {shape: statistics.median(us) for shape, us in zip(shapes, taken, strict=True)}
        self._tried.update(medians)
        fastest = min(medians, key=medians.__getitem__)
        time_us = medians[fastest]
        return CaseCeiling(
            time_us,
            self._valid_bytes / time_us * 1e-6,
            self._valid_bytes,
            str(fastest),
            Samples(list(taken[list(shapes).index(fastest)])),
            [ShapeTime(str(shape), us) for shape, us in sorted(self._tried.items(), key=lambda pair: pair[1])],
        )
