"""Databases behind torch.compile: used, reported, and never a user's problem."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from prefetch_compiler.templates.manifest import SPLIT_KV
from torch import Tensor
from torch._dynamo.exc import BackendCompilerFailed
from torch.nn import functional

from prefetch_compiler.config import KernelConfig, Merge
from prefetch_compiler.database import overlay
from prefetch_compiler.database.device_identity import identity_of
from prefetch_compiler.database.document import Database, encode
from prefetch_compiler.database.errors import CorruptDatabaseError, MissingDatabaseError
from prefetch_compiler.database.key import TuningKey, key_of
from prefetch_compiler.database.overlay import NO_DATABASES, Overlays
from prefetch_compiler.database.record import Toolchain, TuningRecord
from prefetch_compiler.database.store import database_files
from prefetch_compiler.database.template_hash import template_hash
from prefetch_compiler.device import profile
from prefetch_compiler.lower import rewrite
from prefetch_compiler.lower.graph_pass import LoweringPass
from prefetch_compiler.lower.rewrite import Lowering
from prefetch_compiler.report import Report, SiteReport, Verdict, collect_reports
from prefetch_compiler.select.candidates import triton_minor
from prefetch_compiler.select.heuristic import choose

from ..contract.uncompiled import graphs_run_uncompiled
from .examples import measured

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PROFILE = profile(DEVICE)
CONFIG = KernelConfig(16, 2, 1, 2, merge=Merge.INPLACE)
# The site has no mask, and is in float32: none of the template's other features.
FRESH = Toolchain(
    SPLIT_KV.name, template_hash(SPLIT_KV, frozenset({"chains"})), "2.11.0", f"{triton_minor()}.0", "none"
)
STALE = replace(FRESH, triton="2.1.0")


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)


def operands() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = ((2, 4, 1, 16), (2, 2, 50, 16), (2, 2, 50, 16))
    q, k, v = (torch.randn(shape, generator=generator).to(DEVICE) for shape in shapes)
    return q, k, v


@pytest.fixture(autouse=True)
def _afresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(overlay, "_warned", set())
    overlay.forget()
    rewrite.why_wrong.cache_clear()
    yield
    torch._dynamo.reset()


def run(**options: Any) -> SiteReport:
    """Compile afresh, and compare with eager; the site."""
    torch._dynamo.reset()
    ours = {f"kvprefetch.{name}": value for name, value in options.items()}
    q, k, v = operands()
    with graphs_run_uncompiled(), collect_reports() as report, torch.no_grad():
        result = torch.compile(attend, backend="kvprefetch", options=ours)(q, k, v)
    torch.testing.assert_close(result, attend(q, k, v))
    (site,) = report.sites
    return site


@pytest.fixture(scope="module")
def key() -> TuningKey:
    site = run()
    assert site.verdict is Verdict.HEURISTIC
    assert site.spec is not None
    return key_of(site.spec)


def put(path: Path, *records: TuningRecord) -> Path:
    path.write_bytes(encode(Database(identity_of(PROFILE), records)))
    return path


@pytest.fixture
def tuned(tmp_path: Path, key: TuningKey) -> Path:
    return put(tmp_path / "tuned.json", measured(key, config=CONFIG, toolchain=FRESH))


def test_a_record_is_used_and_reported(tuned: Path, key: TuningKey) -> None:
    for paths in (tuned, str(tuned), [tuned], (str(tuned.parent),)):
        site = run(tuning_db=paths)
        assert (site.verdict, site.config, site.record) == (Verdict.EXACT, CONFIG, key.name)
        assert key.name in site.reason
        assert site.to_dict()["record"] == key.name


def test_a_record_named_by_the_environment(tuned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVPREFETCH_TUNING_DB", str(tuned))
    assert run(strict=True).verdict is Verdict.EXACT


def test_a_reset_reads_files_again(tuned: Path, key: TuningKey) -> None:
    assert run(tuning_db=tuned).config == CONFIG
    other = replace(CONFIG, num_splits=3)
    status = tuned.stat()
    put(tuned, measured(key, config=other, toolchain=FRESH))
    assert tuned.stat().st_size == status.st_size
    assert run(tuning_db=tuned).config == other


def _damaged_shipped(flip: int | None, cut: int | None) -> bytes:
    folder = overlay.shipped_folder()
    assert folder is not None
    data = bytearray(database_files(folder)[0].read_bytes())
    if flip is not None:
        data[flip] ^= 1
    return bytes(data[:cut])


@pytest.mark.parametrize("content", [b"", _damaged_shipped(flip=100_000, cut=None), b"[" * 5000])
def test_a_corrupt_file_costs_one_warning(content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bad = tmp_path / "bad.json"
    bad.write_bytes(content)
    caplog.set_level(logging.WARNING, "prefetch_compiler")
    for _ in range(2):
        site = run(tuning_db=bad)
        assert site.verdict is Verdict.HEURISTIC
    ours = [record for record in caplog.records if record.name == "prefetch_compiler"]
    assert len(ours) == 1
    assert str(bad) in ours[0].getMessage()


def test_nothing_but_corrupt_files_and_inductor_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The shipped file with a flipped bit, the user's own cut off: compiled to the end, right, two files, two
    warnings."""
    shipped, own = tmp_path / "shipped" / "h200.json", tmp_path / "kvprefetch" / "tuning_db" / "own.json"
    for path, content in ((shipped, _damaged_shipped(5000, None)), (own, _damaged_shipped(None, 9000))):
        path.parent.mkdir(parents=True, mode=0o700)
        path.write_bytes(content)
    monkeypatch.setattr(overlay, "shipped_folder", lambda: shipped.parent)
    monkeypatch.setattr(overlay, "user_folder", lambda: own.parent)
    caplog.set_level(logging.WARNING, "prefetch_compiler")
    q, k, v = operands()
    with collect_reports() as report, torch.no_grad():
        result = torch.compile(attend, backend="kvprefetch", fullgraph=True)(q, k, v)
    torch.testing.assert_close(result, attend(q, k, v))
    assert [site.verdict for site in report.sites] == [Verdict.HEURISTIC]
    assert [str(path) in message for path, message in zip((own, shipped), caplog.messages, strict=True)] == [True, True]


def test_under_strict_it_is_an_error(tmp_path: Path) -> None:
    bad = tmp_path / "bad.json"
    for error in (MissingDatabaseError, CorruptDatabaseError):
        with pytest.raises(BackendCompilerFailed) as raised:
            run(tuning_db=bad, strict=True)
        assert isinstance(raised.value.inner_exception, error)
        bad.write_bytes(b"{")


def test_whatever_fails_while_loading_is_no_users_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("on purpose")

    monkeypatch.setattr(overlay, "places", broken)
    assert run().verdict is Verdict.HEURISTIC


def test_a_config_that_does_not_compile_gives_way(tuned: Path, key: TuningKey, monkeypatch: pytest.MonkeyPatch) -> None:
    def precompile(spec: Any, config: KernelConfig, *_: Any) -> None:
        if config == CONFIG:
            raise RuntimeError("out of resource")

    monkeypatch.setattr(rewrite, "precompile", precompile)
    site = run(tuning_db=tuned, strict=True)
    assert site.spec is not None
    assert (site.verdict, site.config, site.record) == (Verdict.HEURISTIC, choose(site.spec, PROFILE), None)
    assert "does not compile here" in site.reason
    assert "out of resource" in site.reason


@pytest.fixture
def stale(tmp_path: Path, key: TuningKey) -> Path:
    return put(tmp_path / "stale.json", measured(key, config=CONFIG, toolchain=STALE))


def test_a_stale_record_that_is_right_is_used_under_strict(stale: Path) -> None:
    site = run(tuning_db=stale, strict=True)
    assert (site.verdict, site.config) == (Verdict.EXACT, CONFIG)
    assert "stale: tuned with Triton 2.1" in site.reason
    assert rewrite.why_wrong.cache_info().misses == 1


def test_a_stale_record_that_is_wrong_is_not(stale: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked = []

    def why_wrong(spec: Any, config: KernelConfig, device: torch.device) -> str:
        checked.append((config, device.type))
        return "it is wrong"

    monkeypatch.setattr(rewrite, "why_wrong", why_wrong)
    site = run(tuning_db=stale, strict=True)
    assert site.verdict is Verdict.HEURISTIC
    assert "stale: tuned with Triton 2.1" in site.reason
    assert "it is wrong" in site.reason
    assert checked == [(CONFIG, DEVICE.type)]
    assert run(tuning_db=stale).verdict is Verdict.EXACT
    assert len(checked) == 1


def test_a_fresh_record_is_not_checked(tuned: Path) -> None:
    run(tuning_db=tuned, strict=True)
    assert rewrite.why_wrong.cache_info().misses == 0


def test_unmeasured_records_are_an_option(tmp_path: Path, key: TuningKey) -> None:
    record = measured(key, config=CONFIG, toolchain=FRESH)
    evidence = replace(record.evidence, measurement=None, modelled_us=1.0)
    path = put(tmp_path / "ranked.json", replace(record, evidence=evidence))
    assert run(tuning_db=path).verdict is Verdict.HEURISTIC
    assert run(tuning_db=path, allow_unmeasured=True).verdict is Verdict.EXACT


def test_compile_caches_tell_databases_apart(key: TuningKey) -> None:
    """Inductor keys its cache of compiled graphs by the pass's uuid too."""

    def uuid(databases: Overlays, **more: Any) -> Any:
        return LoweringPass(Lowering({}, False, databases, **more)).uuid()

    database = Database(identity_of(PROFILE), (measured(key, config=CONFIG, toolchain=FRESH),))
    one, alike, other = Overlays(((database,),)), Overlays(((database,),)), NO_DATABASES
    assert uuid(one) == uuid(alike)
    assert uuid(one) != uuid(other)
    assert uuid(one) != uuid(one, allow_unmeasured=True)


def test_an_explained_report_has_the_digest(tuned: Path) -> None:
    import prefetch_compiler

    options = {"kvprefetch.tuning_db": tuned}
    with graphs_run_uncompiled():
        report: Report = prefetch_compiler.explain(attend, *operands(), options=options)
    assert report.digest == prefetch_compiler.selection_digest(options)
    assert report.to_dict()["selection_digest"] == report.digest
    assert report.digest != prefetch_compiler.selection_digest()
