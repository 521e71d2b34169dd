"""32 writers, killed at random while readers read. KVPREFETCH_STRESS_SECONDS sets for how long."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

SECONDS = float(os.environ.get("KVPREFETCH_STRESS_SECONDS", "6"))
SCRIPT = Path(__file__).with_name("writers_run.py")
NAME = "nvidia_h200-132sm.json"


def test_no_acknowledged_record_is_lost_and_readers_see_whole_files(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), str(tmp_path), str(SECONDS), "0"]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS + 120, check=False)
    assert finished.returncode == 0, finished.stderr
    assert "Traceback" not in finished.stderr, finished.stderr
    result = json.loads(finished.stdout)
    assert result["lost"] == []
    assert result["complaints"] == []
    # A dead writer's temporary file goes with the next publish: none is left.
    assert result["files"] == [f".{NAME}.lock", NAME]
    # It happened at all.
    assert result["acknowledged"] >= 20, result
    assert result["writers_that_acknowledged"] >= 5, result
    assert result["kills_of_the_holder"] >= 5, result
    assert result["reads"] >= 20, result
