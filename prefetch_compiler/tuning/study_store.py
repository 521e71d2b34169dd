"""Studies in storage: their names, what they say beside their trials, and opening them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.storages import BaseStorage

from ..database.key import TuningKey
from ..database.record import Toolchain
from ..device import DeviceProfile
from .protocol import OBJECTIVE
from .sampler import sampler_choice
from .seeds import Seed
from .study import KeyStudy
from .worker_name import known_dead, worker_name

# Attributes of a study: the configuration that was published, and who is measuring the finals since when.
PUBLISHED, SETTLING = "published", "settling"
# No finals take as long: whoever began them on another host is taken for dead.
_SETTLING_FOR_S = 600.0


def study_name(key: TuningKey, profile: DeviceProfile, toolchain: Toolchain) -> str:
    """One line: key, device, kernels, compiler and objective. A change of any of them is another study."""
    device = f"{profile.name} sm_{profile.arch} {profile.sm_count} SMs"
    kernels = f"{toolchain.template}@{toolchain.template_hash[:12]}"
    return f"{key.name} | {device} | {kernels} | triton {toolchain.triton_minor} | {OBJECTIVE}"


def open_study(
    key: TuningKey,
    profile: DeviceProfile,
    toolchain: Toolchain,
    storage: BaseStorage,
    seeds: Sequence[Seed],
    *,
    trials: int,
    sampler: str,
    seed: int,
    shared: bool = False,
    fresh: bool = False,
    suffix: str = "",
) -> KeyStudy:
    """The study of ``key``, resumed if there is one.

    Args:
        shared: other workers may be at it: draw other random numbers than they do.
        fresh: forget an earlier study.

    Raises:
        UnknownSamplerError, MissingSamplerPackageError: ``sampler``.
    """
    choice = sampler_choice(sampler)
    name = study_name(key, profile, toolchain) + suffix
    if fresh and name in optuna.get_all_study_names(storage):
        optuna.delete_study(study_name=name, storage=storage)
    study = optuna.create_study(storage=storage, study_name=name, load_if_exists=True)
    # Samplers keep no state in storage: what resumes must not draw the same numbers again, nor may another worker.
    seed += 1000 * len(study.get_trials(deepcopy=False))
    if shared:
        seed += sum(worker_name().encode())
    study.sampler = choice.make(seed)
    _describe(study, key, profile, toolchain, seeds[0])
    return KeyStudy(key, profile, study, trials=trials, choice=choice, seeds=seeds, seed=seed)


def _describe(study: optuna.Study, key: TuningKey, profile: DeviceProfile, toolchain: Toolchain, default: Seed) -> None:
    """For whoever looks at the storage: the report, or optuna-dashboard."""
    facts: dict[str, Any] = {
        "key": key.name,
        "device": profile.name,
        "default": default.config.encode(),
        "template_hash": toolchain.template_hash,
        "torch": toolchain.torch,
        "triton": toolchain.triton,
        "driver": toolchain.driver,
    }
    known = study.user_attrs
    for fact, value in facts.items():
        if known.get(fact) != value:
            study.set_user_attr(fact, value)


def published(study: KeyStudy) -> str | None:
    """The configuration that was published for this study's key."""
    found = study.study.user_attrs.get(PUBLISHED)
    return None if found is None else str(found)


def mark_published(study: KeyStudy, config: str) -> None:
    study.study.set_user_attr(PUBLISHED, config)


def mark_settling(study: KeyStudy) -> None:
    study.study.set_user_attr(SETTLING, [worker_name(), time.time()])


def settled_elsewhere(study: KeyStudy) -> bool:
    """Whether another worker, alive as far as is known, is measuring this study's finals."""
    match study.study.user_attrs.get(SETTLING):
        case [str(worker), int() | float() as since]:
            alive = worker != worker_name() and not known_dead(worker)
            return alive and time.time() - since < _SETTLING_FOR_S
    return False
