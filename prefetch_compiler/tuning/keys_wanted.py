"""The keys that a command line names: a file of sites, a preset, a model, a database's records, or keys by name."""

from __future__ import annotations

from pathlib import Path

from ..database.key import TuningKey, parse_key
from ..errors import InvalidOptionError
from .caches import quantised_key
from .errors import InvalidSizesError, NothingStaleError, NothingToTuneError


def keys_wanted(
    sites: Path | None,
    preset: str | None,
    model: str | None,
    specs: list[str],
    batch: str,
    capacity: str,
    dtype: str,
    kv_dtype: str | None = None,
    kv_scales: str = "head",
    records: Path | None = None,
    stale: bool = False,
) -> list[TuningKey]:
    """All keys that were named, each once, in order. With ``kv_dtype`` those of a preset and a model have their caches
    quantised to each of its formats, with each of the scales.

    Args:
        records: a database file, whose keys are tuned again.
        stale: of these only the keys whose record is of other kernels or another Triton than are here.

    Raises:
        NothingToTuneError, NothingStaleError, InvalidSizesError, InvalidKeyNameError, InvalidCacheError,
        InvalidOptionError: the command line.
        KVPrefetchError: the sites, the preset, the model or the database.
    """
    batches, capacities = sizes_of("--batch", batch), sizes_of("--capacity", capacity)
    dtypes = [name.strip() for name in dtype.split(",")]
    found = [parse_key(name) for name in specs]
    if sites is not None:
        from .sites import read_sites

        found += read_sites(sites)
    named: list[TuningKey] = []
    if preset is not None:
        from .presets import preset_keys

        named += preset_keys(preset, batches, capacities, dtypes)
    if model is not None:
        from .capture import capture_keys

        named += capture_keys(model, batches, capacities, dtypes)
    if kv_dtype is not None:
        caches = [(fmt.strip(), scales.strip()) for fmt in kv_dtype.split(",") for scales in kv_scales.split(",")]
        named = [quantised_key(key, *cache) for cache in caches for key in named]
    found += named
    if records is not None:
        found += _recorded(records, stale)
    elif stale:
        raise InvalidOptionError("stale", stale, "to be given with --records FILE")
    if not found:
        raise NothingToTuneError
    return list(dict.fromkeys(found))


def _recorded(path: Path, stale: bool) -> list[TuningKey]:
    from ..database.store import read
    from ..select.candidates import why_stale

    found = [record.key for record in read(path).records if not stale or why_stale(record)]
    if not found:
        raise NothingStaleError(path)
    return found


def sizes_of(option: str, text: str) -> list[int]:
    """The comma-separated sizes of a command line.

    Raises:
        InvalidSizesError: ``text`` is no list of positive integers.
    """
    sizes = [part.strip() for part in text.split(",")]
    if not all(size.isdigit() and int(size) > 0 for size in sizes):
        raise InvalidSizesError(option, text)
    return [int(size) for size in sizes]
