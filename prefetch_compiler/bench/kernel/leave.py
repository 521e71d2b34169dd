"""Leaving a process in which peers were loaded, without what their libraries say then."""

from __future__ import annotations

import atexit
import os
import sys

# cuDNN's Python front end, which FlashInfer uses, counts over a page of text what it never gave back.
_TALKATIVE = "cudnn"


def leave_quietly() -> None:
    """Have standard error closed to what is said after the interpreter's own work is done: results stay the last that
    is seen. Nothing changes where no such library was loaded."""
    if _TALKATIVE in sys.modules:
        atexit.register(_silence)


def _silence() -> None:
    sys.stderr.flush()
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 2)
    os.close(sink)
