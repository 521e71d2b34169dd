"""All that a template's kernels consist of, without what only absent features need.

A parameter of an absent feature goes from a function if every call in the program passes the value that means "absent"
for it. Whether it does depends on what is left of the callers, so: assume that all parameters go, look at the calls that
remain, give back those that are passed something else, and repeat. Entries are launched from outside, by the manifest's
word, with the absent values.
"""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from .arguments import without_arguments, wrongly_passed
from .canonical import canonical
from .decorators import decorators, may_lose_parameters
from .folding import Value
from .functions import Specialised, parameters, specialised
from .modules import Meaning, Sources, Statement
from .references import Mention, imports, mentions
from .tree import replaced

if TYPE_CHECKING:
    from collections.abc import Collection


def program_text(sources: Sources, entries: Collection[str], absent: Mapping[str, Value]) -> str:
    """What the kernels ``entries`` (``module.function``) do, as text: equal for equal programs, on every Python.

    Comments, docstrings, formatting, the order and place of definitions, what nothing reachable from an entry uses, and
    code that the ``absent`` parameters' values rule out have no part in it.

    Raises:
        TemplateSourceError: sources that cannot be read, or an entry that is not there.
    """
    roots = [sources.function(name) for name in entries]
    program = _Program(sources, absent)
    while program.gives_back_parameters(roots):
        pass
    return program.text(roots)


class _Program:
    def __init__(self, sources: Sources, absent: Mapping[str, Value]) -> None:
        self.sources = sources
        self.absent = absent
        # Parameters that functions keep although they are an absent feature's.
        self.kept: dict[Statement, frozenset[str]] = defaultdict(frozenset)
        self.versions: dict[Statement, tuple[frozenset[str], Specialised]] = {}
        self.reached: dict[Statement, ast.stmt] = {}

    def gives_back_parameters(self, roots: Iterable[Statement]) -> bool:
        """Walk all that is reachable from ``roots``; whether some function turned out to need a parameter."""
        self.reached = {}
        modules: set[str] = set()
        given_back = False
        waiting = list(roots)
        while waiting:
            statement = waiting.pop()
            if statement in self.reached:
                continue
            node = self.reached[statement] = self._present(statement)
            if statement.module not in modules:
                modules.add(statement.module)
                waiting += self.sources.module(statement.module).effects
            for mention, meaning in self._meanings(statement, node):
                waiting += meaning.statements
                for used in meaning.statements:
                    given_back |= self._give_back(used, mention.call if meaning.plain else None)
        return given_back

    def _meanings(self, statement: Statement, node: ast.stmt) -> Iterator[tuple[Mention, Meaning]]:
        for mention in mentions(node):
            # A function that is taken as it stands passes what it passes.
            call = mention.call if statement.name else None
            yield Mention(mention.name, call), self.sources.meaning(statement.module, mention.name)
        for importing, alias in imports(node):
            yield Mention(alias.name), self.sources.imported(statement.module, importing, alias)

    def _present(self, statement: Statement) -> ast.stmt:
        """What is left of a statement; its own calls still have all their arguments."""
        node = statement.node
        if not (statement.name and isinstance(node, ast.FunctionDef)):
            return node
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
        if not isinstance(used.node, ast.FunctionDef) or not used.name:
            return False
        removed = self._version(used).removed
        needed = removed if call is None else wrongly_passed(call, used.node, removed, self.absent)
        self.kept[used] |= needed
        return bool(needed)

    def text(self, roots: Iterable[Statement]) -> str:
        """Named definitions in the order of their names, then what else modules have, in its own order."""
        called = Counter(statement.name for statement in self.reached if statement.name)
        names = {one: one.name if called[one.name] == 1 else f"{one.module}.{one.name}" for one in self.reached}
        lines = [f"entry {names[root]}" for root in roots]
        for statement, node in self.reached.items():
            if statement.name and not isinstance(node, ast.Import | ast.ImportFrom):
                lines.append(f"{names[statement]} is {self._line(statement, node, names)}")
        for module in {statement.module for statement in self.reached}:
            others = [
                self._line(one, self.reached[one], names)
                for one in self.sources.module(module).statements
                if one in self.reached and not (one.name and not isinstance(one.node, ast.Import | ast.ImportFrom))
            ]
            lines += [f"{module} {place}: {line}" for place, line in enumerate(others)]
        return "\n".join(sorted(lines))

    def _line(self, statement: Statement, node: ast.stmt, names: Mapping[Statement, str]) -> str:
        calls, known = {}, {}
        for mention, meaning in self._meanings(statement, node):
            targets = [names[one] or one.module for one in meaning.statements] + meaning.outside
            if targets:
                known[mention.name] = sorted(targets)
            for used in meaning.statements:
                if mention.call is not None and isinstance(used.node, ast.FunctionDef) and used.name:
                    calls[mention.call] = (used.node, self._version(used).removed)
        if isinstance(node, ast.FunctionDef):
            node = without_arguments(node, calls)
        return f"{canonical(node)} with {sorted(known.items())!a}"
