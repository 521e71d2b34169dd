"""The modules of a folder as statements, and what a name in one of them stands for. Nothing is imported."""

from __future__ import annotations

import ast
import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..errors import TemplateSourceError
from .partitions import SPLITS_WARPS, with_plain_calls
from .tree import bound_names

if TYPE_CHECKING:
    if sys.version_info >= (3, 11):
        from importlib.resources.abc import Traversable
    else:
        from importlib.abc import Traversable

PACKAGE = "prefetch_compiler.templates"

_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)


@dataclass(frozen=True, eq=False)
class Statement:
    """One statement of a module's own. ``name`` is the one name that it, and nothing else in the module, binds; empty
    for any other statement, which is taken as it stands."""

    module: str
    node: ast.stmt
    name: str


@dataclass(frozen=True, eq=False)
class Module:
    """``effects`` are statements that do more than to define names: they count as soon as anything of the module does.
    ``by_name`` has those that bind a name."""

    name: str
    statements: tuple[Statement, ...]
    effects: tuple[Statement, ...]
    by_name: dict[str, list[Statement]]


@dataclass
class Meaning:
    """What a name stands for: statements of these modules, names of other packages, or neither (a builtin).

    ``plain`` is True for one function or constant that nothing but its statement defines.
    """

    statements: list[Statement] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    plain: bool = True

    def add(self, other: Meaning) -> None:
        self.statements += other.statements
        self.outside += other.outside
        self.plain = self.plain and other.plain


class Sources:
    """The modules of one folder, each parsed when it is first needed."""

    def __init__(self, folder: Traversable) -> None:
        self._folder = folder
        self._modules: dict[str, Module] = {}
        self._meanings: dict[tuple[str, str], Meaning] = {}
        self._looking_up: set[tuple[str, str]] = set()

    def module(self, name: str) -> Module:
        """
        Raises:
            TemplateSourceError: it is not there, or is no Python.
        """
        if name not in self._modules:
            path = self._path(name)
            if not path.is_file():
                raise TemplateSourceError(path, "there is no such module")
            try:
                source = path.read_bytes()
                tree = ast.parse(source)
                self._modules[name] = _module(name, with_plain_calls(tree) if SPLITS_WARPS in source else tree)
            except (SyntaxError, ValueError) as error:
                raise TemplateSourceError(path, str(error)) from error
        return self._modules[name]

    def function(self, name: str) -> Statement:
        """Of an entry, ``module.function``.

        Raises:
            TemplateSourceError: the module has no such function, or more than one.
        """
        module, _, function = name.rpartition(".")
        for statement in self.module(module).by_name.get(function, ()):
            if statement.name and isinstance(statement.node, ast.FunctionDef):
                return statement
        raise TemplateSourceError(self._path(module), f"it does not have one function {function!r}")

    def meaning(self, module: str, name: str) -> Meaning:
        """Of a global name in ``module``, through all imports.

        Raises:
            TemplateSourceError: an import names what is not there.
        """
        if (module, name) in self._looking_up:
            raise TemplateSourceError(self._path(module), f"{name!r} is imported in a circle")
        if (module, name) not in self._meanings:
            self._looking_up.add((module, name))
            try:
                self._meanings[module, name] = self._meaning(module, name)
            finally:
                self._looking_up.discard((module, name))
        return self._meanings[module, name]

    def _meaning(self, module: str, name: str) -> Meaning:
        meaning = Meaning()
        for statement in self.module(module).by_name.get(name, ()):
            if statement.name and isinstance(statement.node, ast.Import | ast.ImportFrom):
                for alias in statement.node.names:
                    if name == (alias.asname or alias.name.split(".")[0]):
                        meaning.add(self.imported(module, statement.node, alias))
            else:
                meaning.add(Meaning([statement], plain=bool(statement.name)))
        return meaning

    def imported(self, module: str, node: ast.Import | ast.ImportFrom, alias: ast.alias) -> Meaning:
        """What one name of an import statement in ``module`` stands for.

        Raises:
            TemplateSourceError: the package has no such module, or the module no such name.
        """
        if isinstance(node, ast.Import):
            inside = _inside(alias.name)
            if inside is None:
                bound = alias.name if alias.asname else alias.name.split(".")[0]
                return Meaning(outside=[f"{bound} of {alias.name}"])
            return self._whole(inside)
        origin = _origin(module, node)
        if origin is None:
            return Meaning(outside=["." * node.level + f"{node.module or ''}:{alias.name}"])
        submodule = f"{origin}.{alias.name}".lstrip(".")
        if alias.name == "*":
            return self._whole(origin)
        if origin and self.module(origin).by_name.get(alias.name):
            return self.meaning(origin, alias.name)
        return self._whole(submodule)

    def _whole(self, module: str) -> Meaning:
        """Everything of a module, since what is taken from it cannot be told."""
        return Meaning(list(self.module(module).statements), plain=False)

    def _path(self, module: str) -> Traversable:
        return self._folder.joinpath(module.replace(".", "/") + ".py")


def _module(name: str, tree: ast.Module) -> Module:
    nodes = [node for node in tree.body if not isinstance(node, ast.Pass) and not _is_text(node)]
    names = [frozenset(bound_names(node, nested=False)) for node in nodes]
    binders = Counter(one for bound in names for one in bound)
    statements, effects, by_name = [], [], dict[str, list[Statement]]()
    for node, bound in zip(nodes, names, strict=True):
        effect = not (isinstance(node, _DEFINITIONS) or _is_assignment(node)) or "*" in bound
        alone = not effect and all(binders[one] == 1 for one in bound)
        # An import binds several names; each is looked up for itself.
        statement = Statement(name, node, min(bound, default="") if alone else "")
        statements.append(statement)
        effects += [statement] if effect else []
        for one in bound:
            by_name.setdefault(one, []).append(statement)
    return Module(name, tuple(statements), tuple(effects), by_name)


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _is_assignment(node: ast.stmt) -> bool:
    match node:
        case ast.Assign(targets=[ast.Name()]) | ast.AnnAssign(target=ast.Name()):
            return True
    return False


def _inside(module: str) -> str | None:
    """The part of an absolute module name below the package; None for other packages."""
    if module == PACKAGE or module.startswith(PACKAGE + "."):
        return module.removeprefix(PACKAGE).removeprefix(".")
    return None


def _origin(module: str, node: ast.ImportFrom) -> str | None:
    """The module, below the package, that ``node`` in ``module`` imports from; None for other packages."""
    if not node.level:
        return _inside(node.module or "")
    parents = module.split(".")
    if node.level > len(parents):
        return None
    return ".".join([*parents[: len(parents) - node.level], *([node.module] if node.module else [])])
