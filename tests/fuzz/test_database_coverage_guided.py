"""Coverage-guided fuzzing of the database reader. KVPREFETCH_FUZZ_SECONDS sets for how long."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from prefetch_compiler.database.document import decode, encode
from prefetch_compiler.database.errors import DatabaseError, UnsupportedVersionError

from ..database.examples import KEY, database, measured, modelled

SECONDS = int(os.environ.get("KVPREFETCH_FUZZ_SECONDS", "6"))
SEEDS = Path(__file__).with_name("seeds")
SCRIPT = Path(__file__).with_name("database_fuzzer.py")
# Words that byte by byte are not found in seconds.
WORDS = [
    "NaN",
    "Infinity",
    "1e999",
    "schema_version",
    "records",
    "digest",
    "checksum",
    "cuda",
    "float8_e4m3fn",
    "tma",
    "null",
]

NEEDS_ATHERIS = pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="atheris has no wheel for this platform or Python"
)


@pytest.mark.parametrize("path", sorted(SEEDS.iterdir()), ids=lambda path: path.stem)
def test_every_hostile_seed_is_refused(path: Path) -> None:
    expected = UnsupportedVersionError if path.stem == "other-version" else DatabaseError
    with pytest.raises(expected, match=path.name):
        decode(path.read_bytes(), path)


@NEEDS_ATHERIS
def test_no_input_that_coverage_leads_to_breaks_the_reader(tmp_path: Path) -> None:
    corpus, report, words = tmp_path / "corpus", tmp_path / "counts.json", tmp_path / "words"
    corpus.mkdir()
    (corpus / "one").write_bytes(encode(database(measured())))
    (corpus / "two").write_bytes(encode(database(modelled(), measured(KEY.at(batch=1, capacity=512)))))
    words.write_text("".join(f'"{word}"\n' for word in WORDS))
    command = [
        sys.executable, str(SCRIPT), str(report), f"-max_total_time={SECONDS}", "-timeout=20",
        "-max_len=8192", "-seed=1", f"-dict={words}", f"-artifact_prefix={tmp_path}/", str(corpus), str(SEEDS),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS + 240, check=False)
    crashes = [path.read_bytes() for path in tmp_path.glob("crash-*")]
    assert (done.returncode, crashes) == (0, []), done.stderr[-3000:]
    counts = json.loads(report.read_text())
    # It got behind the parser, the digest and the structure, and not only into the first refusal.
    assert counts["inputs"] > 200 * SECONDS, counts
    assert counts["inputs put right"] > 20 * SECONDS, counts

    assert min(counts[name] for name in ("databases", "CorruptDatabaseError", "UnsupportedVersionError")) > 0, counts
