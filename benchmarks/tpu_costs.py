"""Time of the kernels of a program for a TPU.

Fusions carry the estimate of the compiler's own cost model, `estimated_cycles`. Gathers, scatters and sorts have none;
theirs is ours:

- gather: 4.3 ns for each row, and for each further 512 bytes of it (the documentation of Pallas for SparseCore names
  this time of a TensorCore). A scatter reads and writes each row of the result: twice as much.
- sort: a bitonic network. Each of its stages takes VECTOR_OPS instructions for each register of 1024 elements and each
  operand.
- reshape: elements move between tiles. MOVE_SECONDS for each byte, the time in which the compiler expects copies.
- other instructions: their bytes in HBM, at the bandwidth.

Asynchronous copies and slices run beside other instructions, and count bytes only. Bytes are those of arrays in HBM,
without the padding of tiles.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from benchmarks.hlo_program import AssumedTurns, Kernel, Program
from benchmarks.hlo_text import Computation, Instruction, arrays, num_elements, size_of


class Chip(NamedTuple):
    """Figures of a chip from Google's documentation; clocks follow from the peak and the size of the matrix units."""

    clock: float  # Hz
    peak: float  # bfloat16 FLOP/s
    bandwidth: float  # bytes/s
    memory: float  # bytes


CHIPS = {
    "v5e": Chip(1.5e9, 197e12, 819e9, 16e9),
    "v5p": Chip(1.75e9, 459e12, 2765e9, 95e9),
    "v6e": Chip(1.75e9, 918e12, 1640e9, 32e9),
}
ROW, ROW_SECONDS = 512, 4.3e-9  # bytes, and the time of a gather
REGISTER, VECTOR_OPS = 1024, 4
MOVE_SECONDS = 4.7e-12

ASYNCHRONOUS = ", asynchronous"
MOVEMENTS = ("concatenate", "pad", "dynamic-update-slice", "dynamic-slice", "slice", "transpose", "copy", "broadcast")
_TRIVIAL = {*MOVEMENTS, "parameter", "constant", "bitcast", "reshape", "tuple", "get-tuple-element", "iota", "convert"}
_FREE = {"copy-done", "slice-done", "async-done", "reshape", "custom-call"}  # bytes are those of the start, or none
_VMEM = re.compile(r"\w+\[[\d,]*\]\{[^}]*S\(\d\)[^}]*\}")  # arrays outside of HBM


class TpuProgram(Program):
    """A program for a TPU."""

    def __init__(self, text: str, chip: Chip, assumed_turns: AssumedTurns):
        self._chip = chip
        super().__init__(text, assumed_turns)

    def size_of(self, shape: str) -> int:
        return size_of(_VMEM.sub("", shape))

    def kernel(self, computation: Computation, instruction: Instruction, times: float) -> Kernel:
        kind = _kind(instruction, {part.opcode for part in self.fused(instruction)})
        cycles = instruction.attribute(r'"estimated_cycles":"(\d+)"')
        num_bytes = 0 if instruction.opcode in _FREE else self.bytes_moved(computation, instruction)
        seconds = int(cycles or 0) / self._chip.clock
        if not cycles and not kind.endswith(ASYNCHRONOUS):
            seconds = max(self._own_estimate(computation, instruction), num_bytes / self._chip.bandwidth)
            kind += ", our estimate" if seconds > 0 else ""
        operations = self._operations(instruction)
        return Kernel(kind, num_bytes, operations, seconds, times, 1, *self.origin(instruction), instruction.shape)

    def _own_estimate(self, computation: Computation, instruction: Instruction) -> float:
        """Return the seconds of a reshape, or of the gathers, scatters and sorts in an instruction."""
        if instruction.opcode == "reshape":
            return size_of(instruction.shape) * MOVE_SECONDS
        return self._irregular(computation, instruction)

    def _irregular(self, computation: Computation, instruction: Instruction) -> float:
        """Return the seconds of the gathers, scatters and sorts in an instruction."""
        called = instruction.attribute(r"calls=%([^\s,]+)")
        if called in self.computations:
            parts = self.computations[called]
            return sum(self._irregular(parts, part) for part in parts.instructions.values())
        if instruction.opcode == "sort":
            return sort_cycles(instruction) / self._chip.clock
        return row_seconds(computation, instruction)

    def _operations(self, instruction: Instruction) -> float:
        """Return the FLOP of convolutions, which include matrix products."""
        called = instruction.attribute(r"calls=%([^\s,]+)")
        if instruction.opcode != "fusion" or called is None:
            return 0.0
        parts = self.computations[called]
        convolutions = (part for part in parts.instructions.values() if part.opcode == "convolution")
        own = sum(convolution_operations(parts, part) for part in convolutions)
        return own + sum(self._operations(part) for part in parts.instructions.values())


def _kind(instruction: Instruction, opcodes: set[str]) -> str:
    if instruction.opcode.endswith(("-start", "-done")):
        return instruction.opcode.rsplit("-", 1)[0] + ASYNCHRONOUS
    for kind in ("convolution", "sort", "scatter", "gather"):
        if kind in opcodes:
            return kind
    if opcodes <= _TRIVIAL:
        return next((kind for kind in MOVEMENTS if kind in opcodes), instruction.opcode)
    if opcodes & {"reduce", "reduce-window"}:
        return "reduce"
    return "elementwise" if instruction.opcode == "fusion" else instruction.opcode


def row_seconds(computation: Computation, instruction: Instruction) -> float:
    """Return the seconds of a gather or a scatter, row by row; 0 for other instructions."""
    if instruction.opcode == "gather":
        window = math.prod(_integers(instruction, "slice_sizes"))
        moved, accesses = instruction.shape, 1
    elif instruction.opcode == "scatter":
        moved, accesses = computation.instructions[instruction.operands[-1]].shape, 2
        dims = arrays(moved)[0][1]
        window = math.prod(dims[axis] for axis in _integers(instruction, "update_window_dims"))
    else:
        return 0.0
    rows = num_elements(moved) / window
    return accesses * rows * math.ceil(size_of(moved) / rows / ROW) * ROW_SECONDS


def _integers(instruction: Instruction, name: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", instruction.attribute(rf"{name}=\{{([\d,]*)\}}") or "")]


def sort_cycles(sort: Instruction) -> float:
    """Return the cycles of a sort along one axis."""
    operands = arrays(sort.shape)
    shape = operands[0][1]
    length = shape[_integers(sort, "dimensions")[0]]
    steps = math.ceil(math.log2(max(length, 2)))
    registers = math.ceil(math.prod(shape) / length * 2**steps / REGISTER)
    return steps * (steps + 1) / 2 * registers * len(operands) * VECTOR_OPS


def convolution_operations(computation: Computation, convolution: Instruction) -> float:
    """Return the FLOP of a convolution, without products with padding and with the zeros of dilation."""
    image, kernel = (arrays(computation.instructions[name].shape)[0][1] for name in convolution.operands[:2])
    output = arrays(convolution.shape)[0][1]
    labels = re.split(r"_|->", convolution.attribute(r"dim_labels=(\S+?)[,\s]") or "")
    window = dict(re.findall(r"(\w+)=(\S+)", convolution.attribute(r"window=\{([^}]*)\}") or ""))
    pairs = 1.0
    for axis in range(len(labels[0]) - 2):
        sizes = [shape[label.index(str(axis))] for shape, label in zip((image, kernel, output), labels, strict=True)]
        low = int(_of_axis(window, "pad", axis, "0_0").split("_")[0])
        stride, base, spread = (int(_of_axis(window, key, axis, "1")) for key in ("stride", "lhs_dilate", "rhs_dilate"))
        pairs *= _num_pairs(*sizes, low, stride, base, spread)
    batch, features = output[labels[2].index("b")], output[labels[2].index("f")]
    return 2.0 * pairs * batch * features * kernel[labels[1].index("i")]


def _of_axis(window: dict[str, str], key: str, axis: int, default: str) -> str:
    return window[key].split("x")[axis] if key in window else default


def _num_pairs(image: int, kernel: int, output: int, low: int, stride: int, base: int, spread: int) -> int:
    """Return the number of pairs of an output and a kernel element that meet an element of the image."""
    positions = (o * stride - low + k * spread for o in range(output) for k in range(kernel))
    return sum(0 <= position <= (image - 1) * base and position % base == 0 for position in positions)
