"""What cannot run is kept out twice, when a record is written and when it is looked up, by one predicate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from prefetch_compiler.templates.manifest import LATENT, SPLIT_KV

from prefetch_compiler.config import KernelConfig, LoadPath
from prefetch_compiler.database.device_identity import identity_of
from prefetch_compiler.database.document import Database, decode, encode
from prefetch_compiler.database.errors import InadmissibleRecordError
from prefetch_compiler.database.key import key_of
from prefetch_compiler.database.overlay import Overlays
from prefetch_compiler.database.record import Toolchain, TuningRecord
from prefetch_compiler.database.rules import problem
from prefetch_compiler.database.store import publish, read
from prefetch_compiler.database.template_hash import hash_for
from prefetch_compiler.db_command import cli
from prefetch_compiler.db_command import verify as verification
from prefetch_compiler.device import INTERPRETER, REFERENCE_DEVICES, DeviceProfile
from prefetch_compiler.errors import InadmissibleConfigError
from prefetch_compiler.report import Verdict
from prefetch_compiler.select import admissible, heuristic, lookup
from prefetch_compiler.select.admissible import why_inadmissible
from prefetch_compiler.select.candidates import triton_minor
from prefetch_compiler.select.footprint import shared_memory_estimate_bytes
from prefetch_compiler.select.selection import select
from prefetch_compiler.spec import AttentionSpec
from prefetch_compiler.tuning import feasible, job
from prefetch_compiler.tuning import verification as results

from .examples import H200, KEY, configs, measured
from .specs import latent_specs, specs

ON_H200 = REFERENCE_DEVICES[90]
HIP = DeviceProfile("AMD Instinct MI300X", "hip", 0, 304, 4 << 20, 65_536)
# Shared memory in small steps, so that what just fits and what just does not are met.
profiles = st.builds(
    lambda profile, share: replace(profile, shared_memory_bytes=profile.shared_memory_bytes * share // 16),
    st.sampled_from((*REFERENCE_DEVICES.values(), INTERPRETER, HIP)),
    st.integers(1, 16),
)
paths = st.sampled_from((LoadPath.POINTER, LoadPath.TMA))


def record_of(spec: AttentionSpec, config: KernelConfig, batch_step: int = 0, capacity_step: int = 0) -> TuningRecord:
    """For the key of ``spec``, or for one some powers of two away from it."""
    key = key_of(spec)
    key = key.at(
        batch=max(1, int(key.batch_bucket * 2.0**batch_step)),
        capacity=max(1, int(key.capacity_bucket * 2.0**capacity_step)),
    )
    template = LATENT if spec.rope_dim else SPLIT_KV
    toolchain = Toolchain(template.name, hash_for(template, key, config), "2.11.0", f"{triton_minor()}.0", "580")
    return measured(key, config=config, toolchain=toolchain)


def test_there_is_one_predicate() -> None:
    for module in (job, lookup, heuristic, feasible, verification, results):
        assert module.why_inadmissible is admissible.why_inadmissible, module.__name__


@settings(max_examples=150, deadline=None)
@given(specs() | latent_specs(), configs, paths, profiles, st.integers(-1, 1), st.integers(-1, 1), st.booleans())
def test_whatever_a_file_says_what_is_selected_can_run(
    spec: AttentionSpec, config: KernelConfig, path: LoadPath, profile: DeviceProfile, batch: int, capacity: int,
    of_family: bool,
) -> None:  # fmt: skip
    """Records that were never checked: forged, or of another version's idea of what can run."""
    device = replace(identity_of(profile), name="another") if of_family else identity_of(profile)
    record = record_of(spec, replace(config, load_path=path), batch, capacity)
    assume(problem(record) is None)  # such as of pages that are all one: no file holds it
    stored = Database(device, (record,), of_family)
    try:
        found = select(spec, profile, Overlays(((decode(encode(stored)),),)))
    except InadmissibleConfigError:
        return  # there is nothing at all that fits so little shared memory
    assert why_inadmissible(spec, found.config, profile) is None
    assert shared_memory_estimate_bytes(spec, found.config) <= profile.shared_memory_bytes


@settings(max_examples=100, deadline=None)
@given(specs() | latent_specs(), configs, paths, profiles, st.data())
def test_what_may_be_written_serves_its_bucket_from_edge_to_edge(
    spec: AttentionSpec, config: KernelConfig, path: LoadPath, profile: DeviceProfile, data: st.DataObject
) -> None:
    """And what may not be written is not used at the corner that it was refused for."""
    corner = key_of(spec).spec()
    record = record_of(spec, replace(config, load_path=path))
    databases = Overlays(((Database(identity_of(profile), (record,)),),))
    refused = why_inadmissible(record.key.spec(), record.config, profile)
    try:
        at_corner = select(corner, profile, databases)
    except InadmissibleConfigError:
        assert refused is not None
        return
    assert (at_corner.verdict is Verdict.EXACT) == (refused is None)
    if refused is None:
        edges = {
            name: data.draw(st.sampled_from(sorted({size, max(size // 2 + 1, size - 1), size // 2 + 1})))
            for name in ("batch", "q_len", "kv_len")
            if (size := getattr(corner, name)) > 1 and not (name == "kv_len" and corner.page_size)
        }
        assert select(replace(corner, **edges), profile, databases).verdict is Verdict.EXACT


BIG = KernelConfig(256, 4, 4, 8)


def _publish_by_job(path: Path, record: TuningRecord) -> None:
    checker: Any = object.__new__(job._Job)
    checker.profile = ON_H200
    publish(path, Database(H200, (record,)), checker._why_not)


def _publish_by_merge(path: Path, record: TuningRecord) -> None:
    merged = Database(H200, (record,))
    publish(path, merged, cli._admissibility(path, merged))


@pytest.mark.parametrize("way", [_publish_by_job, _publish_by_merge])
def test_what_cannot_run_is_not_written(way: Any, tmp_path: Path) -> None:
    good, bad = record_of(KEY.spec(), KernelConfig(64, 4, 4, 3)), record_of(KEY.spec(), BIG)
    way(tmp_path / "h200.json", good)
    with pytest.raises(InadmissibleRecordError, match="bytes of shared memory are needed"):
        way(tmp_path / "h200.json", bad)
    assert read(tmp_path / "h200.json").records == (good,)
