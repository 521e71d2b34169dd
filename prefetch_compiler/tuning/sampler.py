"""Samplers by name. ``+local`` after a name gives a share of the trials to the neighbours of the best so far (one knob,
one step), which a sampler of densities finds late in a space of discrete knobs."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, BruteForceSampler, CmaEsSampler, GPSampler, RandomSampler, TPESampler

from .errors import MissingSamplerPackageError, UnknownSamplerError

# Random trials before a model is fitted. The enqueued ones count among them.
STARTUP_TRIALS = 10
LOCAL_SUFFIX = "+local"


@dataclass(frozen=True)
class SamplerChoice:
    """
    Attributes:
        local: whether neighbours of the best are proposed too.
        learns_from_pruned: whether the sampler takes a pruned trial for a bad one. The others ignore it, so that what
            fails has to be told to them as a bad time.
    """

    name: str
    local: bool
    learns_from_pruned: bool

    def make(self, seed: int) -> BaseSampler:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return _SAMPLERS[self.name.removesuffix(LOCAL_SUFFIX)](seed)


def _tpe(seed: int) -> BaseSampler:
    return TPESampler(n_startup_trials=STARTUP_TRIALS, multivariate=False, constant_liar=True, seed=seed)


def _tpe_multivariate(seed: int) -> BaseSampler:
    # Conditional parameters are sampled on their own: that is what this variant is, and no cause for a warning each.
    logging.getLogger("optuna.samplers._tpe.sampler").setLevel(logging.ERROR)
    return TPESampler(n_startup_trials=STARTUP_TRIALS, multivariate=True, constant_liar=True, seed=seed)


def _tpe_group(seed: int) -> BaseSampler:
    return TPESampler(n_startup_trials=STARTUP_TRIALS, multivariate=True, group=True, constant_liar=True, seed=seed)


def _cmaes(seed: int) -> BaseSampler:
    return CmaEsSampler(n_startup_trials=STARTUP_TRIALS, seed=seed, with_margin=True, warn_independent_sampling=False)


def _gp(seed: int) -> BaseSampler:
    return GPSampler(n_startup_trials=STARTUP_TRIALS, seed=seed, warn_independent_sampling=False)


def _random(seed: int) -> BaseSampler:
    return RandomSampler(seed=seed)


def _grid(seed: int) -> BaseSampler:
    return BruteForceSampler(seed=seed)


_SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "tpe": _tpe,
    "tpe-multivariate": _tpe_multivariate,
    "tpe-group": _tpe_group,
    "cmaes": _cmaes,
    "gp": _gp,
    "random": _random,
    "grid": _grid,
}
_DEAF = ("cmaes", "gp")
_PACKAGES = {"cmaes": "cmaes", "gp": "scipy"}
SAMPLER_NAMES = tuple(name + suffix for name in _SAMPLERS for suffix in ("", LOCAL_SUFFIX))
DEFAULT_SAMPLER = "tpe-group+local"


def sampler_choice(name: str) -> SamplerChoice:
    """The sampler called ``name``.

    Raises:
        UnknownSamplerError: there is none.
        MissingSamplerPackageError: Optuna needs a package for it that is not installed.
    """
    plain = name.removesuffix(LOCAL_SUFFIX)
    if plain not in _SAMPLERS:
        raise UnknownSamplerError(name, SAMPLER_NAMES)
    package = _PACKAGES.get(plain)
    if package is not None and find_spec(package) is None:
        raise MissingSamplerPackageError(name, package)
    return SamplerChoice(name, name.endswith(LOCAL_SUFFIX), plain not in _DEAF)
