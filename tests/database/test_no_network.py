"""Nothing of this package goes to the network unless a hub's model is named; see no_network.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from prefetch_compiler.database.overlay import shipped_folder
from prefetch_compiler.database.store import database_files, read

SCRIPT = Path(__file__).with_name("no_network.py")


def test_no_socket_is_opened(tmp_path: Path) -> None:
    environment = os.environ | {
        "TRITON_INTERPRET": "1", "XDG_CACHE_HOME": str(tmp_path / "cache"), "HF_HOME": str(tmp_path / "hub"),
    }  # fmt: skip
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        environment.pop(name, None)  # they would keep it from the network in our place
    command = [sys.executable, str(SCRIPT), str(tmp_path)]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert finished.returncode == 0, finished.stderr[-3000:]
    found = json.loads(finished.stdout.splitlines()[-1])
    assert found["closed"], "the hook does not see what it is for"
    assert found["tried"] == []
    folder = shipped_folder()
    assert folder is not None
    done = found["done"]
    assert done.pop("compiled") == {"sites": 1}
    assert done.pop("looked up") == {"exact": sum(len(read(path).records) for path in database_files(folder))}
    assert done == dict.fromkeys(done, 0)
