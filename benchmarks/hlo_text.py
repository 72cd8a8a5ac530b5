"""Parser of XLA's text format of compiled programs."""

from __future__ import annotations

import dataclasses
import math
import re

_SIZES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "s64": 8, "u64": 8, "f64": 8}
_ARRAY = re.compile(r"\b(pred|bf16|[suf]\d+)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(ENTRY )?%(\S+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%(\S+) = (.*)$")
_OWN_FILE = re.compile(r"/((?:mrcnn_jax|benchmarks)/(?:\w+/)*\w+\.py)$")


@dataclasses.dataclass
class Instruction:
    """A line of a computation."""

    name: str
    shape: str
    opcode: str
    operands: list[str]
    rest: str  # attributes and metadata
    root: bool = False

    def attribute(self, pattern: str) -> str | None:
        match = re.search(pattern, self.rest)
        return match and match[1]


class Computation:
    """The instructions of a computation, by name."""

    def __init__(self, instructions: list[Instruction]):
        self.instructions = {instruction.name: instruction for instruction in instructions}
        self._fractions: dict[str, float] = {}

    @property
    def root(self) -> Instruction:
        return next(instruction for instruction in self.instructions.values() if instruction.root)

    def fraction_read(self, name: str) -> float:
        """Return the fraction of a value's elements that a fusion reads, which slices and gathers reduce."""
        if name not in self._fractions:
            users = [instruction for instruction in self.instructions.values() if name in instruction.operands]
            elements = num_elements(self.instructions[name].shape)
            self._fractions[name] = min(1.0, sum(self._fraction_used(name, elements, user) for user in users))
        return self._fractions[name]

    def _fraction_used(self, name: str, elements: int, user: Instruction) -> float:
        first = user.operands[0] == name
        if first and user.opcode in ("slice", "dynamic-slice", "gather"):
            return num_elements(user.shape) / elements * (1.0 if user.root else self.fraction_read(user.name))
        if first and user.opcode in ("scatter", "dynamic-update-slice"):  # in place; a scatter also reads its elements
            update = num_elements(self.instructions[user.operands[-1]].shape)
            return update / elements if user.opcode == "scatter" else 0.0
        if user.root or user.opcode == "tuple" or num_elements(user.shape) != elements:
            return 1.0
        return self.fraction_read(user.name)


def arrays(shape: str) -> list[tuple[str, list[int]]]:
    """Return types and dimensions of the arrays in a shape, which may be a tuple."""
    return [(dtype, [int(n) for n in dims.split(",") if n]) for dtype, dims in _ARRAY.findall(shape)]


def size_of(shape: str) -> int:
    """Return the bytes of a shape."""
    return sum(_SIZES.get(dtype, 4) * math.prod(dims) for dtype, dims in arrays(shape))


def num_elements(shape: str) -> int:
    """Return the number of elements of the first array in a shape."""
    first = arrays(shape)[:1]
    return max(math.prod(first[0][1]), 1) if first else 1


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """Return the computations by name, and the name of the entry computation."""
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
            match = _INSTRUCTION.match(line)
            lines += [_instruction(match[1], match[2], "ROOT %" in line)] if match and name else []
    return computations, entry


def _instruction(name: str, text: str, root: bool) -> Instruction:
    end = _closing(text) if text.startswith("(") else text.index(" ")
    shape, call = text[:end], text[end:].lstrip()
    opcode, arguments = call.split("(", 1)
    end = _closing("(" + arguments) - 1
    inside, rest = arguments[: end - 1], arguments[end:]
    operands = [inside] if opcode in ("parameter", "constant") else re.findall(r"%([^\s,()]+)", inside)
    return Instruction(name, shape, opcode, operands, rest, root)


def _closing(text: str) -> int:
    """Return the index after the parenthesis that closes the first one."""
    depth = 0
    for index, character in enumerate(text):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if depth == 0:
            return index + 1
    raise ValueError(f"unclosed parenthesis in {text[:80]!r}")


def sources(text: str) -> dict[int, str]:
    """Return the innermost line of this repository for each stack frame in the metadata."""
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

    def source(number: int) -> str:
        while number in frames:
            (file, line), parent = frames[number]
            if own := _OWN_FILE.search(file):
                return f"{own[1]}:{line}"
            number = parent if parent != number else 0
        return "?"

    return {number: source(number) for number in frames}
