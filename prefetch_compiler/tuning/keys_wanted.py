"""The keys that a command line names: a file of sites, a preset, a model, or keys by name."""

from __future__ import annotations

from pathlib import Path

from ..database.key import TuningKey, parse_key
from .errors import InvalidSizesError, NothingToTuneError


def keys_wanted(
    sites: Path | None, preset: str | None, model: str | None, specs: list[str], batch: str, capacity: str, dtype: str
) -> list[TuningKey]:
    """All keys that were named, each once, in order.

    Raises:
        NothingToTuneError, InvalidSizesError, InvalidKeyNameError: the command line.
        KVPrefetchError: the sites, the preset or the model.
    """
    batches, capacities = sizes_of("--batch", batch), sizes_of("--capacity", capacity)
    dtypes = [name.strip() for name in dtype.split(",")]
    found = [parse_key(name) for name in specs]
    if sites is not None:
        from .sites import read_sites

        found += read_sites(sites)
    if preset is not None:
        from .presets import preset_keys

        found += preset_keys(preset, batches, capacities, dtypes)
    if model is not None:
        from .capture import capture_keys

        found += capture_keys(model, batches, capacities, dtypes)
    if not found:
        raise NothingToTuneError
    return list(dict.fromkeys(found))


def sizes_of(option: str, text: str) -> list[int]:
    """The comma-separated sizes of a command line.

    Raises:
        InvalidSizesError: ``text`` is no list of positive integers.
    """
    sizes = [part.strip() for part in text.split(",")]
    if not all(size.isdigit() and int(size) > 0 for size in sizes):
        raise InvalidSizesError(option, text)
    return [int(size) for size in sizes]
