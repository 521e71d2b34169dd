"""A serving process, and the commands, with every way to the network closed; prints what was tried. Argument: a folder
of its own.

Sockets are seen by Python's audit hooks (PEP 578), under which even C code's calls through ``socket`` are. What is not
of the network, a socket of the Unix domain or a pair, is let through.
"""

from __future__ import annotations

import contextlib
import io
import json
import socket
import sys
from pathlib import Path
from typing import Any

tried: list[str] = []
RESOLVING = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.getnameinfo")
USING = ("socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg")
REQUESTS = ("urllib.Request", "http.client.connect", "ftplib.connect", "smtplib.connect")


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event in RESOLVING or event in REQUESTS:
        tried.append(f"{event} {arguments}")
        raise OSError(f"the network is closed: {event}")
    if event in USING and arguments[0].family in (socket.AF_INET, socket.AF_INET6):
        tried.append(f"{event} {arguments[1:]}")
        raise OSError(f"the network is closed: {event}")


sys.addaudithook(watch)

import torch  # noqa: E402
from torch.nn import functional  # noqa: E402


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)


def compiled() -> dict[str, int]:
    from prefetch_compiler.report import collect_reports

    q, k, v = (torch.randn(shape) for shape in ((2, 4, 1, 16), (2, 2, 50, 16), (2, 2, 50, 16)))
    with torch.no_grad(), collect_reports() as report:
        result = torch.compile(attend, backend="kvprefetch")(q, k, v)
    torch.testing.assert_close(result, attend(q, k, v))
    return {"sites": len(report.sites)}


def looked_up() -> dict[str, int]:
    from prefetch_compiler.database.overlay import load
    from prefetch_compiler.device import REFERENCE_DEVICES
    from prefetch_compiler.select.selection import select

    databases = load()
    (layer,) = databases.layers
    found = [select(record.key.spec(), REFERENCE_DEVICES[90], databases) for record in layer[0].records]
    return {"exact": sum(one.verdict.value == "exact" for one in found)}


def commanded(*arguments: str) -> int:
    from prefetch_compiler import cli

    sys.argv = ["kvprefetch", *arguments]
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            cli.main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def model_folder(folder: Path) -> Path:
    """A folder as ``save_pretrained`` leaves it, of its configuration alone."""
    folder.mkdir()
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 64}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    plain = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **sizes, **heads}
    (folder / "config.json").write_text(json.dumps(plain))
    return folder


if __name__ == "__main__":
    own = Path(sys.argv[1])
    shipped = str(next((Path(__file__).parents[2] / "tuning_db").glob("nvidia*.json")))
    done = {
        "compiled": compiled(),
        "looked up": looked_up(),
        "db show": commanded("db", "show", shipped),
        "db path": commanded("db", "path"),
        "db merge": commanded("db", "merge", shipped, "--out", str(own / "all.json")),
        "db prune": commanded("db", "prune", str(own / "all.json"), "--stale"),
        "db verify": commanded("db", "verify", shipped, "--no-compile"),
        "explain": commanded(
            "explain", str(model_folder(own / "model")), "--gpu", "sm_90", "--batch", "1", "--capacity", "4096"
        ),
    }
    closed = False
    try:
        socket.create_connection(("127.0.0.1", 9), timeout=1)
    except OSError as error:
        closed = "the network is closed" in str(error)
    print(json.dumps({"done": done, "tried": tried[:-1], "closed": closed}))
