"""docs/reliability-tuning.md says what each fault costs: the seconds are the code's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefetch_compiler.database.store import LOCK_TIMEOUT_S
from prefetch_compiler.tuning.compile_pool import COMPILE_TIMEOUT_S
from prefetch_compiler.tuning.measurer import FINALIST_DEADLINE_S, KILL_S, START_DEADLINE_S, TRIAL_DEADLINE_S
from prefetch_compiler.tuning.study import STALE_AFTER

DOCUMENT = Path(__file__).parents[2] / "docs" / "reliability-tuning.md"

# By the fault that a row of the table begins with.
SECONDS = {
    "a kernel that never ends, in a trial": TRIAL_DEADLINE_S + KILL_S,
    "a kernel that never ends, in finals of n": FINALIST_DEADLINE_S,
    "an assembler that never ends": COMPILE_TIMEOUT_S + KILL_S,
    "a measuring process that does not start": START_DEADLINE_S + TRIAL_DEADLINE_S + KILL_S,
    "a worker of another host that is gone": STALE_AFTER.total_seconds(),
    "another writer that holds the database": LOCK_TIMEOUT_S,
}


@pytest.mark.parametrize("fault", SECONDS)
def test_the_seconds_of_a_fault_are_documented(fault: str) -> None:
    rows = [line.split("|")[1:-1] for line in DOCUMENT.read_text().splitlines() if line.startswith(f"| {fault} |")]
    assert len(rows) == 1
    assert f"{SECONDS[fault]:g} s" in rows[0][2].split(",")[0]
