"""Kernels and loops of a compiled program, from its HLO text."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from benchmarks.hlo_text import Computation, Instruction, parse, size_of, sources

FUSIONS = ("fusion", "fusion-start")
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "fusion-done", "copy-done"}
PARTS = (
    *("normalize", "backbone", "fpn", "rpn_head", "proposals", "targets", "roi_align", "box_head", "mask_head"),
    *("detections", "losses", "optimizer"),
)  # of the network: names of modules and scopes


class Kernel(NamedTuple):
    """Cost of an instruction of the schedule."""

    kind: str
    bytes: int
    operations: float
    seconds: float  # per run
    times: float  # number of runs
    launches: int
    source: str  # file and line
    scope: str  # JAX's names of modules and functions
    shape: str


class WhileLoop(NamedTuple):
    """A while loop."""

    trip_count: int | None  # None if unknown to XLA
    turns: float  # the same, or what is assumed
    kernels: list[Kernel]  # of one iteration
    source: str
    scope: str


AssumedTurns = Callable[[str, str, str], float]


class Program(ABC):
    """Kernels and loops of a compiled program.

    `assumed_turns` returns the iterations of a loop that XLA does not know, from its source, scope and shape.
    """

    def __init__(self, text: str, assumed_turns: AssumedTurns):
        self._assumed_turns = assumed_turns
        self.computations, self.entry = parse(text)
        self._sources = sources(text)
        self.loops: list[WhileLoop] = []
        self.kernels = list(self._walk(self.computations[self.entry], 1))

    def size_of(self, shape: str) -> int:
        """Return the bytes of a shape that instructions move."""
        return size_of(shape)

    @abstractmethod
    def kernel(self, computation: Computation, instruction: Instruction, times: float) -> Kernel:
        """Return the cost of an instruction that is not a loop."""

    def _walk(self, computation: Computation, times: float) -> Iterator[Kernel]:
        for instruction in computation.instructions.values():
            if instruction.opcode == "while":
                yield from self._loop(instruction, times)
            elif instruction.opcode in ("call", "conditional"):
                for name in re.findall(r"(?:to_apply=|computations?=|[{ ,])%([\w.-]+)", instruction.rest):
                    yield from self._walk(self.computations[name], times) if name in self.computations else ()
            elif instruction.opcode not in FREE:
                yield self.kernel(computation, instruction, times)

    def _loop(self, loop: Instruction, times: float) -> Iterator[Kernel]:
        trip_count = self._trip_count(loop)
        parts = (loop.attribute(rf"{part}=%([^\s,]+)") or "" for part in ("condition", "body"))
        kernels = [kernel for part in parts for kernel in self._walk(self.computations[part], 1)]
        origin = self.origin(loop)
        turns = self._assumed_turns(*origin, loop.shape) if trip_count is None else trip_count
        self.loops.append(WhileLoop(trip_count, turns, kernels, *origin))
        for kernel in kernels:
            yield kernel._replace(times=kernel.times * times * turns)

    def _trip_count(self, loop: Instruction) -> int | None:
        """Return the iterations of a loop: XLA's own number, or the limit of a counter, which starts at 0."""
        known = loop.attribute(r'"known_trip_count":\{"n":"(\d+)"')
        if known:
            return int(known)
        condition = self.computations[loop.attribute(r"condition=%([^\s,]+)") or ""]
        if condition.root.opcode != "compare" or "direction=LT" not in condition.root.rest:
            return None
        limit = condition.instructions[condition.root.operands[1]]
        return int(limit.operands[0]) if limit.opcode == "constant" else None

    def origin(self, instruction: Instruction) -> tuple[str, str]:
        """Return source and scope."""
        source = self._sources.get(int(instruction.attribute(r"stack_frame_id=(\d+)") or 0), "?")
        name = instruction.attribute(r'op_name="([^"]*)"') or instruction.name
        return source, re.sub(r"^jit\([^)]*\)/", "", name)

    def fused(self, instruction: Instruction) -> list[Instruction]:
        """Return the instructions of a fusion, or the instruction itself."""
        called = instruction.attribute(r"calls=%([^\s,]+)")
        if instruction.opcode not in FUSIONS or called is None:
            return [instruction]
        parts = self.computations[called].instructions.values()
        return [inner for part in parts for inner in self.fused(part)]

    def bytes_moved(self, computation: Computation, instruction: Instruction) -> int:
        """Return the bytes that an instruction reads and writes."""
        sizes = {name: self.size_of(computation.instructions[name].shape) for name in instruction.operands}
        called = instruction.attribute(r"calls=%([^\s,]+)")
        if instruction.opcode not in FUSIONS or called is None:
            if instruction.opcode in ("dynamic-slice", "slice", "gather", "dynamic-update-slice"):
                return 2 * self._bytes_written(computation, instruction)
            return sum(sizes.values()) + self.size_of(instruction.shape)
        fused = self.computations[called]
        parameters = {int(p.operands[0]): p for p in fused.instructions.values() if p.opcode == "parameter"}
        read = sum(
            int(fused.fraction_read(parameters[i].name) * sizes[name]) for i, name in enumerate(instruction.operands)
        )
        root = fused.root
        results = [fused.instructions[name] for name in root.operands] if root.opcode == "tuple" else [root]
        return read + sum(self._bytes_written(fused, result) for result in results)

    def _bytes_written(self, fused: Computation, result: Instruction) -> int:
        while result.opcode == "bitcast":
            result = fused.instructions[result.operands[0]]
        if result.opcode in ("dynamic-update-slice", "scatter"):  # in place
            update = result.operands[1] if result.opcode == "dynamic-update-slice" else result.operands[-1]
            return min(self.size_of(fused.instructions[update].shape), self.size_of(result.shape))
        return self.size_of(result.shape)


def grouped(kernels: Iterable[Kernel], key: Callable[[Kernel], tuple[str, ...]]) -> list[tuple[Any, list[Kernel]]]:
    """Return kernels grouped by key, in descending order of their time."""
    groups: dict[tuple[str, ...], list[Kernel]] = defaultdict(list)
    for kernel in kernels:
        groups[key(kernel)].append(kernel)
    return sorted(groups.items(), key=lambda item: -total(item[1], "seconds"))


def total(kernels: Iterable[Kernel], field: str) -> float:
    """Return the sum of a field over all runs."""
    return sum(kernel.times * getattr(kernel, field) for kernel in kernels)


def part_of(scope: str, other: str = "") -> str:
    """Return the direction and the part of the network, or else `other` or the operation, from JAX's name of it."""
    direction = "gradient of " if "transpose(" in scope else ""
    names = re.findall(r"\w+", scope)
    return direction + next((name for name in names if name in PARTS), other or names[-1])
