"""A hostile document with everything put right that a reader could hold against it but its content."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def with_digest(plain: Any) -> bytes:
    """``plain`` with every checksum right, if it is anything like a database."""
    if not isinstance(plain, dict):
        return json.dumps(plain).encode()
    for record in plain["records"] if isinstance(plain.get("records"), list) else []:
        if isinstance(record, dict):
            record.pop("checksum", None)
            covered = json.dumps(record, sort_keys=True, separators=(",", ":")).encode()
            record["checksum"] = hashlib.sha256(covered).hexdigest()
    plain.pop("digest", None)
    head = json.dumps(plain, indent=1).encode().removesuffix(b"\n}") + b',\n  "digest": "'
    return head + hashlib.sha256(head).hexdigest().encode() + b'"\n}\n'
