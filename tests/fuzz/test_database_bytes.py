"""Whatever the bytes, decode gives a database or a DatabaseError. KVPREFETCH_FUZZ_EXAMPLES says how many of each."""

from __future__ import annotations

import json
import os
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefetch_compiler.database.document import decode, encode
from prefetch_compiler.database.errors import DatabaseError, describe

from ..database.examples import KEY, database, measured, modelled
from .repaired import with_digest

EXAMPLE = encode(database(measured(), modelled(KEY.at(batch=1, capacity=512))))
fuzz = settings(
    max_examples=int(os.environ.get("KVPREFETCH_FUZZ_EXAMPLES", "500")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


def survives(data: bytes) -> None:
    """Either an error of ours, or a database that is written as something which is read as the same."""
    try:
        found = decode(data, "fuzz.json")
    except DatabaseError as error:
        assert str(error).startswith("fuzz.json: ")
        assert len(str(error)) < 1000
        assert str(error).isprintable()
        return
    assert decode(encode(found)) == found
    assert describe(found.device)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(("cuda", "growing", "2026-01-31", "3.6.0", "float16", "none", 1, 2, 64, 4096, -0.0, 1e300)),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(("key", "config", "records", "schema_version", "a")), inner, max_size=4)
    ),
    max_leaves=12,
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for name, item in items for place in _places(item, (*path, name)))]


PLACES = _places(json.loads(EXAMPLE))[1:]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    plain = json.loads(EXAMPLE)
    for path in draw(st.lists(st.sampled_from(PLACES), min_size=1, max_size=3)):
        parent = plain
        try:
            for name in path[:-1]:
                parent = parent[name]
            parent[path[-1]] = draw(json_values)
        except (KeyError, IndexError, TypeError):
            continue  # an earlier mutation took the place away
    return with_digest(plain)


@st.composite
def spliced(draw: st.DrawFn) -> bytes:
    data = bytearray(EXAMPLE)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(len(data), start + 40)))
        data[start:end] = draw(st.binary(max_size=12) | st.sampled_from((b"{", b"]", b'"', b"\\", b"1e999", b"NaN")))
    return bytes(data)


def test_the_example_survives_by_being_read() -> None:
    assert len(decode(EXAMPLE).records) == 2
    assert decode(with_digest(json.loads(EXAMPLE))) == decode(EXAMPLE)


@fuzz
@given(st.binary(max_size=400))
def test_arbitrary_bytes(data: bytes) -> None:
    survives(data)


@fuzz
@given(json_values)
def test_arbitrary_json(value: Any) -> None:
    survives(json.dumps(value).encode())
    survives(with_digest({"schema_version": 1, "records": value}))


@fuzz
@given(spliced())
def test_spliced_bytes(data: bytes) -> None:
    survives(data)


@fuzz
@given(mutated())
def test_mutated_documents_with_good_checksums(data: bytes) -> None:
    survives(data)
