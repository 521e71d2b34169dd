"""Which device a job is for, where its records go by default, and what is recorded for it already."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from ..database.device_identity import identity_of
from ..database.errors import DatabaseError
from ..database.overlay import shipped_folder
from ..database.private_folder import user_folder
from ..database.record import TuningRecord
from ..database.store import database_files, read
from ..device import REFERENCE_DEVICES, DeviceProfile, profile
from .errors import NoTuningGpuError, UnknownTargetError


def target_profile(target: str | None, compile_only: bool) -> DeviceProfile:
    """The GPU here; with ``compile_only`` the one that stands for ``target`` (or the GPU here, where none is named).

    Raises:
        NoTuningGpuError: there is no GPU to measure on.
        UnknownTargetError: ``target`` is none of ours, or is given although something is to be measured.
    """
    if target is not None:
        arch = target.removeprefix("sm_")
        if not compile_only or not arch.isdigit() or int(arch) not in REFERENCE_DEVICES:
            raise UnknownTargetError(target, REFERENCE_DEVICES, compile_only)
        return REFERENCE_DEVICES[int(arch)]
    if not torch.cuda.is_available():
        raise NoTuningGpuError
    return profile(torch.device("cuda"))


def default_folder(compile_only: bool) -> Path:
    """The user's own folder, which lookup reads; modelled records go to the current one, which it does not."""
    return Path.cwd() if compile_only else user_folder()


def known_records(device: DeviceProfile, folder: Path) -> list[TuningRecord]:
    """Records of ``device`` that lie in the job's folder or are shipped. Files that cannot be read hold none."""
    return [record for path in _known_files(folder) for record in _records(path, device)]


def _known_files(folder: Path) -> Iterator[Path]:
    yield from [folder] if folder.suffix == ".json" else database_files(folder)
    shipped = shipped_folder()
    if shipped is not None:
        yield from database_files(shipped)


def _records(path: Path, device: DeviceProfile) -> tuple[TuningRecord, ...]:
    try:
        database = read(path)
    except DatabaseError:
        return ()
    return database.records if database.device == identity_of(device) else ()
