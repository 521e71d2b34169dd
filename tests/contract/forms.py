"""The forms that the pass knows, by name, from its own registries; and which of them a compile went through.

A form is marked in a captured graph, recognised in the functional one, or is a way to read what K and V are made of: a
line in ``markable.py``, ``registry.py`` or ``readings.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

from prefetch_compiler.errors import Refused
from prefetch_compiler.recognize import markable, readings, registry


def _readings() -> dict[str, Callable[..., Any]]:
    """The functions that ``readings.readings`` calls; it is their registry."""
    names = readings.readings.__code__.co_names
    return {name: getattr(readings, name) for name in names if name.startswith("read_")}


def forms() -> tuple[str, ...]:
    """Every registered form, in the order in which a compile asks for them."""
    marked = [one.is_site.__name__ for one in markable.MARKABLE]
    recognised = [recogniser.__name__ for recogniser in registry.RECOGNISERS]
    return (*marked, *recognised, *_readings())


@contextmanager
def forms_met() -> Iterator[set[str]]:
    """Collects which forms the compiles inside the ``with`` block find, whether they then serve or refuse."""
    found: set[str] = set()

    def spied(function: Callable[..., Any]) -> Callable[..., Any]:
        def spy(*args: Any, **kwargs: Any) -> Any:
            try:
                result = function(*args, **kwargs)
            except Refused:
                found.add(function.__name__)
                raise
            if result:
                found.add(function.__name__)
            return result

        return spy

    marked = tuple(replace(one, is_site=spied(one.is_site)) for one in markable.MARKABLE)
    recognised = tuple(spied(recogniser) for recogniser in registry.RECOGNISERS)
    with ExitStack() as patches:
        patches.enter_context(mock.patch.object(markable, "MARKABLE", marked))
        patches.enter_context(mock.patch.object(registry, "RECOGNISERS", recognised))
        for name, read in _readings().items():
            patches.enter_context(mock.patch.object(readings, name, spied(read)))
        yield found
