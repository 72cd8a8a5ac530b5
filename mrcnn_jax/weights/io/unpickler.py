"""An unpickler that can only create plain values and arrays, for files that are not trusted.

It implements the opcodes that dictionaries, lists, strings, numbers and arrays are pickled with (protocols 2 to 5, as
in `pickletools`). It calls functions of this package only, never those that a file names, and the number of steps is
limited. Any other opcode or name raises WeightsError with its name.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from mrcnn_jax.errors import WeightsError
from mrcnn_jax.weights.io.constructors import AllowedGlobals, Constructor, PickledOrderedDict, check_key
from mrcnn_jax.weights.io.deferred import MAX_VALUES, DeferredString, DeferredValue, decode_string
from mrcnn_jax.weights.io.messages import TRUNCATED
from mrcnn_jax.weights.io.pickle_machine import PersistentLoad, PickleMachine, opcode_name

_MAX_STEPS = MAX_VALUES  # each step creates at most one value
_LONG = 1024  # longer strings stay in the file until they are needed
_STOP = ord(".")
_OPERATIONS: dict[int, Callable[[PickleMachine], None]] = {}


def load(
    data: memoryview, names: AllowedGlobals, *, start: int = 0, persistent: PersistentLoad | None = None
) -> tuple[Any, int]:
    """Unpickle the value at `start`.

    Args:
      names: replacements of the classes and functions that the pickle may name.
      persistent: returns the object of a persistent id, for objects outside of the pickle.

    Returns the value, for `deferred.materialize`, and the position after the pickle.

    Raises WeightsError for anything unknown, out of bounds or incomplete.
    """
    machine = PickleMachine(data, names, start, persistent)
    for _ in range(_MAX_STEPS):
        machine.opcode = machine.read_integer(1)
        if machine.opcode == _STOP:
            return machine.result(), machine.position
        if machine.opcode not in _OPERATIONS:
            raise WeightsError(_describe_unknown(machine.opcode))
        _OPERATIONS[machine.opcode](machine)
    raise WeightsError("its pickle has more steps than weights need")


def _operation(*opcodes: bytes) -> Callable[[Callable[[PickleMachine], None]], Callable[[PickleMachine], None]]:
    def register(operation: Callable[[PickleMachine], None]) -> Callable[[PickleMachine], None]:
        _OPERATIONS.update((opcode[0], operation) for opcode in opcodes)
        return operation

    return register


@_operation(b"\x80")
def _protocol(machine: PickleMachine) -> None:
    if not 2 <= (protocol := machine.read_integer(1)) <= 5:
        raise WeightsError(f"it is a pickle of protocol {protocol}; protocols 2 to 5 are supported")


@_operation(b"\x95")
def _frame(machine: PickleMachine) -> None:
    """Check the length of a frame, which is otherwise ignored."""
    length = machine.read_integer(8)
    if machine.position + length > len(machine.data):
        raise WeightsError(TRUNCATED)


_CONSTANTS = {ord("N"): None, 0x88: True, 0x89: False, ord(")"): ()}


@_operation(b"N", b"\x88", b"\x89", b")")
def _constant(machine: PickleMachine) -> None:
    machine.stack.append(_CONSTANTS[machine.opcode])


@_operation(b"]")
def _empty_list(machine: PickleMachine) -> None:
    machine.stack.append([])


@_operation(b"}")
def _empty_dict(machine: PickleMachine) -> None:
    machine.stack.append({})


_INTEGERS = {ord("K"): (1, False), ord("M"): (2, False), ord("J"): (4, True)}


@_operation(b"K", b"M", b"J")
def _integer(machine: PickleMachine) -> None:
    width, signed = _INTEGERS[machine.opcode]
    machine.stack.append(machine.read_integer(width, signed=signed))


@_operation(b"\x8a")
def _long(machine: PickleMachine) -> None:
    machine.stack.append(machine.read_integer(machine.read_integer(1), signed=True))


@_operation(b"G")
def _float(machine: PickleMachine) -> None:
    machine.stack.append(struct.unpack(">d", machine.read(8))[0])


# Bytes of the length, and the encoding. Strings of Python 2, among them the data of arrays, have none.
_STRINGS: dict[int, tuple[int, str | None]] = {
    ord("U"): (1, "latin-1"),
    ord("T"): (4, "latin-1"),
    ord("C"): (1, None),
    ord("B"): (4, None),
    0x8E: (8, None),
    0x96: (8, None),
    0x8C: (1, "utf-8"),
    ord("X"): (4, "utf-8"),
    0x8D: (8, "utf-8"),
}


@_operation(*(bytes([opcode]) for opcode in _STRINGS))
def _string(machine: PickleMachine) -> None:
    width, encoding = _STRINGS[machine.opcode]
    view = machine.read(machine.read_integer(width))
    if len(view) > _LONG:
        machine.stack.append(DeferredString(view, encoding))
    else:
        machine.stack.append(bytes(view) if encoding is None else decode_string(view, encoding))


@_operation(b"(")
def _mark(machine: PickleMachine) -> None:
    machine.metastack.append(machine.stack)
    machine.stack = []


@_operation(b"t")
def _tuple(machine: PickleMachine) -> None:
    values = machine.pop_mark()
    machine.stack.append(tuple(values))


@_operation(b"\x85", b"\x86", b"\x87")
def _short_tuple(machine: PickleMachine) -> None:
    values = [machine.pop() for _ in range(machine.opcode - 0x84)]
    machine.stack.append(tuple(reversed(values)))


@_operation(b"a")
def _append(machine: PickleMachine) -> None:
    value = machine.pop()
    machine.top(list).append(value)


@_operation(b"e")
def _appends(machine: PickleMachine) -> None:
    values = machine.pop_mark()
    machine.top(list).extend(values)


@_operation(b"s")
def _set_item(machine: PickleMachine) -> None:
    value, key = machine.pop(), machine.pop()
    machine.top(dict)[check_key(key)] = value


@_operation(b"u")
def _set_items(machine: PickleMachine) -> None:
    values = machine.pop_mark()
    if len(values) % 2:
        raise WeightsError("its pickle is damaged: a key without a value")
    target = machine.top(dict)
    for key, value in zip(values[::2], values[1::2], strict=True):
        target[check_key(key)] = value


# Memo indices are consecutive, from 0 or (Python 2) from 1.
def _store(machine: PickleMachine, index: int) -> None:
    if not machine.stack or index > len(machine.memo) + 1:
        raise WeightsError(f"its pickle is damaged: memo index {index} is out of order")
    machine.memo[index] = machine.stack[-1]


@_operation(b"q", b"r")
def _put(machine: PickleMachine) -> None:
    _store(machine, machine.read_integer(1 if machine.opcode == ord("q") else 4))


@_operation(b"\x94")
def _memoize(machine: PickleMachine) -> None:
    _store(machine, len(machine.memo))


@_operation(b"h", b"j")
def _get(machine: PickleMachine) -> None:
    index = machine.read_integer(1 if machine.opcode == ord("h") else 4)
    if index not in machine.memo:
        raise WeightsError(f"its pickle is damaged: memo index {index} is missing")
    machine.stack.append(machine.memo[index])


@_operation(b"c")
def _global(machine: PickleMachine) -> None:
    machine.push_name(machine.read_line(), machine.read_line())


@_operation(b"\x93")
def _stack_global(machine: PickleMachine) -> None:
    name, module = machine.pop(), machine.pop()
    machine.push_name(module, name)


@_operation(b"R", b"\x81")
def _call(machine: PickleMachine) -> None:
    """REDUCE and NEWOBJ, which are the same for a `Constructor`."""
    arguments, constructor = machine.pop(), machine.pop()
    if not isinstance(constructor, Constructor):
        raise WeightsError("its pickle calls something other than a constructor of arrays; nothing of it was run")
    machine.stack.append(constructor(arguments))


@_operation(b"b")
def _build(machine: PickleMachine) -> None:
    state = machine.pop()
    if machine.stack and type(machine.stack[-1]) is PickledOrderedDict:
        return
    machine.top(DeferredValue).set_state(state)


@_operation(b"Q")
def _persistent(machine: PickleMachine) -> None:
    identity = machine.pop()
    if machine.persistent is None:
        raise WeightsError("its pickle refers to an object outside of it, and there is none")
    machine.stack.append(machine.persistent(identity))


def _describe_unknown(opcode: int) -> str:
    if opcode_name(opcode) is None:
        return f"its pickle is damaged: byte {opcode:#04x} is not an opcode. Get the file again"
    return (
        f"its pickle uses {opcode_name(opcode)}, which weights do not need; nothing of it was run."
        " Save a dictionary of arrays with protocol 2 to 5"
    )
