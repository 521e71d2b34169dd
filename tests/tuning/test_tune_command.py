"""``kvprefetch tune`` as a process: compile-only end to end, JSON lines, quiet mode, and refusals of one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from prefetch_compiler.templates.manifest import SPLIT_KV
from typer.testing import CliRunner

from prefetch_compiler.cli import app
from prefetch_compiler.database.document import Database
from prefetch_compiler.database.key import TuningKey, parse_key
from prefetch_compiler.database.record import Toolchain
from prefetch_compiler.database.store import publish, read
from prefetch_compiler.database.template_hash import hash_for
from prefetch_compiler.errors import KVPrefetchError
from prefetch_compiler.select.candidates import triton_minor
from prefetch_compiler.tuning import cli
from prefetch_compiler.tuning.errors import NothingStaleError, NothingToTuneError
from prefetch_compiler.tuning.keys_wanted import keys_wanted
from prefetch_compiler.tuning.presets import preset_keys

from ..database.examples import CONFIG, H200, measured

SMALL = "float16 4q/4kv d64 q1 b1 s512 bhsd-tma bool"


def tune(tmp_path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path / "triton"), "XDG_CACHE_HOME": str(tmp_path / "user")}
    command = [sys.executable, "-m", "prefetch_compiler.cli", "tune", *options]
    return subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=180, check=False
    )


COMPILE_ONLY = ("--spec", SMALL, "--compile-only", "--target", "sm_90", "--trials", "3", "--jobs", "2")


def test_compile_only_publishes_unmeasured_records_into_a_file_that_says_so(tmp_path: Path) -> None:
    reply = tune(tmp_path, *COMPILE_ONLY, "--json")
    assert reply.returncode == 0, reply.stderr
    events = [json.loads(line) for line in reply.stdout.splitlines()]
    names = [event["event"] for event in events]
    assert names[:2] == ["job_started", "key_started"] and names[-2:] == ["key_finished", "job_finished"]
    assert max(event["trial"] for event in events if event["event"] == "trial") == 3
    path = tmp_path / "nvidia_h200-132sm.unmeasured.json"
    assert events[-1]["database"] == str(path)
    (record,) = read(path).records
    assert not record.measured and record.evidence.modelled_us == pytest.approx(events[-2]["time_us"])
    assert record.evidence.toolchain.driver == "none"
    assert record.evidence.trials == 3

    again = tune(tmp_path, *COMPILE_ONLY, "--quiet")
    assert again.returncode == 0
    assert again.stdout.strip() == str(path)
    assert again.stderr == ""


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ((), "nothing to tune"),
        (("--spec", "llama"), "'llama' names no tuning key"),
        (("--spec", SMALL, "--compile-only", "--target", "sm_91"), "sm_90"),
        (("--spec", SMALL, "--target", "sm_90"), "add --compile-only"),
        (("--spec", SMALL, "--sampler", "simplex"), "simplex"),
        (("--preset", "llama-3-8b", "--batch", "1,x"), "--batch"),
        ((*COMPILE_ONLY, "--storage", "nosql://somewhere"), "nosql"),
        ((*COMPILE_ONLY, "--part", "3/2"), "K/N"),
        ((*COMPILE_ONLY, "--stale"), "--records"),
        (("--records", "nowhere.json"), "nowhere.json"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], why: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["tune", *options])
    assert isinstance(result.exception, KVPrefetchError)
    assert why in str(result.exception) and "\n" not in str(result.exception)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to measure on")
def test_without_a_gpu_it_says_what_can_be_done_instead() -> None:
    result = CliRunner().invoke(app, ["tune", "--spec", SMALL])
    assert "--compile-only --target" in str(result.exception)


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="kernels are not interpreted here")
def test_an_interpreting_process_is_told_to_stop(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["tune", *COMPILE_ONLY, "--out", str(tmp_path)])
    assert isinstance(result.exception, KVPrefetchError) and "TRITON_INTERPRET" in str(result.exception)


def test_keys_come_from_every_source_once() -> None:
    keys = keys_wanted(None, None, None, [SMALL, SMALL, "float16 4q/4kv d64 q1 b2 s512 bhsd-tma bool"], "1", "1", "f")
    assert [key.batch_bucket for key in keys] == [1, 2]


def test_the_keys_of_a_database_are_tuned_again(tmp_path: Path) -> None:
    key, other = (parse_key(f"float16 4q/4kv d64 q1 b{batch} s512 bhsd-tma bool") for batch in (1, 2))
    here = Toolchain(SPLIT_KV.name, hash_for(SPLIT_KV, key, CONFIG), "2.11.0", f"{triton_minor()}.0", "580")
    fresh, stale = measured(key, toolchain=here), measured(other, toolchain=replace(here, template_hash="0" * 64))

    def wanted(name: str, stale: bool) -> list[TuningKey]:
        return keys_wanted(None, None, None, [], "1", "1", "float16", records=tmp_path / name, stale=stale)

    publish(tmp_path / "both.json", Database(H200, (fresh, stale)))
    assert wanted("both.json", stale=False) == [key, other]
    assert wanted("both.json", stale=True) == [other]
    publish(tmp_path / "fresh.json", Database(H200, (fresh,)))
    with pytest.raises(NothingStaleError, match=r"fresh\.json has no stale record"):
        wanted("fresh.json", stale=True)


def test_the_parts_of_a_job_tune_every_key_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[list[TuningKey]] = []

    def run(keys: list[TuningKey], *_: object) -> None:
        given.append(keys)
        raise NothingToTuneError

    monkeypatch.setattr(cli, "_run", run)
    for part in ("1/2", "2/2"):
        CliRunner().invoke(app, ["tune", "--preset", "llama-3-8b", "--part", part])
    whole = preset_keys("llama-3-8b", [1, 16, 64], [4096, 32768])
    assert [len(keys) for keys in given] == [3, 3]
    assert sorted(key.name for part in given for key in part) == sorted(key.name for key in whole)
