"""``kvprefetch db``: what each command writes, prints and exits with; verification with stand-ins for pool and GPU."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prefetch_compiler import cli
from prefetch_compiler.config import KernelConfig, LoadPath, PrefetchKind
from prefetch_compiler.database.device_identity import identity_of
from prefetch_compiler.database.document import Database, encode
from prefetch_compiler.database.errors import describe
from prefetch_compiler.database.key import Alignment, MaskClass, TuningKey, key_of
from prefetch_compiler.database.record import DeviceIdentity, Toolchain, TuningRecord
from prefetch_compiler.database.schema import schema_bytes
from prefetch_compiler.database.store import create, database_files, publish, read
from prefetch_compiler.database.template_hash import present_hash
from prefetch_compiler.db_command import verify as verification
from prefetch_compiler.db_command.filters import for_sites
from prefetch_compiler.db_command.summary import summarise
from prefetch_compiler.db_command.verify import Means, profile_of, verify
from prefetch_compiler.device import INTERPRETER, REFERENCE_DEVICES
from prefetch_compiler.lower.precompile import CompiledKernel
from prefetch_compiler.select.lookup import NEIGHBOURS
from prefetch_compiler.tuning.capture import CapturedSite
from prefetch_compiler.tuning.protocol import FailureKind, FillTiming, TrialFailure, TrialRequest, TrialResult
from prefetch_compiler.tuning.sites import write_sites

from .examples import CONFIG, H100, H200, KEY, TOOLCHAIN, database, measured, modelled

SMALL, LARGE = KEY.at(batch=1, capacity=4096), KEY.at(batch=64, capacity=32768)
FLOAT16 = replace(KEY, dtype="float16", kv_dtype="float16")
FIRST = database(measured(KEY), measured(SMALL, median_us=10.0), modelled(FLOAT16))
SECOND = database(measured(KEY, median_us=15.0, trials=100), measured(LARGE))


@pytest.fixture
def first(tmp_path: Path) -> Path:
    publish(tmp_path / "first.json", FIRST)
    return tmp_path / "first.json"


@pytest.fixture
def second(tmp_path: Path) -> Path:
    publish(tmp_path / "second.json", SECOND)
    return tmp_path / "second.json"


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """``kvprefetch db ...`` in a wide terminal: exit code, standard output, standard error."""

    def run_command(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setenv("COLUMNS", "250")
        monkeypatch.setattr("sys.argv", ["kvprefetch", "db", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    return run_command


COMMANDS = ("show", "diff", "merge", "export", "prune", "verify", "declare", "path")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_json(run: Run, command: str) -> None:
    code, out, _ = run(command, "--help")
    assert code == 0
    assert "Usage:" in out and "--json" in out


@pytest.mark.parametrize(
    "arguments",
    [("show",), ("diff", "{}"), ("merge", "--out", "x.json"), ("prune", "--stale"), ("verify",)],
    ids=lambda a: a[0],
)
def test_a_file_that_is_not_there_is_told_in_a_line(run: Run, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    missing = tmp_path / "missing.json"
    command, *rest = (part.format(missing) for part in arguments)
    code, out, err = run(command, *rest, missing)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {missing}: no such tuning database") and err.count("\n") == 1


# show


def test_show_tells_coverage_gains_and_depths(run: Run, first: Path) -> None:
    code, out, _ = run("show", first)
    assert code == 0
    assert describe(H200) in out
    assert "3 records, 1 of them unmeasured" in out
    # 25 over 20 and 25 over 10: the root of 1.25 * 2.5; and 22 over 20 and over 10.
    assert "1.768x over the default, 1.556x over the best without prefetch" in out
    assert "prefetch depths that won: 0 in 2" in out
    (row,) = (line for line in out.splitlines() if "bfloat16 32q/8kv d128 q1 bhsd-tma bool" in line)
    assert "1, 16" in row and "4096" in row
    assert CONFIG.encode() not in out


def test_show_lists_records(run: Run, first: Path) -> None:
    _, out, _ = run("show", first, "--records")
    assert out.count(CONFIG.encode()) == 3
    assert "2.500" in out and "(10.0)" in out


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ((), [SMALL.name, KEY.name, FLOAT16.name]),
        (("--key", "b16"), [KEY.name, FLOAT16.name]),
        (("--key", "b16", "--key", "bfloat"), [KEY.name]),
        (("--dtype", "float16"), [FLOAT16.name]),
        (("--batch", 1), [SMALL.name]),
        (("--capacity", 512), []),
        (("--unmeasured",), [FLOAT16.name]),
        (("--measured", "--batch", 16), [KEY.name]),
    ],
)
def test_show_filters(run: Run, first: Path, options: tuple[object, ...], names: list[str]) -> None:
    code, out, _ = run("show", first, "--json", *options)
    shown = json.loads(out)
    assert code == 0
    assert [record["name"] for record in shown["records"]] == names
    assert shown["summary"]["records"] == len(names)
    assert run("show", first, "--records", *options)[0] == 0


def test_a_summary_of_nothing() -> None:
    empty = summarise(())
    assert (empty.records, empty.measured, empty.shapes, empty.depths) == (0, 0, (), {})
    assert empty.gain_over_default is None and empty.mean_ceiling_share is None


# diff and merge


def test_diff_tells_what_changed(run: Run, first: Path, second: Path) -> None:
    code, out, _ = run("diff", first, second)
    assert code == 0
    assert "1 added, 2 removed, 1 changed" in out
    assert "0.750" in out
    data = json.loads(run("diff", first, second, "--json")[1])
    assert [record["name"] for record in data["added"]] == [LARGE.name]
    assert [record["name"] for record in data["removed"]] == [SMALL.name, FLOAT16.name]
    assert [change["time_ratio"] for change in data["changed"]] == [0.75]
    assert run("diff", first, first)[1] == "0 added, 0 removed, 0 changed\n"


def test_merge_combines_files_and_what_is_there(run: Run, first: Path, second: Path, tmp_path: Path) -> None:
    out = tmp_path / "merged.json"
    assert run("merge", first, "--out", out)[:2] == (0, f"{out}: 3 records\n")
    code, printed, _ = run("merge", second, "--out", out, "--json")
    assert code == 0
    assert json.loads(printed) == {"path": str(out), "records": 4}
    assert read(out).records == (
        measured(SMALL, median_us=10.0),
        *SECOND.records,
        modelled(FLOAT16),
    )


def test_merge_refuses_other_devices_and_inadmissible_records(run: Run, first: Path, tmp_path: Path) -> None:
    publish(tmp_path / "h100.json", Database(H100, ()))
    code, _, err = run("merge", first, tmp_path / "h100.json", "--out", tmp_path / "merged.json")
    assert code == 2 and "different devices" in err
    publish(tmp_path / "bad.json", database(INADMISSIBLE))
    code, _, err = run("merge", tmp_path / "bad.json", "--out", tmp_path / "merged.json")
    assert code == 2 and "TMA" in err
    assert not (tmp_path / "merged.json").exists()


# export and prune


@pytest.fixture
def sites(tmp_path: Path) -> Callable[..., Path]:
    """A file of sites, as ``kvprefetch capture`` writes it."""

    def written(*keys: TuningKey) -> Path:
        write_sites(tmp_path / "sites", [CapturedSite(key, 32, "llama", "layers.0") for key in keys])
        return tmp_path / "sites"

    return written


def test_export_writes_what_a_model_needs(
    run: Run, first: Path, second: Path, tmp_path: Path, sites: Callable[..., Path]
) -> None:
    out = tmp_path / "model.json"
    assert run("export", first, "--sites", sites(SMALL), "--out", out)[:2] == (0, f"{out}: 1 records\n")
    assert read(out) == database(measured(SMALL, median_us=10.0))
    code, _, err = run("export", second, "--sites", sites(SMALL), "--out", out)
    assert code == 2 and "--force" in err
    code, _, err = run("export", second, "--sites", sites(LARGE, FLOAT16), "--out", out, "--force")
    assert (code, err) == (1, f"no record: {FLOAT16.name}\n")
    assert read(out) == database(measured(LARGE))


def test_export_keeps_all_that_lookup_may_take(run: Run, tmp_path: Path, sites: Callable[..., Path]) -> None:
    around = [KEY.at(batch=batch, capacity=size) for batch in (4, 8, 16, 32, 64) for size in (1024, 2048, 4096, 8192)]
    publish(tmp_path / "all.json", database(*map(measured, around)))
    run("export", tmp_path / "all.json", "--sites", sites(KEY), "--out", tmp_path / "model.json")
    kept = {(one.key.batch_bucket, one.key.capacity_bucket) for one in read(tmp_path / "model.json").records}
    steps = {(batch, size) for batch, size in NEIGHBOURS} | {(0, 0)}
    assert kept == {(_stepped(16, batch), _stepped(4096, size)) for batch, size in steps}


def _stepped(size: int, step: int) -> int:
    return round(size * 2.0**step)


def test_neighbours_are_buckets_of_the_same_key() -> None:
    around = [KEY.at(batch=batch, capacity=size) for batch in (2, 4, 8, 16, 32) for size in (1024, 2048, 4096, 8192)]
    everything = database(*map(measured, around), measured(FLOAT16))
    wanted = KEY.at(batch=8, capacity=4096)

    def kept(distance: int) -> set[tuple[int, int]]:
        records = for_sites(everything, [wanted], distance).records
        return {(record.key.batch_bucket, record.key.capacity_bucket) for record in records}

    assert kept(0) == {(8, 4096)}
    assert kept(1) == {(batch, size) for batch in (4, 8, 16) for size in (2048, 4096, 8192)}
    assert len(for_sites(everything, [wanted], 5).records) == len(around)


def test_prune_drops_stale_and_unmeasured_records(run: Run, tmp_path: Path) -> None:
    present = _present_toolchain()
    fresh, stale = measured(SMALL, toolchain=present), measured(KEY)
    unmeasured = replace(modelled(LARGE), evidence=replace(modelled(LARGE).evidence, toolchain=present))
    path, out = tmp_path / "h200.json", tmp_path / "pruned.json"
    publish(path, database(fresh, stale, unmeasured))
    assert run("prune", path, "--stale", "--out", out)[0] == 0
    assert set(read(out).records) == {fresh, unmeasured}
    assert len(read(path).records) == 3
    assert run("prune", path, "--unmeasured")[:2] == (0, f"{path}: 2 records\n")
    assert set(read(path).records) == {fresh, stale}
    assert run("prune", path, "--stale", "--unmeasured")[0] == 0
    assert set(read(path).records) == {fresh}
    assert run("prune", path)[0] == 2


def test_prune_keeps_the_best_evidenced_of_each_key(run: Run, tmp_path: Path) -> None:
    better, worse = (measured(SMALL, toolchain=_present_toolchain(), trials=trials) for trials in (30, 20))
    stale = measured(SMALL)
    path = tmp_path / "h200.json"
    create(path, database(better, stale))
    other = replace(worse, config=replace(worse.config, prefetch_depth=1, prefetch_kind=PrefetchKind.LINE_KEEP))
    other = replace(other, evidence=replace(other.evidence, toolchain=_toolchain_of(other.config)))
    create(tmp_path / "other.json", database(other))
    assert run("merge", path, tmp_path / "other.json", "--out", tmp_path / "all.json")[0] == 0
    assert len(read(tmp_path / "all.json").records) == 3
    assert run("prune", tmp_path / "all.json", "--outranked")[0] == 0
    assert set(read(tmp_path / "all.json").records) == {better, stale}


def _present_toolchain() -> Toolchain:
    return _toolchain_of(KernelConfig(32, 1, 4, 2))


def _toolchain_of(config: KernelConfig) -> Toolchain:
    triton = pytest.importorskip("triton")
    present = present_hash(TOOLCHAIN.template, SMALL, config)
    assert present is not None
    return replace(TOOLCHAIN, template_hash=present, triton=triton.__version__)


def test_a_family_fallback_is_declared_and_taken_back(run: Run, first: Path) -> None:
    assert run("declare", first, "--family-fallback")[:2] == (0, f"{first}: 3 records\n")
    assert read(first) == replace(FIRST, family_fallback=True)
    assert "declared as a fallback" in run("show", first)[1]
    assert run("declare", first, "--no-family-fallback")[0] == 0
    assert read(first) == FIRST


# path and schema


def test_path_lists_the_places_in_order(run: Run, first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, missing = tmp_path / "folder", tmp_path / "missing"
    publish(folder / "good.json", FIRST)
    (folder / "bad.json").write_bytes(encode(FIRST)[:-9])
    monkeypatch.setenv("KVPREFETCH_TUNING_DB", f"{folder}{os.pathsep}{missing}")
    code, out, _ = run("path")
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == f"1. {folder}"
    assert lines[1].startswith(f"   not used: {folder}/bad.json: not a valid tuning database")
    assert lines[2] == f"   good.json: 3 records, {describe(H200)}"
    assert lines[3] == f"2. {missing} (not there)"
    data = json.loads(run("path", "--json")[1])
    assert [one["path"] for one in data][:2] == [str(folder), str(missing)]
    assert [file["records"] for file in data[0]["files"]] == [None, 3]
    assert data[-1]["path"].endswith("tuning_db") and data[-1]["exists"]


def test_schema_prints_the_published_file(run: Run) -> None:
    assert run("schema")[:2] == (0, schema_bytes().decode())


# verify

INADMISSIBLE = measured(replace(KEY, alignment=Alignment.NONE), config=replace(CONFIG, load_path=LoadPath.TMA))
H200_PROFILE = REFERENCE_DEVICES[90]
GOOD_KERNEL = CompiledKernel("decode", 1000, 128, 0)


class FakePool:
    """A compiler whose answers are known."""

    def __init__(self, answer: Callable[[TuningKey, KernelConfig], Any]) -> None:
        self._answer = answer
        self.asked: list[tuple[TuningKey, KernelConfig]] = []

    def submit(self, key: TuningKey, config: KernelConfig) -> Future[Any]:
        self.asked.append((key, config))
        future: Future[Any] = Future()
        future.set_result(self._answer(key, config))
        return future

    def close(self) -> None: ...


class FakeGpu:
    """A measurer whose answers are known."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer
        self.requests: list[TrialRequest] = []

    def trial(self, request: TrialRequest) -> Any:
        self.requests.append(request)
        return self._answer

    def finals(self, key: TuningKey, configs: tuple[KernelConfig, ...], seed: int) -> Any:
        raise AssertionError("verification needs no finals")

    def close(self) -> None: ...


def problems_of(stored: Database, means: Means) -> list[str | None]:
    return [one.problem for one in verify(stored, means)]


def test_what_cannot_run_there_is_found_without_compiling() -> None:
    pool = FakePool(lambda key, config: (GOOD_KERNEL,))
    found = problems_of(database(INADMISSIBLE, measured(SMALL)), Means(H200_PROFILE, pool))
    assert found[0] is None and str(found[1]).startswith("inadmissible: TMA loads need K and V strides")
    assert pool.asked == [(SMALL, CONFIG)]


@pytest.mark.parametrize(
    ("compiled", "problem"),
    [
        ((GOOD_KERNEL,), None),
        ((replace(GOOD_KERNEL, shared_bytes=232_449),), "resources: decode takes 232449 bytes of shared memory"),
        ((GOOD_KERNEL, replace(GOOD_KERNEL, name="merge", spill_bytes=4000)), "resources: merge spills 4000 bytes"),
        (TrialFailure(FailureKind.COMPILE_ERROR, "ptxas said no", 1.0), "compile_error: ptxas said no"),
    ],
)
def test_what_does_not_compile_or_fit_is_found(compiled: Any, problem: str | None) -> None:
    fast = replace(CONFIG, num_warps=8)

    def answer(key: TuningKey, config: KernelConfig) -> Any:
        return compiled if config == fast else (GOOD_KERNEL,)

    (found,) = problems_of(database(measured(config=fast)), Means(H200_PROFILE, FakePool(answer)))
    assert found is None if problem is None else str(found).startswith(problem)


def test_a_kernel_may_spill_what_the_default_spills() -> None:
    """The search admits it, so that it may be recorded."""
    spilling = (replace(GOOD_KERNEL, spill_bytes=4000),)
    assert problems_of(database(measured()), Means(H200_PROFILE, FakePool(lambda key, config: spilling))) == [None]


def result(median_us: float) -> TrialResult:
    return TrialResult((FillTiming(4096, 1 << 20, median_us, 1.0),), ((median_us,),), 0.5)


@pytest.mark.parametrize(
    ("outcome", "tolerance", "problem"),
    [
        (result(20.0), None, None),
        (result(2000.0), None, None),
        (result(24.0), 1.25, None),
        (result(30.0), 1.25, "it takes 1.50 times what was recorded; the limit is 1.25"),
        (TrialFailure(FailureKind.WRONG, "error 3.0 of its bound", 1.0), None, "wrong: error 3.0 of its bound"),
        (TrialFailure(FailureKind.CRASH, "illegal access", 1.0), 1.25, "crash: illegal access"),
    ],
)
def test_on_its_gpu_a_record_is_run_again(outcome: Any, tolerance: float | None, problem: str | None) -> None:
    gpu = FakeGpu(outcome)
    (found,) = verify(database(measured(median_us=20.0)), Means(H200_PROFILE, None, gpu, tolerance))
    assert found.problem == problem
    (request,) = gpu.requests
    assert (request.key, request.config) == (KEY, CONFIG)
    # A seed that neither the trials (0) nor the finals of the job have seen.
    assert request.seed not in (0, 10_000)


class Breaking:
    """A compiler, or a measurer, that breaks over one key, as no record should make it do."""

    def __init__(self, key: TuningKey, whole: Any) -> None:
        self._key, self._whole = key, whole

    def submit(self, key: TuningKey, config: KernelConfig) -> Future[Any]:
        if key == self._key:
            raise KeyError("on purpose")
        found: Future[Any] = self._whole.submit(key, config)
        return found

    def trial(self, request: TrialRequest) -> Any:
        if request.key == self._key:
            raise RuntimeError("on purpose")
        return self._whole.trial(request)


@pytest.mark.parametrize("part", ["compiler", "measurer", "predicate"])
def test_a_record_that_cannot_be_checked_does_not_keep_the_others_from_it(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, gpu = FakePool(lambda key, config: (GOOD_KERNEL,)), FakeGpu(result(20.0))
    compiler: Any = Breaking(SMALL, pool) if part == "compiler" else pool
    measurer: Any = Breaking(SMALL, gpu) if part == "measurer" else gpu
    if part == "predicate":
        real = verification.why_inadmissible

        def predicate(spec: Any, *more: Any) -> str | None:
            if key_of(spec) == SMALL:
                raise ZeroDivisionError("on purpose")
            return real(spec, *more)

        monkeypatch.setattr(verification, "why_inadmissible", predicate)
    stored = database(measured(SMALL), measured(KEY), measured(FLOAT16))
    found = {one.record.key: one.problem for one in verify(stored, Means(H200_PROFILE, compiler, measurer))}
    assert found.keys() == {SMALL, KEY, FLOAT16}
    problem = str(found.pop(SMALL))
    assert "cannot be checked" in problem and "on purpose" in problem
    assert list(found.values()) == [None, None]


def test_a_record_that_is_inadmissible_never_runs() -> None:
    gpu = FakeGpu(result(20.0))
    verify(database(INADMISSIBLE), Means(H200_PROFILE, None, gpu))
    assert gpu.requests == []


@pytest.mark.parametrize(
    ("device", "sm_count"),
    [(H200, 132), (H100, 132), (DeviceIdentity("NVIDIA GH200", "cuda", 90, 144), 144)],
)
def test_limits_come_from_the_architecture(device: DeviceIdentity, sm_count: int) -> None:
    profile = profile_of(device)
    assert profile is not None
    assert (profile.name, profile.sm_count, profile.shared_memory_bytes) == (device.name, sm_count, 232_448)


@pytest.mark.parametrize(
    "device", [DeviceIdentity("AMD Instinct MI300X", "hip", 0, 304), DeviceIdentity("NVIDIA T4", "cuda", 75, 40)]
)
def test_a_device_without_known_limits_is_not_guessed(run: Run, tmp_path: Path, device: DeviceIdentity) -> None:
    path = tmp_path / "other.json"
    publish(path, Database(device, ()))
    code, _, err = run("verify", path)
    assert code == 2 and describe(device) in err


def test_timing_needs_the_gpu(run: Run, first: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "matching_gpu", lambda device: None)
    code, _, err = run("verify", first, "--timing", "--no-compile")
    assert code == 2 and "--timing" in err and describe(H200) in err


def test_verify_exits_with_1_if_a_record_fails(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "matching_gpu", lambda device: None)
    path = tmp_path / "h200.json"
    publish(path, database(measured(SMALL, toolchain=_present_toolchain()), measured(KEY)))
    code, out, _ = run("verify", path, "--no-compile")
    assert code == 0
    assert "2 records checked (the file, admissible), 0 failed" in out and "1 are stale" in out
    publish(path, database(INADMISSIBLE))
    code, out, _ = run("verify", path, "--no-compile")
    assert code == 1
    assert INADMISSIBLE.key.name in out and "TMA loads need" in out and "3 records checked" in out
    code, out, _ = run("verify", path, "--no-compile", "--json")
    data = json.loads(out)
    assert (code, data["records"], data["failed"], data["stale"], data["compiled"]) == (1, 3, 1, 2, False)
    assert [one["problem"] is None for one in data["checked"]].count(False) == 1


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="only in a process that interprets")
def test_verify_cannot_compile_where_kernels_are_interpreted(run: Run, first: Path) -> None:
    code, _, err = run("verify", first)
    assert code == 2 and "TRITON_INTERPRET" in err


def test_verify_compiles_for_a_gpu_that_is_not_here(tmp_path: Path) -> None:
    """The real pool, in a process of its own that does not interpret: shipped records, which compile within the limits
    of their GPU, and one that cannot run there. KVPREFETCH_EVERY_RECORD=1 is for every one that ships."""
    pytest.importorskip("triton")
    path = tmp_path / "h200.json"
    (shipped,) = database_files(Path(__file__).parents[2] / "tuning_db")
    stored = read(shipped)
    records = stored.records if os.environ.get("KVPREFETCH_EVERY_RECORD") else stored.records[::69]
    assert len(records) >= 3
    publish(path, Database(stored.device, (*records, INADMISSIBLE)))
    command = [sys.executable, "-m", "prefetch_compiler.cli", "db", "verify", str(path), "--json", "--jobs", "1"]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["CUDA_VISIBLE_DEVICES"] = ""
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200, check=False)
    assert finished.returncode == 1, finished.stderr
    data = json.loads(finished.stdout)
    assert (data["records"], data["failed"], data["measured"]) == (len(records) + 1, 1, False)
    assert data["compiled"] is True
    (failed,) = (one["key"] for one in data["checked"] if one["problem"] is not None)
    assert failed == INADMISSIBLE.key.name


def in_interpreter(key: TuningKey, **changes: Any) -> TuningRecord:
    return measured(key, toolchain=_present_toolchain(), config=replace(KernelConfig(16, 2, 1, 2), **changes))


TINY = replace(
    KEY, dtype="float32", kv_dtype="float32", group=2, kv_heads=1, head_dim=16, value_dim=16, batch_bucket=1,
    capacity_bucket=32, mask=MaskClass.NONE,
)  # fmt: skip


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="only in a process that interprets")
def test_verify_runs_every_record_where_kernels_are_interpreted_and_keeps_a_report(run: Run, tmp_path: Path) -> None:
    """The real worker, the real kernels; one record cannot run, which does not keep the next from it."""
    path, report = tmp_path / "interpreter.json", tmp_path / "kept" / "report"
    report.parent.mkdir()
    bad = in_interpreter(replace(TINY, alignment=Alignment.NONE), load_path=LoadPath.TMA)
    publish(
        path, Database(identity_of(INTERPRETER), (bad, in_interpreter(TINY), in_interpreter(replace(TINY, group=1))))
    )
    code, out, err = run("verify", path, "--report", report)
    assert code == 1, err
    assert "3 records checked (the file, admissible, run on the GPU), 1 failed" in out
    data = json.loads(report.with_suffix(".json").read_text())
    assert (data["records"], data["checked_records"], data["complete"], data["failed"]) == (3, 3, True, 1)
    assert data["steps"] == {"compiled": False, "ran": True, "timed": False}
    assert data["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    errors = {one["key"]: one["error"] for one in data["checked"]}
    assert errors.pop(bad.key.name) is None
    assert len(errors) == 2 and all(0 < error <= 1 for error in errors.values())
    text = report.with_suffix(".txt").read_text()
    assert "3 of 3 records checked" in text and "1 failed" in text
    assert all(record.key.name in text for record in read(path).records)
    assert sorted(one.name for one in report.parent.iterdir()) == ["report.json", "report.txt"]


def test_a_verification_that_is_ended_leaves_what_it_had_found(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, "matching_gpu", lambda device: None)
    monkeypatch.setattr(verification, "profile_of", lambda device: H200_PROFILE)
    path, report = tmp_path / "h200.json", tmp_path / "report"
    publish(path, database(*(measured(KEY.at(batch=1, capacity=1 << n)) for n in range(25))))
    checked, real = [], verification._check

    def ended(record: TuningRecord, *more: Any) -> Any:
        checked.append(record)
        if len(checked) == 23:
            raise KeyboardInterrupt
        return real(record, *more)

    monkeypatch.setattr(verification, "_check", ended)
    with contextlib.suppress(KeyboardInterrupt):
        run("verify", path, "--no-compile", "--report", report)
    data = json.loads(report.with_suffix(".json").read_text())
    assert (data["records"], data["checked_records"], data["complete"]) == (25, 20, False)
    assert "20 of 25 records checked" in report.with_suffix(".txt").read_text()


def test_a_report_that_cannot_be_kept_is_told_before_anything_runs(
    run: Run, first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, "matching_gpu", lambda device: None)
    monkeypatch.setattr(verification, "_check", lambda *_: pytest.fail("it ran"))
    code, _, err = run("verify", first, "--no-compile", "--report", tmp_path / "nowhere" / "report")
    assert code == 2 and "the report cannot be written" in err
