"""What every process of a tuning job does first, so that none outlives the job and nothing that it started outlives it.

Processes end with their parent, however that ends. Each leads a group, which its assemblers belong to, and the group
ends with its leader: told to end, the leader ends the whole of it, and where it is killed, a guard of the group does.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from contextlib import suppress
from types import FrameType

_PR_SET_PDEATHSIG = 1
# A shell that waits until nobody can write to its input any more, which only the group's leader can: ``read`` returns
# when the leader is gone. Process group 0 is its own.
_GUARD = ("/bin/sh", "-c", "read _; kill -KILL 0")

_guard: subprocess.Popen[bytes] | None = None


def die_with(parent: int) -> None:
    """Ask Linux to kill this process when the thread that started it ends (prctl(2), PR_SET_PDEATHSIG)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def lead_process_group() -> None:
    """Lead a group of our own, which ends with us."""
    global _guard
    os.setpgrp()
    signal.signal(signal.SIGTERM, _end_group)
    # Its input is a pipe whose other end no process that we start inherits (PEP 446). Without a shell there is none.
    with suppress(OSError):
        _guard = subprocess.Popen(_GUARD, stdin=subprocess.PIPE)


def _end_group(signum: int, frame: FrameType | None) -> None:
    os.killpg(0, signal.SIGKILL)
