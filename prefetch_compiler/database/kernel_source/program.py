"""All that a template's kernels consist of, without what only absent features need.

A parameter of an absent feature goes from a function if every call in the program passes the value that means "absent"
for it. Whether it does depends on what is left of the callers, so: assume that all of them go, look at the calls
that remain, give back those that are passed something else, and repeat. Entries are launched from outside, by the
manifest's word with the absent values.
"""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .arguments import without_arguments, wrongly_passed
from .canonical import canonical
from .decorators import decorators, may_lose_parameters
from .folding import Value
from .functions import Specialised, parameters, specialised
from .modules import Meaning, Sources, Statement
from .references import references
from .tree import replaced

if TYPE_CHECKING:
    from collections.abc import Collection


class Program:
    """What the kernels ``entries`` (``module.function``) consist of where parameters have their ``absent`` values.

    Raises:
        TemplateSourceError: sources that cannot be read, or an entry that is not there.
    """

    def __init__(self, sources: Sources, entries: Collection[str], absent: Mapping[str, Value]) -> None:
        self.sources = sources
        self.absent = absent
        self.roots = [sources.function(name) for name in entries]
        # Parameters that functions keep although they are an absent feature's.
        self.kept: dict[Statement, frozenset[str]] = defaultdict(frozenset)
        self.versions: dict[Statement, tuple[frozenset[str], Specialised]] = {}
        self.reached: dict[Statement, _Reached] = {}
        while self._gives_back_parameters():
            pass

    def _gives_back_parameters(self) -> bool:
        """Walk all that is reachable from the entries; whether some function turned out to need a parameter."""
        self.reached = {}
        modules: set[str] = set()
        given_back = False
        waiting = list(self.roots)
        while waiting:
            statement = waiting.pop()
            if statement in self.reached:
                continue
            reached = self.reached[statement] = self._reach(statement)
            if statement.module not in modules:
                modules.add(statement.module)
                waiting += self.sources.module(statement.module).effects
            for _, meaning in reached.uses:
                waiting += meaning.statements
                for used in meaning.statements:
                    given_back |= self._give_back(used, None)
            for call, used in reached.calls.items():
                waiting.append(used)
                given_back |= self._give_back(used, call)
        return given_back

    def _reach(self, statement: Statement) -> _Reached:
        reached = _Reached(self._present(statement))
        found = references(reached.node)
        for name, call in found.calls:
            meaning = self.sources.meaning(statement.module, name)
            used = meaning.statements[0] if len(meaning.statements) == 1 and meaning.plain else None
            # A function that is taken as it stands passes what it passes.
            if used is not None and _is_function(used) and _is_function(statement):
                reached.calls[call] = used
                reached.called[name] = used
            else:
                reached.uses.append((name, meaning))
        reached.uses += [(name, self.sources.meaning(statement.module, name)) for name in found.values]
        reached.uses += [(one.name, self.sources.imported(statement.module, at, one)) for at, one in found.imports]
        return reached

    def _present(self, statement: Statement) -> ast.stmt:
        """What is left of a statement; its own calls still have all their arguments."""
        if not _is_function(statement):
            return statement.node
        version = self._version(statement)
        return replaced(version.node, decorator_list=decorators(self.sources, statement, version.removed))

    def _version(self, statement: Statement) -> Specialised:
        assert isinstance(statement.node, ast.FunctionDef)
        kept = self.kept[statement]
        known = self.versions.get(statement)
        if known is None or known[0] != kept:
            if known is None and not may_lose_parameters(self.sources, statement):
                kept = self.kept[statement] = frozenset(parameters(statement.node))
            known = self.versions[statement] = (kept, specialised(statement.node, self.absent, kept))
        return known[1]

    def _give_back(self, used: Statement, call: ast.Call | None) -> bool:
        """Let ``used`` keep what ``call`` does not pass as absent, or all where it is not plainly called."""
        if not _is_function(used):
            return False
        assert isinstance(used.node, ast.FunctionDef)
        removed = self._version(used).removed
        needed = removed if call is None else wrongly_passed(call, used.node, removed, self.absent)
        self.kept[used] |= needed
        return bool(needed)

    def definitions(self) -> dict[str, ast.stmt]:
        """Functions, classes and constants by name, or by module and name where two have one name."""
        names = self._names()
        return {names[one]: self._left(one) for one in self.reached if _is_definition(one)}

    def text(self) -> str:
        """Equal for equal programs, on every Python. Comments, docstrings, formatting, the order and place of
        definitions, and all that was taken out have no part in it."""
        names = self._names()
        lines = [f"entry {names[root]}" for root in self.roots]
        lines += [f"{names[one]} is {self._line(one, names)}" for one in self.reached if _is_definition(one)]
        for module in {one.module for one in self.reached}:
            # What else modules do, they do in the order in which it stands there.
            others = [one for one in self.sources.module(module).statements if one in self.reached]
            others = [one for one in others if not _is_definition(one)]
            lines += [f"{module} {place}: {self._line(one, names)}" for place, one in enumerate(others)]
        return "\n".join(sorted(lines))

    def _names(self) -> dict[Statement, str]:
        """Without the module where that is enough: a function that moves to another one is the same."""
        count = Counter(one.name for one in self.reached if _is_definition(one))
        return {one: one.name if count[one.name] == 1 else f"{one.module}.{one.name}" for one in self.reached}

    def _left(self, statement: Statement) -> ast.stmt:
        reached = self.reached[statement]
        if not isinstance(reached.node, ast.FunctionDef):
            return reached.node
        calls = {}
        for call, used in reached.calls.items():
            assert isinstance(used.node, ast.FunctionDef)
            calls[call] = (used.node, self._version(used).removed)
        return without_arguments(reached.node, calls)

    def _line(self, statement: Statement, names: Mapping[Statement, str]) -> str:
        """A statement, and what its global names mean."""
        reached = self.reached[statement]
        known = {name: {names[used]} for name, used in reached.called.items()}
        for name, meaning in reached.uses:
            known.setdefault(name, set()).update(names[one] for one in meaning.statements)
            known[name].update(meaning.outside)
        meant = [(name, sorted(targets)) for name, targets in sorted(known.items()) if targets]
        return f"{canonical(self._left(statement))} with {meant!a}"


@dataclass
class _Reached:
    """What is left of a statement, and what it refers to: ``calls`` are plain calls of functions, ``called`` these
    functions by name, ``uses`` all else."""

    node: ast.stmt
    calls: dict[ast.Call, Statement] = field(default_factory=dict)
    called: dict[str, Statement] = field(default_factory=dict)
    uses: list[tuple[str, Meaning]] = field(default_factory=list)


def _is_function(statement: Statement) -> bool:
    """One that nothing else in its module redefines."""
    return bool(statement.name) and isinstance(statement.node, ast.FunctionDef)


def _is_definition(statement: Statement) -> bool:
    return bool(statement.name) and not isinstance(statement.node, ast.Import | ast.ImportFrom)
