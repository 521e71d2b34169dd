"""Which accesses to shared memory are ordered, whatever the schedule: PTX's causality order, for roles that share a
program (https://docs.nvidia.com/cuda/parallel-thread-execution/#memory-consistency-model).

A role is several warps that run the same code. One of its threads arrives on an mbarrier for all of them, which
releases what that thread knows: the accesses of all before the last barrier among them. All of its threads wait, which
acquires what arrivals released, and what those had acquired. A copy by TMA begins with what its role knows, and its end
is an arrival. Products and copies reach memory by another way than stores: they see a store only if its thread has
fenced it before.

What one role does in its own order is not looked at but for fences: barriers against that are the compiler's to put.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.lib.array_utils import byte_bounds


class RaceError(AssertionError):
    """Two accesses, one of them a write, in no order."""


@dataclass
class Knowledge:
    """How many of whose accesses are ordered before what comes now. Of ``fenced`` the stores are seen by products and
    copies too."""

    plain: dict[str, int] = field(default_factory=dict)
    fenced: dict[str, int] = field(default_factory=dict)

    def add(self, more: Knowledge) -> None:
        for known, new in ((self.plain, more.plain), (self.fenced, more.fenced)):
            for name, count in new.items():
                known[name] = max(known.get(name, 0), count)

    def copy(self) -> Knowledge:
        return Knowledge(dict(self.plain), dict(self.fenced))


@dataclass
class Agent:
    """A role, or a copy. ``count`` is of its accesses."""

    name: str
    known: Knowledge = field(default_factory=Knowledge)
    count: int = 0
    fenced: int = 0

    def fence(self) -> None:
        self.fenced = self.count

    def synchronise(self) -> None:
        """A barrier among its warps."""
        self.known.add(Knowledge({self.name: self.count}, {self.name: self.fenced}))


@dataclass(frozen=True)
class Access:
    agent: str
    number: int
    write: bool
    asynchronous: bool

    def __str__(self) -> str:
        how = "product or copy" if self.asynchronous else "write" if self.write else "read"
        return f"{how} of {self.agent}"


@dataclass
class SharedAccesses:
    """Of one program: the last access of each kind to each range of addresses."""

    ranges: dict[tuple[int, int], dict[tuple[str, bool, bool], Access]] = field(default_factory=dict)

    def add(self, agent: Agent, content: Any, write: bool, asynchronous: bool) -> None:
        """
        Raises:
            RaceError: an earlier access to the same memory is not ordered before this one.
        """
        agent.count += 1
        new = Access(agent.name, agent.count, write, asynchronous)
        low, high = byte_bounds(content)
        for (first, end), accesses in self.ranges.items():
            if first < high and low < end:
                for old in accesses.values():
                    _require_order(old, new, agent)
        self.ranges.setdefault((low, high), {})[agent.name, write, asynchronous] = new


def _require_order(old: Access, new: Access, agent: Agent) -> None:
    if not (old.write or new.write):
        return
    through_a_fence = new.asynchronous and old.write and not old.asynchronous
    if old.agent == agent.name and not through_a_fence:
        return
    known: Mapping[str, int] = agent.known.fenced if through_a_fence else agent.known.plain
    if known.get(old.agent, 0) < old.number:
        without = " without a fence" if through_a_fence else ""
        raise RaceError(f"{new}{without} races with {old}")
