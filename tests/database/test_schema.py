"""The published schema is the generated one, and says what the loader says of a document's structure."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefetch_compiler import tuning_db
from prefetch_compiler.database.document import Database, encode
from prefetch_compiler.database.schema import DIALECT, schema, schema_bytes
from prefetch_compiler.database.wire import SCHEMA_VERSION, WireDatabase, structure

from .examples import KEY, database, databases, measured, modelled

PUBLISHED = Path(tuning_db.__file__).parent / "schema.json"
WRITTEN = encode(database(measured(), modelled(KEY.at(batch=1, capacity=512))))
# To JSON schema 1.0 is an integer and equals 1; the loader tells them apart. No whole number is a fraction here.
EXAMPLE = json.loads(WRITTEN, parse_float=lambda text: float(text) + 0.5 * float(text).is_integer())


def accepted_by_the_loader(document: object) -> bool:
    try:
        structure(document, WireDatabase)
    except msgspec.ValidationError:
        return False
    return True


def test_the_published_schema_is_the_generated_one() -> None:
    assert PUBLISHED.read_bytes() == schema_bytes(), "run: kvprefetch db schema > tuning_db/schema.json"


def test_the_schema_is_one_and_names_its_version() -> None:
    assert schema()["$schema"] == DIALECT == jsonschema.Draft202012Validator.META_SCHEMA["$schema"]
    jsonschema.Draft202012Validator.check_schema(schema())
    assert schema()["$id"].endswith(f":{SCHEMA_VERSION}")
    assert schema()["properties"]["schema_version"]["enum"] == [SCHEMA_VERSION]


@given(databases())
def test_everything_that_is_written_fits_the_schema(stored: Database) -> None:
    VALIDATOR.validate(json.loads(encode(stored)))


values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 64), 1 << 64),
    st.sampled_from((0, 1, 8, 9, 16, 17, 48, 256, 512, 513, 1 << 30, (1 << 30) + 1, (1 << 31) + 1)),
    st.floats(-2, 1e13).filter(lambda number: not number.is_integer()),
    st.text(max_size=4),
    st.sampled_from(("", "cuda", "bfloat16", "bulk", "3.6", "3", "2026-01-31", "a" * 64, "a" * 65, "a" * 129, "a\n")),
    st.lists(st.sampled_from(("growing", 1)), max_size=10),
    st.just({}),
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for name, item in items for place in _places(item, (*path, name)))]


PLACES = _places(EXAMPLE)
VALIDATOR = jsonschema.Draft202012Validator(schema())


def _at(document: Any, path: tuple[Any, ...]) -> Any:
    for name in path:
        document = document[name]
    return document


@st.composite
def mutated(draw: st.DrawFn) -> Any:
    document = copy.deepcopy(EXAMPLE)
    path = draw(st.sampled_from(PLACES))
    if not path:
        return draw(values)
    parent, name = _at(document, path[:-1]), path[-1]
    how = draw(st.sampled_from(("replace", "remove", "add", "rename", "swap")))
    if how == "replace":
        parent[name] = draw(values)
    elif how == "remove":
        del parent[name]
    elif how == "add" and isinstance(parent, dict):
        parent[draw(st.text(max_size=3))] = draw(values)
    elif how == "rename" and isinstance(parent, dict):
        parent[str(name).upper()] = parent.pop(name)
    else:
        parent[name] = copy.deepcopy(_at(EXAMPLE, draw(st.sampled_from(PLACES))))
    return document


def test_the_example_is_accepted_by_both() -> None:
    assert accepted_by_the_loader(EXAMPLE) and VALIDATOR.is_valid(EXAMPLE)


@settings(max_examples=600, suppress_health_check=[HealthCheck.too_slow])
@given(mutated())
def test_schema_and_loader_agree_on_mutated_documents(document: Any) -> None:
    assert VALIDATOR.is_valid(document) == accepted_by_the_loader(document)


@pytest.mark.parametrize("path", [path for path in PLACES if path and isinstance(path[-1], str)], ids=str)
def test_schema_and_loader_agree_that_every_field_is_needed_and_typed(path: tuple[Any, ...]) -> None:
    for change in ("remove", "wrong type"):
        document = copy.deepcopy(EXAMPLE)
        if change == "remove":
            del _at(document, path[:-1])[path[-1]]
        else:
            _at(document, path[:-1])[path[-1]] = {"no": "such"}
        assert not VALIDATOR.is_valid(document)
        assert not accepted_by_the_loader(document)


def test_the_one_known_difference_is_stated() -> None:
    """Integers with a fraction of zero: see the module's text."""
    document = copy.deepcopy(EXAMPLE)
    document["records"][0]["key"]["batch_bucket"] = 1.0
    assert VALIDATOR.is_valid(document)
    assert not accepted_by_the_loader(document)
