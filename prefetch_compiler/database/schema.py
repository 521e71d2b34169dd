"""The published JSON schema of the file format, made from the types that the loader checks against.

``kvprefetch db schema > tuning_db/schema.json`` writes it anew; a test holds the two together. It says what a database
may look like. It does not say what only the loader checks: digest and checksums, the relations between fields in
``rules.py``, duplicate keys, and that integers are written without a fraction (to JSON schema 1.0 is an integer).
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

from .wire import SCHEMA_VERSION, WireDatabase

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema() -> dict[str, Any]:
    """Draft 2020-12, as plain data."""
    generated = json.loads(json.dumps(msgspec.json.schema(WireDatabase)).replace("Wire", ""))
    definitions = generated.pop("$defs")
    root = definitions.pop("Database")
    for definition in definitions.values():
        if "enum" in definition:
            # The docstring of one of our classes: no part of the format.
            definition.pop("description", None)
    return {
        "$schema": DIALECT,
        "$id": f"urn:kvprefetch:tuning-database:{SCHEMA_VERSION}",
        **root,
        "title": f"kvprefetch tuning database, version {SCHEMA_VERSION}",
        "$defs": dict(sorted(definitions.items())),
    }


def schema_bytes() -> bytes:
    """The file's content."""
    return (json.dumps(schema(), indent=2) + "\n").encode("ascii")
