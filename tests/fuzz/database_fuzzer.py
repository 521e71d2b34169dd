"""Coverage-guided fuzzing of the database reader, by atheris (libFuzzer). A script of its own: libFuzzer takes over the
process. Arguments: a file for the counts, then libFuzzer's own.

Every input is read twice: as it is, and with its checksums and its digest put right, as whoever can write a file can.
What is found is an error that is none of ours, or a database that is not written and read back as it was.
"""

from __future__ import annotations

import json
import resource
import sys
from collections import Counter
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["prefetch_compiler.database"]):
    from prefetch_compiler.database.document import decode, encode
    from prefetch_compiler.database.errors import DatabaseError
    from prefetch_compiler.database.strict_json import StrictJsonError, parse

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.fuzz.repaired import with_digest

# libFuzzer ends the process without a word to Python.
INPUTS_BETWEEN_REPORTS = 200
# Of a process that reads files of 8 KB at most.
MOST_GROWTH_MB = 2048

counts: Counter[str] = Counter()
report = Path()


def read(data: bytes) -> None:
    try:
        found = decode(data, "fuzz.json")
    except DatabaseError as error:
        counts[type(error).__name__] += 1
        assert str(error).startswith("fuzz.json: ")
        assert len(str(error)) < 1000 and str(error).isprintable()
        return
    counts["databases"] += 1
    counts["records"] += len(found.records)
    assert decode(encode(found)) == found


def read_twice(data: bytes) -> None:
    if counts["inputs"] % INPUTS_BETWEEN_REPORTS == 0:
        report.write_text(json.dumps(counts))
    counts["inputs"] += 1
    read(data)
    try:
        plain = parse(data)
    except StrictJsonError:
        return
    counts["inputs put right"] += 1
    read(with_digest(plain))


if __name__ == "__main__":
    report = Path(sys.argv.pop(1))
    # With all of CUDA's libraries PyTorch alone takes more than libFuzzer allows a process.
    before_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    atheris.Setup([*sys.argv, f"-rss_limit_mb={before_mb + MOST_GROWTH_MB}"], read_twice)
    atheris.Fuzz()
