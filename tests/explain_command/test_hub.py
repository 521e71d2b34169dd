"""A model of 70 billion parameters from a hub, from the command line: one small file is fetched, and little memory
used."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

pytest.importorskip("transformers")

MODEL = "meta/seventy-billion"
# The config.json of Llama-3-70B, by hand.
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "hidden_act": "silu",
    "hidden_size": 8192,
    "initializer_range": 0.02,
    "intermediate_size": 28672,
    "max_position_embeddings": 8192,
    "num_attention_heads": 64,
    "num_hidden_layers": 80,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}
LAYERS, KV_HEADS, HEAD_DIM, BYTES = 80, 8, 128, 2
GIB_IN_KIB = 1 << 20


@dataclass
class Hub:
    """A server with one repository of one file, as the hub serves it; ``asked`` are the paths that were asked for."""

    address: str
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def hub() -> Iterator[Hub]:
    body = json.dumps(CONFIG).encode()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(b"")

        def do_GET(self) -> None:
            self._answer(body)

        def _answer(self, content: bytes) -> None:
            found.asked.append(self.path)
            if self.path != f"/{MODEL}/resolve/main/config.json":
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(200)
            self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = Hub(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield found
    server.shutdown()
    thread.join()
    server.server_close()


# The command, and what Linux says of its memory in the end: what wait4 says is never less than what the parent took.
RUN = """
import atexit, pathlib, runpy, sys
memory = pathlib.Path(sys.argv.pop(1))
atexit.register(lambda: memory.write_text(pathlib.Path("/proc/self/status").read_text()))
runpy.run_module("prefetch_compiler.cli", run_name="__main__", alter_sys=True)
"""


def test_seventy_billion_parameters_are_explained_from_one_file(hub: Hub, tmp_path: Path) -> None:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")},
        "HF_ENDPOINT": hub.address,
        "HF_HOME": str(tmp_path / "hub-cache"),
        "HF_HUB_OFFLINE": "0",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "TRITON_INTERPRET": "0",
    }
    arguments = ("explain", MODEL, "--gpu", "H200", "--batch", "16", "--held", "1000", "--capacity", "8192", "--json")
    with (tmp_path / "out").open("wb") as out, (tmp_path / "err").open("wb") as err:
        process = subprocess.Popen(
            [sys.executable, "-c", RUN, str(tmp_path / "memory"), *arguments], env=environment, stdout=out, stderr=err
        )
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, (tmp_path / "err").read_text()

    found = json.loads((tmp_path / "out").read_text())
    assert (found["architecture"], found["dtype"], found["gpu"]["name"]) == (
        "LlamaForCausalLM", "bfloat16", "NVIDIA H200",
    )  # fmt: skip
    sites = found["report"]["sites"]
    assert [site["layer"] for site in sites] == [f"model.layers.{layer}.self_attn" for layer in range(LAYERS)]
    key_bytes = 16 * KV_HEADS * 2 * HEAD_DIM * BYTES
    assert {site["kv_bytes_read"] for site in sites} == {1001 * key_bytes}
    assert {site["kv_bytes_capacity"] for site in sites} == {8192 * key_bytes}
    assert {site["spec"] for site in sites} == {"64q/8kv d128 q1 S8192 b16 bfloat16 mask=bool"}
    assert all(site["config"] for site in sites)

    # Besides what the hub's own library asks about itself.
    assert {path for path in hub.asked if MODEL in path} == {f"/{MODEL}/resolve/main/config.json"}
    peak = re.search(r"VmHWM:\s+(\d+) kB", (tmp_path / "memory").read_text())
    assert peak
    assert int(peak[1]) < 2 * GIB_IN_KIB
    # A generous multiple of what it takes alone: all 80 layers, or anything of the model's size, would take minutes.
    assert usage.ru_utime + usage.ru_stime < 60
