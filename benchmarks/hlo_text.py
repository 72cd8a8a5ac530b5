"""Read a scheduled GPU program from the text that XLA prints: its kernels, how often each runs, and what each moves.

A kernel's time is the largest of three: its bytes at the memory's bandwidth, its operations at the rate of its type,
and a launch. It is what the hardware would allow, not what it does. Of gathers and scatters every element of the large
array counts once at most, as if the cache caught the rest.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

BANDWIDTH = 3.35e12  # bytes a second of an H100
RATES = {"bf16": 900e12, "f16": 900e12, "f32": 450e12}  # operations a second; float32 products as TF32
LAUNCH = 3e-6  # seconds
SORT_TILE = 2048  # elements that one kernel of XLA's bitonic sort brings in order in shared memory

_SIZES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "s64": 8, "u64": 8, "f64": 8}
_ARRAY = re.compile(r"\b(pred|bf16|[suf]\d+)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(ENTRY )?%(\S+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%(\S+) = (.*)$")
_OURS = re.compile(r"/((?:mrcnn_jax|benchmarks)/(?:\w+/)?\w+\.py)$")
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "fusion-done", "copy-done"}
_FUSIONS = ("fusion", "fusion-start")


@dataclasses.dataclass
class Instruction:
    """One line of a computation."""

    name: str
    shape: str
    opcode: str
    operands: list[str]
    rest: str  # attributes, metadata
    root: bool = False

    def attribute(self, pattern: str) -> str | None:
        found = re.search(pattern, self.rest)
        return found and found[1]


class Computation:
    """Instructions by name."""

    def __init__(self, instructions: list[Instruction]):
        self.instructions = {one.name: one for one in instructions}
        self._shares: dict[str, float] = {}

    @property
    def root(self) -> Instruction:
        return next(one for one in self.instructions.values() if one.root)

    def part_read(self, name: str) -> float:
        """The share of a value's elements that a fusion needs: slices and gathers behind elementwise work take few."""
        if name not in self._shares:
            users = [one for one in self.instructions.values() if name in one.operands]
            elements = elements_of(self.instructions[name].shape)
            self._shares[name] = min(1.0, sum(self._part_taken(name, elements, user) for user in users))
        return self._shares[name]

    def _part_taken(self, name: str, elements: int, user: Instruction) -> float:
        first = user.operands[0] == name
        if first and user.opcode in ("slice", "dynamic-slice", "gather"):
            return elements_of(user.shape) / elements * (1.0 if user.root else self.part_read(user.name))
        if first and user.opcode in ("scatter", "dynamic-update-slice"):  # in place; a scatter adds to what it reads
            update = elements_of(self.instructions[user.operands[-1]].shape)
            return update / elements if user.opcode == "scatter" else 0.0
        if user.root or user.opcode == "tuple" or elements_of(user.shape) != elements:
            return 1.0
        return self.part_read(user.name)


class Kernel(NamedTuple):
    """What one instruction of the schedule costs each time, and how often it runs."""

    kind: str
    bytes: int
    operations: float
    seconds: float  # each time
    times: int
    launches: int
    where: str  # line of the source
    scope: str  # names of modules and functions, as JAX gives them
    shape: str


class Loop(NamedTuple):
    """A while loop; `turns` is None if XLA does not know how many there will be."""

    turns: int | None
    kernels: list[Kernel]  # of one turn
    where: str
    scope: str


class Program:
    """The text of a compiled program, taken apart."""

    def __init__(self, text: str, turns: int):
        self.turns = turns  # that a loop of unknown length is taken to have
        self.computations, self.entry = _parse(text)
        self.places = _places(text)
        self.loops: list[Loop] = []
        self.kernels = list(self._walk(self.computations[self.entry], 1))

    def _walk(self, computation: Computation, times: int) -> Iterator[Kernel]:
        for one in computation.instructions.values():
            if one.opcode == "while":
                yield from self._loop(one, times)
            elif one.opcode in ("call", "conditional"):
                for name in re.findall(r"(?:to_apply=|computations?=|[{ ,])%([\w.-]+)", one.rest):
                    yield from self._walk(self.computations[name], times) if name in self.computations else ()
            elif one.opcode not in _FREE:
                yield self._kernel(computation, one, times)

    def _loop(self, one: Instruction, times: int) -> Iterator[Kernel]:
        known = one.attribute(r'"known_trip_count":\{"n":"(\d+)"')
        turns = int(known) if known else None
        parts = (one.attribute(rf"{part}=%([^\s,]+)") or "" for part in ("condition", "body"))
        kernels = [kernel for part in parts for kernel in self._walk(self.computations[part], 1)]
        self.loops.append(Loop(turns, kernels, *self._origin(one)))
        for kernel in kernels:
            yield kernel._replace(times=kernel.times * times * (self.turns if turns is None else turns))

    def _kernel(self, computation: Computation, one: Instruction, times: int) -> Kernel:
        inside = self._inside(one)
        moved = self._bytes(computation, one)
        operations, dtype = self._operations(computation, one)
        launches = 1
        kind = _kind(one, [part.opcode for part in inside], dtype)
        if kind == "sort":
            launches = _sort_launches(max(math.prod(dims[-1:]) for _, dims in arrays(one.shape)))
        seconds = max(moved / BANDWIDTH, operations / RATES.get(dtype, RATES["f32"]), LAUNCH) * launches
        return Kernel(kind, moved * launches, operations, seconds, times, launches, *self._origin(one), one.shape)

    def _origin(self, one: Instruction) -> tuple[str, str]:
        place = self.places.get(int(one.attribute(r"stack_frame_id=(\d+)") or 0), "?")
        return place, re.sub(r"^jit\([^)]*\)/", "", one.attribute(r'op_name="([^"]*)"') or one.name)

    def _inside(self, one: Instruction) -> list[Instruction]:
        """The instruction, or all that a fusion is made of."""
        called = one.attribute(r"calls=%([^\s,]+)")
        if one.opcode not in _FUSIONS or called is None:
            return [one]
        parts = self.computations[called].instructions.values()
        return [deeper for part in parts for deeper in self._inside(part)]

    def _bytes(self, computation: Computation, one: Instruction) -> int:
        sizes = {name: size_of(computation.instructions[name].shape) for name in one.operands}
        called = one.attribute(r"calls=%([^\s,]+)")
        if one.opcode not in _FUSIONS or called is None:
            return sum(sizes.values()) + size_of(one.shape)
        fused = self.computations[called]
        parameters = {int(p.operands[0]): p for p in fused.instructions.values() if p.opcode == "parameter"}
        read = sum(int(fused.part_read(parameters[i].name) * sizes[name]) for i, name in enumerate(one.operands))
        root = fused.root
        results = [fused.instructions[name] for name in root.operands] if root.opcode == "tuple" else [root]
        return read + sum(_written(fused, result) for result in results)

    def _operations(self, computation: Computation, one: Instruction) -> tuple[float, str]:
        """Additions and multiplications of convolutions and matrix products, and the type of their operands."""
        if one.opcode == "custom-call":
            return _of_library(computation, one)
        total, dtype = 0.0, ""
        called = one.attribute(r"calls=%([^\s,]+)")
        computations = [self.computations[called]] if one.opcode == "fusion" and called else []
        while computations:
            inner = computations.pop()
            for part in inner.instructions.values():
                deeper = part.attribute(r"calls=%([^\s,]+)")
                if part.opcode == "fusion" and deeper:
                    computations.append(self.computations[deeper])
                if part.opcode == "dot":
                    count, dtype = _of_dot(inner, part)
                    total += count
        return total, dtype


def arrays(shape: str) -> list[tuple[str, list[int]]]:
    """Types and dimensions in a shape, which may be a tuple."""
    return [(dtype, [int(n) for n in dims.split(",") if n]) for dtype, dims in _ARRAY.findall(shape)]


def size_of(shape: str) -> int:
    """Bytes."""
    return sum(_SIZES.get(dtype, 4) * math.prod(dims) for dtype, dims in arrays(shape))


def elements_of(shape: str) -> int:
    """Of the first array in a shape."""
    found = arrays(shape)
    return max(math.prod(found[0][1]), 1) if found else 1


def _parse(text: str) -> tuple[dict[str, Computation], str]:
    computations: dict[str, Computation] = {}
    name, entry = "", ""
    lines: list[Instruction] = []
    for line in text.splitlines():
        header = _COMPUTATION.match(line)
        if header:
            name, lines = header[2], []
            entry = name if header[1] else entry
        elif line.startswith("}"):
            computations[name] = Computation(lines)
        else:
            found = _INSTRUCTION.match(line)
            lines += [_instruction(found[1], found[2], "ROOT %" in line)] if found and name else []
    return computations, entry


def _instruction(name: str, text: str, root: bool) -> Instruction:
    end = _closing(text) if text.startswith("(") else text.index(" ")
    shape, call = text[:end], text[end:].lstrip()
    opcode, arguments = call.split("(", 1)
    end = _closing("(" + arguments) - 1
    inside, rest = arguments[: end - 1], arguments[end:]
    operands = [inside] if opcode == "parameter" else re.findall(r"%([^\s,()]+)", inside)
    return Instruction(name, shape, opcode, operands, rest, root)


def _closing(text: str) -> int:
    """One past the parenthesis that closes the first."""
    depth = 0
    for index, letter in enumerate(text):
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if depth == 0:
            return index + 1
    raise ValueError(f"a parenthesis stays open in {text[:80]!r}")


def _places(text: str) -> dict[int, str]:
    """The innermost line of this repository in each stack that the program's metadata name."""
    files = dict(re.findall(r'^(\d+) "([^"]*\.py)"$', text, re.M))
    lines = {
        number: (files.get(file, "?"), line)
        for number, file, line in re.findall(r"^(\d+) \{file_name_id=(\d+) .*?\bline=(\d+) ", text, re.M)
    }
    frames = {
        int(number): (lines[location], int(parent or 0))
        for number, location, parent in re.findall(
            r"^(\d+) \{file_location_id=(\d+)(?: parent_frame_id=(\d+))?\}", text, re.M
        )
    }

    def place(number: int) -> str:
        while number in frames:
            (file, line), parent = frames[number]
            ours = _OURS.search(file)
            if ours:
                return f"{ours[1]}:{line}"
            number = parent if parent != number else 0
        return "?"

    return {number: place(number) for number in frames}


def _kind(one: Instruction, inside: list[str], dtype: str) -> str:
    target = one.attribute(r'custom_call_target="([^"]+)"') or ""
    if "cudnn" in target:
        return f"convolution, {dtype}"
    if dtype:
        return f"matrix product, {dtype}"
    for kind in ("sort", "scatter", "gather", "transpose", "reduce", "concatenate", "dynamic-update-slice"):
        if kind in inside:
            return kind
    return "copy" if one.opcode.startswith("copy") else "elementwise" if one.opcode in _FUSIONS else one.opcode


def _written(fused: Computation, result: Instruction) -> int:
    while result.opcode == "bitcast":
        result = fused.instructions[result.operands[0]]
    if result.opcode in ("dynamic-update-slice", "scatter"):  # in place
        update = result.operands[1] if result.opcode == "dynamic-update-slice" else result.operands[-1]
        return min(size_of(fused.instructions[update].shape), size_of(result.shape))
    return size_of(result.shape)


def _of_dot(computation: Computation, dot: Instruction) -> tuple[float, str]:
    dtype, left = arrays(computation.instructions[dot.operands[0]].shape)[0]
    contracted = [int(n) for n in (dot.attribute(r"lhs_contracting_dims=\{([\d,]*)\}") or "").split(",") if n]
    return 2.0 * math.prod(arrays(dot.shape)[0][1]) * math.prod(left[n] for n in contracted), dtype


def _of_library(computation: Computation, one: Instruction) -> tuple[float, str]:
    """Of cuDNN's convolutions, each cell of the forward pass's result times the kernel that makes it; of cuBLAS."""
    target = one.attribute(r'custom_call_target="([^"]+)"') or ""
    if "cudnn" not in target and "cublas" not in target:
        return 0.0, ""
    (dtype, first), (_, second) = (arrays(computation.instructions[name].shape)[0] for name in one.operands[:2])
    result = arrays(one.shape)[0][1]
    if "cublas" in target:  # (n, k) times (k, m), in whatever layout
        return 2.0 * math.sqrt(math.prod(first) * math.prod(second) * math.prod(result)), dtype
    output, kernel = result, second
    if target.endswith("BackwardFilter"):
        output, kernel = second, result
    elif target.endswith("BackwardInput"):
        output, kernel = first, second
    return 2.0 * math.prod(output) * math.prod(kernel) / output[-1], dtype


def _sort_launches(length: int) -> int:
    """Kernels of a bitonic sort: steps over distances longer than a tile are one each."""
    stages = max(math.ceil(math.log2(max(length, 2))), 1)
    tile = int(math.log2(SORT_TILE))
    return 1 + sum(stage - tile + 1 + 1 for stage in range(tile, stages))
