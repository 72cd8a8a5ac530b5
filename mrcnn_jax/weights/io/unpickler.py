"""A pickle machine that can build plain values and arrays, and nothing else.

Python's unpickler is a general machine from which a caller takes the dangerous parts. This one does not have them: it
knows the opcodes that dictionaries, lists, strings, numbers and arrays are written with; what it calls are functions
of this package, never those that a file names; and its work is bounded. Any other opcode or name is refused by name.
The opcodes are those of Python's `pickletools`, protocols 2 to 5.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from mrcnn_jax.errors import WeightsError
from mrcnn_jax.weights.io.constructors import Constructor, AllowedGlobals, PickledOrderedDict, check_key
from mrcnn_jax.weights.io.deferred import MAX_VALUES, DeferredValue, DeferredString, decode_string
from mrcnn_jax.weights.io.messages import TRUNCATED
from mrcnn_jax.weights.io.pickle_machine import PickleMachine, PersistentLoad, opcode_name

_MAX_STEPS = MAX_VALUES  # each step makes one value at most
_LONG = 1024  # strings of more bytes stay in the file until something needs them
_STOP = ord(".")
_OPERATIONS: dict[int, Callable[[PickleMachine], None]] = {}


def load(
    data: memoryview, names: AllowedGlobals, *, start: int = 0, persistent: PersistentLoad | None = None
) -> tuple[Any, int]:
    """What is pickled at `start`, for `deferred.materialize`, and the position after it.

    names: what the pickle may ask for. persistent: answers for objects that lie outside the pickle.
    Raises WeightsError for whatever is unknown, out of bounds or cut short.
    """
    machine = PickleMachine(data, names, start, persistent)
    for _ in range(_MAX_STEPS):
        machine.opcode = machine.integer(1)
        if machine.opcode == _STOP:
            return machine.only_value(), machine.position
        if machine.opcode not in _OPERATIONS:
            raise WeightsError(_unknown(machine.opcode))
        _OPERATIONS[machine.opcode](machine)
    raise WeightsError("its pickle has more steps than weights need")


def _on(*opcodes: bytes) -> Callable[[Callable[[PickleMachine], None]], Callable[[PickleMachine], None]]:
    def register(operation: Callable[[PickleMachine], None]) -> Callable[[PickleMachine], None]:
        _OPERATIONS.update((opcode[0], operation) for opcode in opcodes)
        return operation

    return register


@_on(b"\x80")
def _protocol(machine: PickleMachine) -> None:
    if not 2 <= (protocol := machine.integer(1)) <= 5:
        raise WeightsError(f"it is a pickle of protocol {protocol}; protocols 2 to 5 are read")


@_on(b"\x95")
def _frame(machine: PickleMachine) -> None:
    """A hint for reading in advance; it must not promise what the file does not have."""
    length = machine.integer(8)
    if machine.position + length > len(machine.data):
        raise WeightsError(TRUNCATED)


_CONSTANTS = {ord("N"): None, 0x88: True, 0x89: False, ord(")"): ()}


@_on(b"N", b"\x88", b"\x89", b")")
def _constant(machine: PickleMachine) -> None:
    machine.stack.append(_CONSTANTS[machine.opcode])


@_on(b"]")
def _empty_list(machine: PickleMachine) -> None:
    machine.stack.append([])


@_on(b"}")
def _empty_dict(machine: PickleMachine) -> None:
    machine.stack.append({})


_INTEGERS = {ord("K"): (1, False), ord("M"): (2, False), ord("J"): (4, True)}


@_on(b"K", b"M", b"J")
def _integer(machine: PickleMachine) -> None:
    width, signed = _INTEGERS[machine.opcode]
    machine.stack.append(machine.integer(width, signed=signed))


@_on(b"\x8a")
def _long(machine: PickleMachine) -> None:
    machine.stack.append(machine.integer(machine.integer(1), signed=True))


@_on(b"G")
def _float(machine: PickleMachine) -> None:
    machine.stack.append(struct.unpack(">d", machine.take(8))[0])


# Bytes of the length, and the encoding: Python 2 wrote its strings, data of arrays among them, without one.
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


@_on(*(bytes([opcode]) for opcode in _STRINGS))
def _string(machine: PickleMachine) -> None:
    width, encoding = _STRINGS[machine.opcode]
    view = machine.take(machine.integer(width))
    if len(view) > _LONG:
        machine.stack.append(DeferredString(view, encoding))
    else:
        machine.stack.append(bytes(view) if encoding is None else decode_string(view, encoding))


@_on(b"(")
def _mark(machine: PickleMachine) -> None:
    machine.below.append(machine.stack)
    machine.stack = []


@_on(b"t")
def _tuple(machine: PickleMachine) -> None:
    values = machine.pop_mark()
    machine.stack.append(tuple(values))


@_on(b"\x85", b"\x86", b"\x87")
def _short_tuple(machine: PickleMachine) -> None:
    values = [machine.pop() for _ in range(machine.opcode - 0x84)]
    machine.stack.append(tuple(reversed(values)))


@_on(b"a")
def _append(machine: PickleMachine) -> None:
    value = machine.pop()
    machine.top(list).append(value)


@_on(b"e")
def _appends(machine: PickleMachine) -> None:
    values = machine.pop_mark()
    machine.top(list).extend(values)


@_on(b"s")
def _set_item(machine: PickleMachine) -> None:
    value, key = machine.pop(), machine.pop()
    machine.top(dict)[check_key(key)] = value


@_on(b"u")
def _set_items(machine: PickleMachine) -> None:
    values = machine.pop_mark()
    if len(values) % 2:
        raise WeightsError("its pickle is damaged: a key without a value")
    target = machine.top(dict)
    for key, value in zip(values[::2], values[1::2], strict=True):
        target[check_key(key)] = value


# A pickler numbers what it remembers one by one, from 0 or (Python 2) from 1.
def _remember(machine: PickleMachine, index: int) -> None:
    if not machine.stack or index > len(machine.memo) + 1:
        raise WeightsError(f"its pickle is damaged: it remembers value {index} out of turn")
    machine.memo[index] = machine.stack[-1]


@_on(b"q", b"r")
def _put(machine: PickleMachine) -> None:
    _remember(machine, machine.integer(1 if machine.opcode == ord("q") else 4))


@_on(b"\x94")
def _memoize(machine: PickleMachine) -> None:
    _remember(machine, len(machine.memo))


@_on(b"h", b"j")
def _get(machine: PickleMachine) -> None:
    index = machine.integer(1 if machine.opcode == ord("h") else 4)
    if index not in machine.memo:
        raise WeightsError(f"its pickle is damaged: value {index} was never remembered")
    machine.stack.append(machine.memo[index])


@_on(b"c")
def _global(machine: PickleMachine) -> None:
    machine.push_name(machine.line(), machine.line())


@_on(b"\x93")
def _stack_global(machine: PickleMachine) -> None:
    name, module = machine.pop(), machine.pop()
    machine.push_name(module, name)


@_on(b"R", b"\x81")
def _call(machine: PickleMachine) -> None:
    """REDUCE, and NEWOBJ: for a function of ours there is no difference."""
    arguments, constructor = machine.pop(), machine.pop()
    if not isinstance(constructor, Constructor):
        raise WeightsError("its pickle calls something that makes no array; nothing of it was run")
    machine.stack.append(constructor(arguments))


@_on(b"b")
def _build(machine: PickleMachine) -> None:
    state = machine.pop()
    if machine.stack and type(machine.stack[-1]) is PickledOrderedDict:
        return
    machine.top(DeferredValue).set_state(state)


@_on(b"Q")
def _persistent(machine: PickleMachine) -> None:
    identity = machine.pop()
    if machine.persistent is None:
        raise WeightsError("its pickle points to objects outside itself, and there are none")
    machine.stack.append(machine.persistent(identity))


def _unknown(opcode: int) -> str:
    if opcode_name(opcode) is None:
        return f"its pickle is damaged: byte {opcode:#04x} is no instruction. Get the file again"
    return (
        f"its pickle uses {opcode_name(opcode)}, which weights are never written with; nothing of it was run. "
        "Save a dictionary of arrays alone, with protocol 2 to 5"
    )
