"""Compiles and runs small models as callers of every kind do, and prints what each computed beside eager, as JSON.

Run as a script: a process that has compiled starts workers, by ``spawn`` and, on the CPU, ``fork`` and
``fork-while-loading``, each of which compiles too, and then compiles again itself."""

from __future__ import annotations

import json
import multiprocessing
import threading
from typing import Any

import torch

torch.set_num_threads(1)

from torch.nn import functional  # noqa: E402

from prefetch_compiler.database import overlay  # noqa: E402
from prefetch_compiler.lower import ops  # noqa: E402
from prefetch_compiler.report import collect_reports  # noqa: E402

Outcome = dict[str, Any]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def attend(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    return functional.scaled_dot_product_attention(q, k, k)


def outcome(length: int) -> Outcome:
    """The largest difference from eager of a cache of ``length`` keys, and how many sites were lowered."""
    k = torch.randn(1, 2, length, 16, generator=torch.Generator().manual_seed(length)).to(DEVICE)
    q = k[:, :, :1] * 2
    with collect_reports() as report, torch.no_grad():
        # Code generation takes long, and is not what is asked here.
        result = torch.compile(attend, backend="kvprefetch", options={"kvprefetch.strict": True})(q, k)
    error = float((result - attend(q, k)).abs().max())
    return {"length": length, "error": error, "lowered": len(report.lowered), "failed": list(ops._failed_configs)}


def worker(length: int, pipe: Any) -> None:
    torch._dynamo.reset()
    pipe.send(outcome(length))
    pipe.close()


def in_process(method: str) -> Outcome | str:
    """What a worker made of it; a word of what became of one that did not answer."""
    context = multiprocessing.get_context(method)
    ours, theirs = context.Pipe()
    process = context.Process(target=worker, args=(48, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        found: Outcome | str = ours.recv() if ours.poll(60) else "no answer"
    except EOFError:
        found = "it ended without an answer"
    process.kill()
    process.join()
    return found


def in_process_while_loading() -> Outcome | str:
    """A fork while another thread reads databases, with the lock that a child would find taken."""
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with overlay._lock:
            held.set()
            done.wait()

    reader = threading.Thread(target=hold)
    reader.start()
    held.wait()
    try:
        return in_process("fork")
    finally:
        done.set()
        reader.join()


if __name__ == "__main__":
    from tests.contract.uncompiled import graphs_run_uncompiled

    with graphs_run_uncompiled():
        outcomes: dict[str, Outcome | str] = {"before": outcome(32)}
        outcomes["spawn"] = in_process("spawn")
        # No process that has used a GPU can be forked and use it too.
        if DEVICE.type == "cpu":
            outcomes |= {"fork": in_process("fork"), "fork-while-loading": in_process_while_loading()}
        outcomes["after"] = outcome(40)
        print(json.dumps(outcomes))
