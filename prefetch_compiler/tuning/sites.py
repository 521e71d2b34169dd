"""Files of captured sites: what ``kvprefetch capture --out`` writes and ``kvprefetch tune`` takes.

JSON for people and for git: one entry a key, the key by its name, in the order of a database. Reading is strict.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from ..database.key import TuningKey, parse_key, sort_key
from ..database.strict_json import StrictJsonError, parse
from ..errors import InvalidKeyNameError
from .capture import CapturedSite
from .capture_errors import CorruptSitesError, MissingSitesError, SitesNotWrittenError, SitesVersionError

FORMAT = "kvprefetch-sites"
VERSION = 1
MAX_BYTES = 16 << 20

_Text = Annotated[str, Meta(min_length=1, max_length=500)]


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    key: _Text
    layers: Annotated[int, Meta(ge=1, le=1 << 20)]
    model: _Text
    layer: Annotated[str, Meta(max_length=500)]


class _File(msgspec.Struct, forbid_unknown_fields=True):
    format: str
    version: int
    sites: list[_Entry]


def write_sites(path: Path | str, sites: Sequence[CapturedSite]) -> None:
    """Write ``sites``, replacing what was there.

    Raises:
        SitesNotWrittenError: the file cannot be written.
    """
    entries = [
        _Entry(site.key.name, site.layers, site.model[:500], site.layer[:500])
        for site in sorted(sites, key=lambda site: (sort_key(site.key), site.model))
    ]
    text = msgspec.json.format(msgspec.json.encode(_File(FORMAT, VERSION, entries)), indent=2)
    try:
        Path(path).write_bytes(text + b"\n")
    except OSError as error:
        raise SitesNotWrittenError(path, error) from error


def read_sites(path: Path | str) -> list[TuningKey]:
    """The keys of a file of sites, each once, in the file's order.

    Raises:
        MissingSitesError, CorruptSitesError, SitesVersionError: there are none to be had.
    """
    return list(dict.fromkeys(site.key for site in read_captured(path)))


def read_captured(path: Path | str) -> list[CapturedSite]:
    """The sites that :func:`write_sites` wrote.

    Raises:
        MissingSitesError, CorruptSitesError, SitesVersionError: there are none to be had.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise MissingSitesError(path, error) from error
    try:
        plain = parse(data, MAX_BYTES)
        _check_head(path, plain)
        read = msgspec.convert(plain, _File)
        return [_site(entry) for entry in read.sites]
    except (StrictJsonError, msgspec.ValidationError, InvalidKeyNameError) as error:
        raise CorruptSitesError(path, str(error)) from error


def _check_head(path: Path | str, plain: object) -> None:
    """The version before all else: a file of another version is not corrupt."""
    if not isinstance(plain, dict) or plain.get("format") != FORMAT:
        raise CorruptSitesError(path, f"it is no JSON object with the format {FORMAT!r}")
    version = plain.get("version")
    if isinstance(version, bool) or version != VERSION:
        raise SitesVersionError(path, version, VERSION)


def _site(entry: _Entry) -> CapturedSite:
    key = parse_key(entry.key)
    if key.name != entry.key:
        # A size between two buckets would be tuned as another key than the one that is written there.
        raise InvalidKeyNameError(entry.key, f"its bucket is {key.name!r}")
    return CapturedSite(key, entry.layers, entry.model, entry.layer)
