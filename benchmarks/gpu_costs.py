"""Kernels of a scheduled GPU program: how often they run, their bytes and FLOP, and lower bounds of their time.

The time of a kernel is the maximum of three: its bytes at the memory bandwidth, its operations at the rate of their
type, and a launch. In gathers and scatters, each element of the large array counts once at most, as with a perfect
cache.
"""

from __future__ import annotations

import math

from benchmarks.hlo_program import FUSIONS, Kernel, Program
from benchmarks.hlo_text import Computation, Instruction, arrays

BANDWIDTH = 3.35e12  # bytes/s of an H100
RATES = {"bf16": 900e12, "f16": 900e12, "f32": 450e12}  # FLOP/s; float32 products as TF32
LAUNCH = 3e-6  # seconds
SORT_TILE = 2048  # elements that one kernel of XLA's bitonic sort sorts in shared memory


class GpuProgram(Program):
    """A program for a GPU."""

    def kernel(self, computation: Computation, instruction: Instruction, times: float) -> Kernel:
        num_bytes = self.bytes_moved(computation, instruction)
        operations, dtype = self._operations(computation, instruction)
        launches = 1
        kind = _kind(instruction, [part.opcode for part in self.fused(instruction)], dtype)
        if kind == "sort":
            launches = _sort_launches(max(math.prod(dims[-1:]) for _, dims in arrays(instruction.shape)))
        seconds = max(num_bytes / BANDWIDTH, operations / RATES.get(dtype, RATES["f32"]), LAUNCH) * launches
        origin = self.origin(instruction)
        return Kernel(kind, num_bytes * launches, operations, seconds, times, launches, *origin, instruction.shape)

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
    return "elementwise" if instruction.opcode in FUSIONS else instruction.opcode


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
