"""Who is working on a trial, told apart from whoever had the process id before or has it on another host."""

from __future__ import annotations

import os
import socket
from pathlib import Path


def worker_name() -> str:
    """``HOST:PID:START`` of this process."""
    return f"{socket.gethostname()}:{os.getpid()}:{_start_of(os.getpid())}"


def known_dead(name: str) -> bool:
    """Whether ``name`` ran on this host and is gone. Of another host's worker nothing is known."""
    host, _, process = name.rpartition(":")[0].rpartition(":")
    start = name.rpartition(":")[2]
    return host == socket.gethostname() and process.isdigit() and _start_of(int(process)) != start


def _start_of(pid: int) -> str:
    """Clock ticks after boot at which a process started; empty when there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]
