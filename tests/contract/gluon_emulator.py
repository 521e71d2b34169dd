"""Runs a template in Gluon on the CPU, to find deadlocks, races and wrong sums without a GPU.

Its own source is imported against stand-ins for Triton's languages, in NumPy. Roles run as threads of which one at a
time is awake; at each barrier, copy and product a random one, or a pending copy, goes on. A copy's destination is NaN
from the request to the arrival, and a product reads shared memory when it is issued or when it is waited for, at
random: a tile that is read too early or handed back too early poisons the output. All roles waiting with no copy under
way is a deadlock. Two accesses to shared memory that nothing orders are a race, also where this run's order was right
(``happens_before``).

Not modelled: the order of warps inside a role between their barriers, layouts, registers, integers of 32 bits.
"""

from __future__ import annotations

import importlib
import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from prefetch_compiler.templates import manifest

from prefetch_compiler.lower.specialise import KernelCall

from .happens_before import Agent, Knowledge, SharedAccesses

FOLDER = Path(manifest.__file__).parent
PACKAGE = "emulated_templates"
Condition = Callable[[], bool]


class EmulationError(AssertionError):
    """What a GPU would hang in, or answer with garbage."""


class Value(np.ndarray):  # type: ignore[type-arg]
    """A tensor in registers."""

    def to(self, dtype: torch.dtype) -> Value:
        """16-bit numbers are rounded, and held as float32."""
        if dtype.is_floating_point:
            return value(torch.from_numpy(np.asarray(self, np.float32)).to(dtype).float().numpy())
        return value(np.asarray(self, np.int64))


def value(content: Any) -> Value:
    return np.asarray(content).view(Value)


class Pointer:
    """Elements of a tensor's storage, from where the tensor begins."""

    def __init__(self, content: torch.Tensor, offset: Any = 0) -> None:
        self.content, self.offset = content, offset
        self.dtype = SimpleNamespace(element_ty=content.dtype)

    @staticmethod
    def of(tensor: torch.Tensor) -> Pointer:
        size = tensor.untyped_storage().nbytes() // tensor.itemsize - tensor.storage_offset()
        return Pointer(tensor.as_strided((size,), (1,)))

    def __add__(self, more: Any) -> Pointer:
        return Pointer(self.content, self.offset + more)

    def load(self, at: Any) -> Any:
        found = self.content[torch.from_numpy(np.array(at, np.int64))]
        return (found.float() if found.is_floating_point() else found).numpy()


class Descriptor(NamedTuple):
    """Of TMA; what lies beyond the ends reads as zero."""

    content: torch.Tensor
    block_shape: list[int]

    @property
    def dtype(self) -> torch.dtype:
        return self.content.dtype

    def block(self, coordinates: list[int]) -> Any:
        inside = tuple(slice(at, at + size) for at, size in zip(coordinates, self.block_shape, strict=True))
        found = self.content[inside].float().numpy()
        return np.pad(found, [(0, size - had) for size, had in zip(self.block_shape, found.shape, strict=True)])


class Shared:
    """Shared memory, or a view of it."""

    def __init__(self, content: Any, dtype: Any) -> None:
        self.content, self.dtype, self.shape = content, dtype, content.shape

    def index(self, at: int) -> Shared:
        return Shared(self.content[at], self.dtype)

    def slice(self, start: int, length: int, dim: int = 0) -> Shared:
        assert dim == 0
        return Shared(self.content[start : start + length], self.dtype)

    def permute(self, order: tuple[int, ...]) -> Shared:
        return Shared(self.content.transpose(order), self.dtype)

    def load(self, _layout: Any) -> Value:
        MACHINE.step()
        MACHINE.accesses(self, write=False)
        return value(self.content.copy())

    def store(self, content: Any) -> None:
        MACHINE.step()
        MACHINE.accesses(self, write=True)
        self.content[...] = content


class Barrier:
    """An mbarrier: ``count`` arrivals and all expected bytes complete a phase. ``told`` is what arrivals released,
    ``known`` what those of complete phases did."""

    def __init__(self) -> None:
        self.count = self.pending = self.bytes = self.parity = 0
        self.told, self.known = Knowledge(), Knowledge()

    def arrive(self, count: int, more_bytes: int = 0) -> None:
        MACHINE.step()
        self.told.add(MACHINE.agent().known)
        self.bytes += more_bytes
        self.pending -= count
        self.settle()

    def wait(self, phase: int) -> None:
        MACHINE.step(lambda: self.parity != phase)
        MACHINE.agent().known.add(self.known)

    def settle(self) -> None:
        if self.pending < 0:
            raise EmulationError("more arrivals than a barrier's phase takes")
        if self.pending == 0 and self.bytes == 0:
            self.parity ^= 1
            self.pending = self.count
            self.known = self.told.copy()


class Machine:
    """One program: its roles and its copies under way."""

    def __init__(self, seed: int, program: tuple[int, ...] = (0, 0), grid: tuple[int, ...] = (1, 1)) -> None:
        self.random = random.Random(seed)
        self.program, self.grid = program, grid
        self.turn = threading.Condition()
        self.ready: dict[int, Condition] = {}
        self.awake: int | None = None
        self.copies: list[Callable[[], None]] = []
        self.requested = 0
        self.failure: BaseException | None = None
        self.agents: dict[int, Agent] = {}
        self.shared = SharedAccesses()

    def agent(self) -> Agent:
        """Whose turn it is: a role, or what runs before roles part."""
        return self.agents.setdefault(threading.get_ident(), Agent("the program"))

    def accesses(self, shared: Shared, write: bool, asynchronous: bool = False) -> None:
        self.shared.add(self.agent(), shared.content, write, asynchronous)

    def _pass_on(self) -> None:
        """Let random copies arrive, then wake a random role that can go on."""
        while self.failure is None:
            able = [role for role, condition in self.ready.items() if condition()]
            if self.copies and (not able or self.random.random() < 0.2):
                self.copies.pop(self.random.randrange(len(self.copies)))()
                continue
            if not able and self.ready:
                self.failure = EmulationError(f"{len(self.ready)} roles wait for ever")
            self.awake = self.random.choice(able) if able else None
            break
        self.turn.notify_all()

    def step(self, condition: Condition = lambda: True) -> None:
        """A role offers its turn, and goes on when ``condition`` holds. Before roles part there are no turns."""
        me = threading.get_ident()
        if me not in self.ready:
            return
        with self.turn:
            self.ready[me] = condition
            self._pass_on()
            self._await_turn(me)
            self.ready[me] = lambda: True

    def _await_turn(self, me: int) -> None:
        self.turn.wait_for(lambda: self.failure is not None or self.awake == me)
        if self.failure is not None:
            raise self.failure

    def run_roles(self, roles: list[tuple[Callable[..., None], tuple[Any, ...]]]) -> None:
        """Run roles to their ends. What came before they parted, all of them know."""
        before = self.agent()
        before.fence()
        before.synchronise()
        gate = threading.Barrier(len(roles) + 1)
        threads = [
            threading.Thread(
                target=self._run_role, args=(gate, Agent(role[0].__name__, before.known.copy()), *role), daemon=True
            )
            for role in roles
        ]
        for thread in threads:
            thread.start()
        gate.wait()
        with self.turn:
            self._pass_on()
        for thread in threads:
            thread.join()
        if self.failure is not None:
            raise self.failure
        if self.copies:
            raise EmulationError("a copy was still under way at the end")

    def _run_role(
        self, gate: threading.Barrier, agent: Agent, function: Callable[..., None], arguments: tuple[Any, ...]
    ) -> None:
        me = threading.get_ident()
        self.agents[me] = agent
        self.ready[me] = lambda: True
        gate.wait()
        try:
            with self.turn:
                self._await_turn(me)
            function(*arguments)
        except BaseException as failure:
            self.failure = self.failure or failure
        with self.turn:
            del self.ready[me]
            self._pass_on()


MACHINE = Machine(0)


class Accumulator(NamedTuple):
    """Products under way, and what they read in shared memory."""

    content: Any
    products: list[Callable[[], Any]]
    operands: list[Shared]


def warpgroup_mma(a: Any, b: Shared, acc: Any, use_acc: bool = True, is_async: bool = False) -> Accumulator:
    """Reads its operands now or at the wait, at random."""
    assert is_async
    MACHINE.step()

    def product() -> Any:
        return np.asarray(a.content if isinstance(a, Shared) else a) @ np.asarray(b.content)

    operands = [operand for operand in (a, b) if isinstance(operand, Shared)]
    for operand in operands:
        MACHINE.accesses(operand, write=False, asynchronous=True)
    now = product() if MACHINE.random.random() < 0.5 else None
    before = acc if isinstance(acc, Accumulator) else Accumulator(np.array(acc), [], [])
    if not use_acc:
        before = Accumulator(np.zeros_like(before.content), [], [])
    products = [*before.products, product if now is None else lambda: now]
    return Accumulator(before.content, products, [*before.operands, *operands])


def warpgroup_mma_wait(outstanding: int, deps: tuple[Accumulator]) -> Value:
    assert outstanding == 0
    MACHINE.step()
    (acc,) = deps
    for operand in acc.operands:
        MACHINE.accesses(operand, write=False, asynchronous=True)
    return value(sum((product() for product in acc.products), acc.content))


def copy_to_shared(descriptor: Descriptor, coordinates: list[Any], barrier: Barrier, target: Shared) -> None:
    """The target holds NaN until the copy arrives."""
    MACHINE.step()
    # A 2-D target of a 3-D descriptor is one of its layers.
    assert [1, *target.shape] == descriptor.block_shape
    where = [int(at) for at in coordinates]
    MACHINE.requested += 1
    role = MACHINE.agent()
    copy = Agent(f"copy {MACHINE.requested} of {role.name}", role.known.copy())
    MACHINE.shared.add(copy, target.content, write=True, asynchronous=True)
    copy.synchronise()
    target.content[...] = np.nan

    def arrive() -> None:
        target.content[...] = descriptor.block(where)[0]
        barrier.told.add(copy.known)
        barrier.bytes -= target.content.size * descriptor.dtype.itemsize
        barrier.settle()

    MACHINE.copies.append(arrive)


def debug_barrier() -> None:
    MACHINE.step()
    MACHINE.agent().synchronise()


def load(pointer: Pointer, mask: Any = None, other: float = 0.0, volatile: bool = False) -> Value:
    if mask is None:
        return value(pointer.load(pointer.offset))
    at, wanted = np.broadcast_arrays(pointer.offset, mask)
    found = np.full(at.shape, other, pointer.load(0).dtype)
    found[wanted] = pointer.load(at[wanted])
    return value(found)


def store(pointer: Pointer, content: Any, mask: Any = True) -> None:
    content, at, wanted = np.broadcast_arrays(content, pointer.offset, mask)
    numbers = torch.from_numpy(np.array(content[wanted]))
    pointer.content[torch.from_numpy(np.array(at[wanted], np.int64))] = numbers.to(pointer.content.dtype)


def allocate(dtype: Any, shape: list[int], layout: Any) -> Any:
    if layout == "barriers":
        barriers = [Barrier() for _ in range(shape[0])]
        return SimpleNamespace(index=lambda at: barriers[at])
    return Shared(np.full(shape, np.nan, np.float32), dtype)


def initialise(barrier: Barrier, count: int) -> None:
    barrier.count = barrier.pending = count


def _computed(function: Callable[..., Any]) -> Callable[..., Value]:
    return lambda *arguments: value(function(*arguments))


def _module(name: str, **contents: Any) -> ModuleType:
    module = ModuleType(name)
    module.__dict__.update(contents)
    return module


def _jit(function: Any = None, **_: Any) -> Any:
    return function if function is not None else _jit


def _stand_ins(folder: Path) -> list[ModuleType]:
    """For all of Triton that templates in Gluon import, and an empty package of templates."""
    common = {
        "constexpr": lambda content: content, "static_range": range,
        "float32": torch.float32, "int64": torch.int64, "int32": torch.int32,
        "zeros": lambda shape, *_: value(np.zeros(shape, np.float32)),
        "full": lambda shape, content, *_: value(np.full(shape, content, np.float32)),
        "arange": lambda start, end, *_: value(np.arange(start, end)),
        "where": _computed(np.where), "maximum": _computed(np.maximum), "minimum": _computed(np.minimum),
        "exp2": _computed(np.exp2), "max": _computed(np.max), "sum": _computed(np.sum),
        "expand_dims": _computed(np.expand_dims), "cast": lambda content, dtype: value(content).to(dtype),
        "load": load, "store": store, "debug_barrier": debug_barrier,
        "program_id": lambda axis: value(MACHINE.program[axis]),
        "num_programs": lambda axis: value(MACHINE.grid[axis]),
    }  # fmt: skip
    layouts = dict.fromkeys(
        ("NVMMADistributedLayout", "NVMMASharedLayout", "DotOperandLayout", "SliceLayout", "BlockedLayout",
         "SwizzledSharedLayout"),
        lambda *_: None,
    )  # fmt: skip
    gluon_language = _module(
        "triton.experimental.gluon.language", **common, **layouts, convert_layout=lambda content, *_: content,
        # Of one number that all threads have.
        inline_asm_elementwise=lambda _text, _constraints, arguments, **_: arguments[0],
        associative_scan=lambda content, axis, _combine: value(np.cumsum(content, axis)),
        allocate_shared_memory=allocate, warp_specialize=lambda roles, *_: MACHINE.run_roles(roles),
    )  # fmt: skip
    mbarrier = SimpleNamespace(
        expect=lambda barrier, size: barrier.arrive(1, size),
        arrive=lambda barrier, count: barrier.arrive(count),
        init=initialise,
        wait=lambda barrier, phase: barrier.wait(phase),
        MBarrierLayout=lambda: "barriers",
    )
    hopper = _module(
        "triton.experimental.gluon.language.nvidia.hopper", fence_async_shared=lambda: MACHINE.agent().fence(),
        mbarrier=mbarrier,
        tma=SimpleNamespace(async_copy_global_to_shared=copy_to_shared), warpgroup_mma=warpgroup_mma,
        warpgroup_mma_wait=warpgroup_mma_wait,
    )  # fmt: skip
    language = _module("triton.language", **common)
    cuda = _module("triton.language.extra.cuda", gdc_wait=lambda: None, gdc_launch_dependents=lambda: None)
    gluon = _module("triton.experimental.gluon", jit=_jit, language=gluon_language)
    experimental = _module("triton.experimental", gluon=gluon)
    root = _module("triton", jit=_jit, language=language, experimental=experimental)
    return [root, language, cuda, experimental, gluon, gluon_language, hopper, _module(PACKAGE, __path__=[str(folder)])]


@contextmanager
def _replaced(modules: list[ModuleType]) -> Iterator[None]:
    """Importing finds ``modules``, and what it loads of the emulated package is forgotten afterwards."""
    before = {module.__name__: sys.modules.get(module.__name__) for module in modules}
    sys.modules.update({module.__name__: module for module in modules})
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name.startswith(PACKAGE)]:
            del sys.modules[name]
        sys.modules.update({name: module for name, module in before.items() if module is not None})
        for name in [name for name, module in before.items() if module is None and name in sys.modules]:
            del sys.modules[name]


def emulated(module: str, folder: Path = FOLDER) -> ModuleType:
    """A template's module, over the stand-ins."""
    with _replaced(_stand_ins(folder)):
        return importlib.import_module(f"{PACKAGE}.{module}")


def emulate(call: KernelCall, kernel: Callable[..., None], seed: int) -> None:
    """Run ``call`` on the CPU with ``kernel``, an emulated one, in place of its own.

    Raises:
        EmulationError: it would hang, or a barrier is arrived on too often.
        RaceError: two accesses to shared memory are in no order.
    """
    global MACHINE

    def argument(given: Any) -> Any:
        if isinstance(given, torch.Tensor):
            return Pointer.of(given)
        if hasattr(given, "block_shape"):
            return Descriptor(given.base.as_strided(given.shape, given.strides), list(given.block_shape))
        return given

    arguments = {name: argument(given) for name, given in call.arguments.items()}
    for number, program in enumerate(np.ndindex(*call.grid)):
        MACHINE = Machine(seed * 1000 + number, program, call.grid)
        with np.errstate(invalid="ignore", over="ignore"):
            kernel(**arguments, **call.constants)
