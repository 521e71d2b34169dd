"""The stage boundaries of the pass, taken from its sources: every call by which one module of the pipeline hands on to
another. A stage that is added is among them, and is made to fail with the rest."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import prefetch_compiler

ROOT = Path(prefetch_compiler.__file__).parent
# Where a compile goes through, and what the operators of a lowered graph and of calls by name run.
PIPELINE = ("backend", "lower.graph_pass", "lower.mark", "lower.rewrite", "lower.ops", "lower.call_op")


@dataclass(frozen=True)
class Boundary:
    """``module`` calls ``owner.name``: ``owner`` is itself, another module that it holds as ``path[0]``, or a class."""

    module: str
    path: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.module}: {'.'.join(self.path)}"

    def replace(self, monkeypatch: Any, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        """Put ``make(what is called)`` in its place, for this caller alone where it is called by its name."""
        owner: Any = module_of(self.module)
        for part in self.path[:-1]:
            owner = getattr(owner, part)
        monkeypatch.setattr(owner, self.path[-1], make(inspect.getattr_static(owner, self.path[-1])))


def module_of(name: str) -> ModuleType:
    return importlib.import_module(f"prefetch_compiler.{name}")


def boundaries() -> list[Boundary]:
    """In the order of the sources, each once."""
    found = [boundary for name in PIPELINE for boundary in _calls_of(name)]
    return list(dict.fromkeys(found))


def _calls_of(name: str) -> Iterator[Boundary]:
    module = module_of(name)
    tree = ast.parse((ROOT / f"{name.replace('.', '/')}.py").read_text())
    imported = {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("prefetch_compiler"))
        for alias in node.names
    }
    classes = [one for one in imported if inspect.isclass(getattr(module, one, None))]
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        for call in (node for node in ast.walk(function) if isinstance(node, ast.Call)):
            for path in _paths(call, module, imported, classes):
                yield Boundary(name, path)


def _paths(call: ast.Call, module: ModuleType, imported: set[str], classes: list[str]) -> Iterator[tuple[str, ...]]:
    # What is handed on to be called elsewhere counts too, such as a function that a thread is to run.
    for named in (call.func, *call.args):
        if isinstance(named, ast.Name) and named.id in imported and _is_stage(getattr(module, named.id)):
            yield (named.id,)
    if not isinstance(call.func, ast.Attribute):
        return
    holder, method = call.func.value, call.func.attr
    if isinstance(holder, ast.Name) and holder.id in imported:
        if inspect.ismodule(getattr(module, holder.id)):
            yield (holder.id, method)
        return
    for owner in classes:
        if _is_method(getattr(module, owner), method):
            yield (owner, method)


def _is_method(owner: type, name: str) -> bool:
    """A field that holds a function is none: each instance has its own."""
    fields = getattr(owner, "__dataclass_fields__", {})
    return name not in fields and inspect.isfunction(vars(owner).get(name))


def _is_stage(what: Any) -> bool:
    """Whatever is called but for errors that are raised, and lists that are passed."""
    return callable(what) and not (inspect.isclass(what) and issubclass(what, BaseException))
