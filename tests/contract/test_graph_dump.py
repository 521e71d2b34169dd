"""Graphs on request: readable, in order, never over another file, and never the end of a compile."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from prefetch_compiler import graph_dump
from prefetch_compiler.lower import rewrite

from .golden import static_cache
from .golden.run import assert_follows_eager, run_compiled, run_eagerly
from .uncompiled import graphs_run_uncompiled

GOLDEN = static_cache.LLAMA
STEM = f"0000-pid{os.getpid()}"
NAMES = ["1-dynamo.py", "2-functional.py", "3-lowered.py", "4-sites.json"]


@pytest.fixture(autouse=True)
def _numbered_from_0(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(graph_dump, "_numbers", itertools.count())
    yield
    torch._dynamo.reset()


def dumped(folder: Path | str, **options: Any) -> list[str]:
    """Names of the files in ``folder`` after one compile, sorted."""
    with graphs_run_uncompiled():
        run_compiled(GOLDEN, options={"kvprefetch.dump_graphs": folder, **options})
    return sorted(path.name for path in Path(folder).iterdir())


def test_every_stage_is_written_and_can_be_read(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "for it"
    assert dumped(folder) == [f"{STEM}-{name}" for name in NAMES]
    dynamo, functional, lowered = ((folder / f"{STEM}-{name}").read_text() for name in NAMES[:3])
    assert "scaled_dot_product_attention" in dynamo
    assert "marked_sdpa" not in dynamo
    assert "torch.ops.kvprefetch.marked_sdpa.default" in functional
    assert "torch.ops.kvprefetch.decode_attention.default" in lowered
    assert "marked_sdpa" not in lowered
    for text in (dynamo, functional, lowered):
        compile(text, "graph", "exec", dont_inherit=True)  # it is Python
        # With shapes, strides and devices.
        assert re.search(r'"f32\[\d+, \d+, \d+, \d+\]\[.*\](cpu|cuda:0)"', text), (
            text
        )  # with shapes, strides and devices
        assert "compile id 0/0" in text
    plain = json.loads((folder / f"{STEM}-4-sites.json").read_text())
    (site,) = plain["sites"]
    assert (site["verdict"], site["template"]) == ("heuristic", "split_kv_decode")
    assert plain["compile_id"] == "0/0"


def test_graphs_are_numbered_in_order_and_nothing_is_overwritten(tmp_path: Path) -> None:
    dumped(tmp_path)
    first = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(dumped(str(tmp_path))) == 8  # graph 1
    graph_dump._numbers = itertools.count()  # as in another process whose id is the same
    names = dumped(tmp_path)
    assert len(names) == 12
    assert [name for name in names if ".2-" in name] == [f"{STEM}.2-{name}" for name in NAMES]
    assert all(path.read_bytes() == content for path, content in first.items())


def test_without_the_option_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with graphs_run_uncompiled():
        run_compiled(GOLDEN)
    assert list(tmp_path.iterdir()) == []


def test_torchs_debug_folder_holds_the_graphs_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch._dynamo.utils.get_debug_dir", lambda: str(tmp_path))
    assert graph_dump.dump_folder(None, {}) is None
    assert graph_dump.dump_folder(None, {"trace.enabled": True}) == tmp_path / "kvprefetch"
    with torch._inductor.config.patch({"trace.enabled": True}):  # what TORCH_COMPILE_DEBUG=1 sets
        assert graph_dump.dump_folder(None, {}) == tmp_path / "kvprefetch"
        assert graph_dump.dump_folder("elsewhere", {}) == Path("elsewhere")
        assert graph_dump.dump_folder(None, {"trace.enabled": False}) is None


def _no_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.write_text("a file in the place of the folder")


def _full_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under ``folder`` alone: what else is opened meanwhile, such as other packages' entry points, is not ours."""
    opened = Path.open

    def full(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.is_relative_to(folder):
            raise OSError(28, "No space left on device")
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", full)


def _unreadable_graph(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("cannot print this graph")

    monkeypatch.setattr(graph_dump, "_readable", broken)


@pytest.mark.parametrize("break_it", [_no_folder, _full_disk, _unreadable_graph])
def test_what_cannot_be_written_is_one_warning(
    break_it: Callable[[Path, pytest.MonkeyPatch], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    eager, problems = run_eagerly(GOLDEN)
    folder = tmp_path / "graphs"
    break_it(folder, monkeypatch)
    with graphs_run_uncompiled(), caplog.at_level("WARNING", logger="prefetch_compiler"):
        compiled, report = run_compiled(GOLDEN, options={"kvprefetch.dump_graphs": folder})
    assert_follows_eager(compiled, eager, problems)
    assert report.sites[0].lowered
    (warning,) = [record for record in caplog.records if "graphs are not written" in record.getMessage()]
    assert str(folder) in warning.getMessage()


def test_a_second_run_of_the_pass_has_files_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = iter([RuntimeError("does not compile"), None])

    def precompile(*_: Any) -> None:
        error = next(failing, None)
        if error is not None:
            raise error

    monkeypatch.setattr(rewrite, "precompile", precompile)
    names = dumped(tmp_path)
    again = [f"{STEM}.2-{name}" for name in ("2-functional.py", "3-lowered.py")]
    assert names == sorted([f"{STEM}-{name}" for name in NAMES] + again)
    assert "decode_attention" in (tmp_path / f"{STEM}-3-lowered.py").read_text()
    assert "decode_attention" not in (tmp_path / f"{STEM}.2-3-lowered.py").read_text()
