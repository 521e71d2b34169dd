"""What libraries say when the interpreter ends must not follow the tables."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Handlers run in reverse order: what was registered first stands for a library's own last words.
_PROGRAM = """
import atexit, os, sys
atexit.register(os.write, 2, b"leaked 99 instances")
from prefetch_compiler.bench.kernel.leave import leave_quietly
if {loaded}:
    sys.modules["cudnn"] = sys
leave_quietly()
print("table")
print("wrong: something", file=sys.stderr)
sys.exit(1)
"""


@pytest.mark.parametrize("loaded", [True, False])
def test_last_words_are_not_heard_where_such_a_library_was_loaded(loaded: bool) -> None:
    program = _PROGRAM.format(loaded=loaded)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == "table\n"
    assert "wrong: something" in done.stderr
    assert ("leaked" in done.stderr) is not loaded
