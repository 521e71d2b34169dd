"""Our options, namespaced ``kvprefetch.``, and the rest, which are Inductor's."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeGuard

from .errors import InvalidOptionError, UnknownOptionError

PREFIX = "kvprefetch."


@dataclass(frozen=True)
class Options:
    """What ``options={"kvprefetch.<name>": value}`` may set.

    Attributes:
        enabled: False compiles with plain Inductor.
        strict: raise where a decode-attention site would be left untouched, or a stage of the pass failed.
        mode: an Inductor mode ("reduce-overhead", ...), since torch.compile takes either ``mode=`` or ``options=``.
        tuning_db: tuning databases that go before all others: a path or a list of paths, each a file or a folder.
        allow_unmeasured: use records that were only ranked by a model where there is no measured one.
        deterministic: a sequence's result has the same bits in every batch: configurations depend on no batch size and
            come from no record, and keys are added up in chunks of a fixed number.
        dump_graphs: folder to write every graph to, before and after the pass, as text (``graph_dump``).
    """

    enabled: bool = True
    strict: bool = False
    mode: str | None = None
    tuning_db: tuple[str, ...] = ()
    allow_unmeasured: bool = False
    deterministic: bool = False
    dump_graphs: str | None = None


def split_options(options: Mapping[str, Any] | None) -> tuple[Options, dict[str, Any]]:
    """Ours and Inductor's.

    Raises:
        UnknownOptionError: a ``kvprefetch.`` option that does not exist.
        InvalidOptionError: one that does, with a value of the wrong type.
    """
    ours: dict[str, Any] = {}
    inductor: dict[str, Any] = {}
    known = {field.name for field in fields(Options)}
    for name, value in (options or {}).items():
        if not name.startswith(PREFIX):
            inductor[name] = value
            continue
        short = name.removeprefix(PREFIX)
        if short not in known:
            raise UnknownOptionError(name, (PREFIX + field for field in known))
        ours[short] = _checked(name, short, value)
    return Options(**ours), inductor


def _checked(name: str, short: str, value: object) -> object:
    if short == "tuning_db":
        return _paths(name, value)
    if short == "dump_graphs":
        if not _is_path(value):
            raise InvalidOptionError(name, value, "the path of a folder")
        return os.fspath(value)
    if short == "mode":
        if not isinstance(value, str):
            raise InvalidOptionError(name, value, "the name of an Inductor mode")
    elif not isinstance(value, bool):
        raise InvalidOptionError(name, value, "True or False")
    return value


def _paths(name: str, value: object) -> tuple[str, ...]:
    paths = tuple(value) if isinstance(value, list | tuple) else (value,)
    if not all(map(_is_path, paths)):
        raise InvalidOptionError(name, value, "the path of a tuning database, or a list of such paths")
    return tuple(os.fspath(path) for path in paths)


def _is_path(value: object) -> TypeGuard[str | os.PathLike[str]]:
    return isinstance(value, str | os.PathLike) and isinstance(os.fspath(value), str) and bool(os.fspath(value))
