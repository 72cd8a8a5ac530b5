"""Kernels of a scheduled GPU program: how often they run, their bytes and FLOP, and lower bounds of their time.

The time of a kernel is the maximum of three: its bytes at the memory bandwidth, its operations at the rate of their
type, and a launch. In gathers and scatters, each element of the large array counts once at most, as with a perfect
cache.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from benchmarks.hlo_text import Computation, Instruction, arrays, parse, size_of, sources

BANDWIDTH = 3.35e12  # bytes/s of an H100
RATES = {"bf16": 900e12, "f16": 900e12, "f32": 450e12}  # FLOP/s; float32 products as TF32
LAUNCH = 3e-6  # seconds
SORT_TILE = 2048  # elements that one kernel of XLA's bitonic sort sorts in shared memory

_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "fusion-done", "copy-done"}
_FUSIONS = ("fusion", "fusion-start")


class Kernel(NamedTuple):
    """Cost of an instruction of the schedule."""

    kind: str
    bytes: int
    operations: float
    seconds: float  # per run
    times: int  # number of runs
    launches: int
    source: str  # file and line
    scope: str  # JAX's names of modules and functions
    shape: str


class WhileLoop(NamedTuple):
    """A while loop."""

    trip_count: int | None  # None if unknown to XLA
    kernels: list[Kernel]  # of one iteration
    source: str
    scope: str


class Program:
    """Kernels and loops of a compiled program. `default_trip_count` is assumed for loops with an unknown one."""

    def __init__(self, text: str, default_trip_count: int):
        self._default_trip_count = default_trip_count
        self.computations, self.entry = parse(text)
        self._sources = sources(text)
        self.loops: list[WhileLoop] = []
        self.kernels = list(self._walk(self.computations[self.entry], 1))

    def _walk(self, computation: Computation, times: int) -> Iterator[Kernel]:
        for instruction in computation.instructions.values():
            if instruction.opcode == "while":
                yield from self._loop(instruction, times)
            elif instruction.opcode in ("call", "conditional"):
                for name in re.findall(r"(?:to_apply=|computations?=|[{ ,])%([\w.-]+)", instruction.rest):
                    yield from self._walk(self.computations[name], times) if name in self.computations else ()
            elif instruction.opcode not in _FREE:
                yield self._kernel(computation, instruction, times)

    def _loop(self, loop: Instruction, times: int) -> Iterator[Kernel]:
        known = loop.attribute(r'"known_trip_count":\{"n":"(\d+)"')
        trip_count = int(known) if known else None
        parts = (loop.attribute(rf"{part}=%([^\s,]+)") or "" for part in ("condition", "body"))
        kernels = [kernel for part in parts for kernel in self._walk(self.computations[part], 1)]
        self.loops.append(WhileLoop(trip_count, kernels, *self._origin(loop)))
        iterations = self._default_trip_count if trip_count is None else trip_count
        for kernel in kernels:
            yield kernel._replace(times=kernel.times * times * iterations)

    def _kernel(self, computation: Computation, instruction: Instruction, times: int) -> Kernel:
        num_bytes = self._bytes(computation, instruction)
        operations, dtype = self._operations(computation, instruction)
        launches = 1
        kind = _kind(instruction, [part.opcode for part in self._fused(instruction)], dtype)
        if kind == "sort":
            launches = _sort_launches(max(math.prod(dims[-1:]) for _, dims in arrays(instruction.shape)))
        seconds = max(num_bytes / BANDWIDTH, operations / RATES.get(dtype, RATES["f32"]), LAUNCH) * launches
        origin = self._origin(instruction)
        return Kernel(kind, num_bytes * launches, operations, seconds, times, launches, *origin, instruction.shape)

    def _origin(self, instruction: Instruction) -> tuple[str, str]:
        """Return source and scope."""
        source = self._sources.get(int(instruction.attribute(r"stack_frame_id=(\d+)") or 0), "?")
        name = instruction.attribute(r'op_name="([^"]*)"') or instruction.name
        return source, re.sub(r"^jit\([^)]*\)/", "", name)

    def _fused(self, instruction: Instruction) -> list[Instruction]:
        """Return the instructions of a fusion, or the instruction itself."""
        called = instruction.attribute(r"calls=%([^\s,]+)")
        if instruction.opcode not in _FUSIONS or called is None:
            return [instruction]
        parts = self.computations[called].instructions.values()
        return [inner for part in parts for inner in self._fused(part)]

    def _bytes(self, computation: Computation, instruction: Instruction) -> int:
        sizes = {name: size_of(computation.instructions[name].shape) for name in instruction.operands}
        called = instruction.attribute(r"calls=%([^\s,]+)")
        if instruction.opcode not in _FUSIONS or called is None:
            return sum(sizes.values()) + size_of(instruction.shape)
        fused = self.computations[called]
        parameters = {int(p.operands[0]): p for p in fused.instructions.values() if p.opcode == "parameter"}
        read = sum(
            int(fused.fraction_read(parameters[i].name) * sizes[name]) for i, name in enumerate(instruction.operands)
        )
        root = fused.root
        results = [fused.instructions[name] for name in root.operands] if root.opcode == "tuple" else [root]
        return read + sum(_bytes_written(fused, result) for result in results)

    def _operations(self, computation: Computation, instruction: Instruction) -> tuple[float, str]:
        """Return the FLOP of convolutions and matrix products, and the type of their operands."""
        if instruction.opcode == "custom-call":
            return _library_operations(computation, instruction)
        total, dtype = 0.0, ""
        called = instruction.attribute(r"calls=%([^\s,]+)")
        computations = [self.computations[called]] if instruction.opcode == "fusion" and called else []
        while computations:
            inner = computations.pop()
            for part in inner.instructions.values():
                nested = part.attribute(r"calls=%([^\s,]+)")
                if part.opcode == "fusion" and nested:
                    computations.append(self.computations[nested])
                if part.opcode == "dot":
                    count, dtype = _dot_operations(inner, part)
                    total += count
        return total, dtype


def _kind(instruction: Instruction, opcodes: list[str], dtype: str) -> str:
    target = instruction.attribute(r'custom_call_target="([^"]+)"') or ""
    if "cudnn" in target:
        return f"convolution, {dtype}"
    if dtype:
        return f"matrix product, {dtype}"
    for kind in ("sort", "scatter", "gather", "transpose", "reduce", "concatenate", "dynamic-update-slice"):
        if kind in opcodes:
            return kind
    if instruction.opcode.startswith("copy"):
        return "copy"
    return "elementwise" if instruction.opcode in _FUSIONS else instruction.opcode


def _bytes_written(fused: Computation, result: Instruction) -> int:
    while result.opcode == "bitcast":
        result = fused.instructions[result.operands[0]]
    if result.opcode in ("dynamic-update-slice", "scatter"):  # in place
        update = result.operands[1] if result.opcode == "dynamic-update-slice" else result.operands[-1]
        return min(size_of(fused.instructions[update].shape), size_of(result.shape))
    return size_of(result.shape)


def _dot_operations(computation: Computation, dot: Instruction) -> tuple[float, str]:
    dtype, left = arrays(computation.instructions[dot.operands[0]].shape)[0]
    contracted = [int(n) for n in (dot.attribute(r"lhs_contracting_dims=\{([\d,]*)\}") or "").split(",") if n]
    return 2.0 * math.prod(arrays(dot.shape)[0][1]) * math.prod(left[n] for n in contracted), dtype


def _library_operations(computation: Computation, call: Instruction) -> tuple[float, str]:
    """Return the FLOP of a call of cuDNN or cuBLAS, and the type of its operands."""
    target = call.attribute(r'custom_call_target="([^"]+)"') or ""
    if "cudnn" not in target and "cublas" not in target:
        return 0.0, ""
    (dtype, first), (_, second) = (arrays(computation.instructions[name].shape)[0] for name in call.operands[:2])
    result = arrays(call.shape)[0][1]
    if "cublas" in target:  # (n, k) times (k, m), in any layout
        return 2.0 * math.sqrt(math.prod(first) * math.prod(second) * math.prod(result)), dtype
    output, kernel = result, second  # of the forward pass
    if target.endswith("BackwardFilter"):
        output, kernel = second, result
    elif target.endswith("BackwardInput"):
        output, kernel = first, second
    return 2.0 * math.prod(output) * math.prod(kernel) / output[-1], dtype


def _sort_launches(length: int) -> int:
    """Return the number of kernels of a bitonic sort: one for each step over a distance longer than a tile."""
    stages = max(math.ceil(math.log2(max(length, 2))), 1)
    tile = int(math.log2(SORT_TILE))
    return 1 + sum(stage - tile + 1 + 1 for stage in range(tile, stages))
