"""State of the pickle machine: stack, marks, memo and position in the file, with checked access."""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import Any

from mrcnn_jax.errors import WeightsError
from mrcnn_jax.weights.io.constructors import AllowedGlobals
from mrcnn_jax.weights.io.deferred import DeferredValue
from mrcnn_jax.weights.io.messages import TRUNCATED, printable

_MAX_NAME = 200
_OPCODE_NAMES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}
PersistentLoad = Callable[[Any], DeferredValue]


class PickleMachine:
    """The state that opcodes read and change. Every method raises WeightsError for damaged or malicious pickles."""

    def __init__(self, data: memoryview, names: AllowedGlobals, start: int, persistent: PersistentLoad | None):
        self.data, self.names, self.position, self.persistent = data, names, start, persistent
        self.opcode = 0
        self.stack: list[Any] = []
        self.metastack: list[list[Any]] = []  # the stacks before each MARK
        self.memo: dict[int, Any] = {}

    def result(self) -> Any:
        """Return the value of the whole pickle."""
        if self.metastack or len(self.stack) != 1:
            raise WeightsError("its pickle is damaged: it does not end with one value")
        return self.stack[0]

    def read(self, count: int) -> memoryview:
        """Read the next `count` bytes."""
        end = self.position + count
        if end > len(self.data):
            raise WeightsError(TRUNCATED)
        view = self.data[self.position : end]
        self.position = end
        return view

    def read_integer(self, width: int, *, signed: bool = False) -> int:
        """Read the next `width` bytes as a little-endian integer."""
        return int.from_bytes(self.read(width), "little", signed=signed)

    def read_line(self) -> str:
        """Read text up to the end of the line."""
        text, newline, _ = bytes(self.data[self.position : self.position + _MAX_NAME]).partition(b"\n")
        if not newline and len(text) < _MAX_NAME:
            raise WeightsError(TRUNCATED)
        if not newline:
            raise WeightsError(f"its pickle is damaged, or it contains a very long name: {printable(text)}")
        self.position += len(text) + 1
        return text.decode("latin-1")

    def pop(self) -> Any:
        """Remove and return the top value."""
        if not self.stack:
            raise WeightsError("its pickle is damaged: it uses a missing value")
        return self.stack.pop()

    def top(self, kind: type) -> Any:
        """Return the top value, which must be a `kind`."""
        if not self.stack or not isinstance(self.stack[-1], kind):
            raise WeightsError(f"its pickle is damaged: {opcode_name(self.opcode)} without a {kind.__name__}")
        return self.stack[-1]

    def pop_mark(self) -> list[Any]:
        """Remove and return the values since the last MARK."""
        if not self.metastack:
            raise WeightsError("its pickle is damaged: it uses a missing mark")
        values, self.stack = self.stack, self.metastack.pop()
        return values

    def push_name(self, module: object, name: object) -> None:
        """Push the replacement of `module.name`; nothing is imported."""
        if type(module) is not str or type(name) is not str:
            raise WeightsError("its pickle has a name that is not text")
        if f"{module}.{name}" not in self.names:
            raise WeightsError(_forbidden(f"{module}.{name}"))
        self.stack.append(self.names[f"{module}.{name}"])


def opcode_name(opcode: int) -> str | None:
    """Return the name of an opcode in `pickletools`; None for an unknown one."""
    return _OPCODE_NAMES.get(opcode)


def _forbidden(name: str) -> str:
    return (
        f"its pickle refers to {printable(name)}, which weights do not need; nothing of it was run. If the file is your"
        " own and contains a whole model object, save only its weights: torch.save(model.state_dict(), path)"
    )
