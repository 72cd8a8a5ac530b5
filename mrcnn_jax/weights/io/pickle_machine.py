"""The memory of the pickle machine: a stack, marks, a memo and a position in the file, each use of them checked."""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import Any

from mrcnn_jax.errors import WeightsError
from mrcnn_jax.weights.io.constructors import AllowedGlobals
from mrcnn_jax.weights.io.deferred import DeferredValue
from mrcnn_jax.weights.io.messages import TRUNCATED, printable

_MAX_NAME = 200
_NAMES = {ord(known.code): known.name for known in pickletools.opcodes}
PersistentLoad = Callable[[Any], DeferredValue]


class PickleMachine:
    """What an opcode works on."""

    def __init__(self, data: memoryview, names: AllowedGlobals, start: int, persistent: PersistentLoad | None):
        self.data, self.names, self.position, self.persistent = data, names, start, persistent
        self.opcode = 0
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # what lay on the stack before each MARK
        self.memo: dict[int, Any] = {}

    def only_value(self) -> Any:
        """The one value that a whole pickle leaves."""
        if self.below or len(self.stack) != 1:
            raise WeightsError("its pickle is damaged: it does not end in one value")
        return self.stack[0]

    def take(self, count: int) -> memoryview:
        """The next `count` bytes."""
        end = self.position + count
        if end > len(self.data):
            raise WeightsError(TRUNCATED)
        view = self.data[self.position : end]
        self.position = end
        return view

    def integer(self, width: int, *, signed: bool = False) -> int:
        """The next `width` bytes as a little-endian number."""
        return int.from_bytes(self.take(width), "little", signed=signed)

    def line(self) -> str:
        """Text up to the end of the line."""
        text, found, _ = bytes(self.data[self.position : self.position + _MAX_NAME]).partition(b"\n")
        if not found and len(text) < _MAX_NAME:
            raise WeightsError(TRUNCATED)
        if not found:
            raise WeightsError(f"its pickle is damaged, or asks for a name without end: {printable(text)}")
        self.position += len(text) + 1
        return text.decode("latin-1")

    def pop(self) -> Any:
        """The value on top, taken off."""
        if not self.stack:
            raise WeightsError("its pickle is damaged: it uses a value that is not there")
        return self.stack.pop()

    def top(self, kind: type) -> Any:
        """The value on top, which must be a `kind`."""
        if not self.stack or not isinstance(self.stack[-1], kind):
            raise WeightsError(f"its pickle is damaged: {opcode_name(self.opcode)} without its {kind.__name__}")
        return self.stack[-1]

    def pop_mark(self) -> list[Any]:
        """The values since the last MARK."""
        if not self.below:
            raise WeightsError("its pickle is damaged: it uses a mark that is not there")
        values, self.stack = self.stack, self.below.pop()
        return values

    def push_name(self, module: object, name: object) -> None:
        """Push what stands for `module.name`: nothing is imported."""
        if type(module) is not str or type(name) is not str:
            raise WeightsError("its pickle makes a name of something that is not text")
        if f"{module}.{name}" not in self.names:
            raise WeightsError(_forbidden(f"{module}.{name}"))
        self.stack.append(self.names[f"{module}.{name}"])


def opcode_name(opcode: int) -> str | None:
    """What `pickletools` calls an opcode."""
    return _NAMES.get(opcode)


def _forbidden(name: str) -> str:
    return (
        f"its pickle asks for {printable(name)}, which is no part of an array; nothing of it was run. If the file is your "
        "own and holds a whole program object, save its weights alone: torch.save(model.state_dict(), path)"
    )
