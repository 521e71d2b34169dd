"""Our options, namespaced ``kvprefetch.``, and the rest, which are Inductor's."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeGuard

from .errors import InvalidOptionError, UnknownOptionError

PREFIX = "kvprefetch."


@dataclass(frozen=True)
class DecodeOptions:
    """What may be set of any decode attention, whether found in a graph or called by name.

    Attributes:
        strict: raise where a decode attention would be left to SDPA, or something of ours failed.
        deterministic: a sequence's result has the same bits in every batch: configurations depend on no batch size and
            come from no record, and keys are added up in chunks of a fixed number. Where SDPA serves it promises
            nothing.
        allow_unmeasured: use records that were only ranked by a model where there is no measured one.
        tuning_db: tuning databases that go before all others: paths, each of a file or a folder.
    """

    strict: bool = False
    deterministic: bool = False
    allow_unmeasured: bool = False
    tuning_db: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.tuning_db, tuple):
            raise InvalidOptionError("tuning_db", self.tuning_db, "a tuple of paths of tuning databases")


DEFAULT_DECODE_OPTIONS = DecodeOptions()


@dataclass(frozen=True)
class Options(DecodeOptions):
    """What ``options={"kvprefetch.<name>": value}`` may set. A ``tuning_db`` may be a path, or a list of paths there.

    Attributes:
        enabled: False compiles with plain Inductor.
        mode: an Inductor mode ("reduce-overhead", ...), since torch.compile takes either ``mode=`` or ``options=``.
        dump_graphs: folder to write every graph to, before and after the pass, as text (``graph_dump``).
    """

    enabled: bool = True
    mode: str | None = None
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
