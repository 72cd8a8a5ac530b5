"""Values of a pickle that are computed after the whole file is read, and their conversion to plain values."""

from __future__ import annotations

import codecs
from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any

from mrcnn_jax.errors import WeightsError
from mrcnn_jax.weights.io.messages import printable

MAX_VALUES = 2_000_000  # the largest published checkpoints, with optimizer state, have about 10^5
_MAX_REPEATED = 10_000
_MAX_DEPTH = 100
_BLOCK = 1 << 20


class DeferredValue(ABC):
    """A value that is computed after the whole file is read."""

    cost = 0  # bytes of memory that `value` takes in addition to the file

    @property
    @abstractmethod
    def value(self) -> Any:
        """The value, computed once."""

    def set_state(self, state: Any) -> None:
        """Set the state of the object (opcode BUILD)."""
        raise WeightsError(f"it sets the state of a {printable(type(self).__name__)}, which has none")


class DeferredString(DeferredValue):
    """A long string that stays in the file until it is needed; bytes if `encoding` is None."""

    def __init__(self, view: memoryview, encoding: str | None):
        self.view, self.encoding = view, encoding
        self.cost = len(view)

    @cached_property
    def value(self) -> str | bytes:
        return bytes(self.view) if self.encoding is None else decode_string(self.view, self.encoding)

    @cached_property
    def data(self) -> memoryview:
        """The bytes of the string; for text, one byte per character."""
        return _utf8_to_latin1(self.view) if self.encoding == "utf-8" else self.view


class DeferredBytes(DeferredValue):
    """Bytes that are stored as text, as Python 3 writes them with protocol 2."""

    def __init__(self, text: DeferredString):
        self.text, self.cost = text, text.cost

    @cached_property
    def value(self) -> bytes:
        return bytes(self.text.data)


def buffer_of(value: object) -> memoryview:
    """Return the bytes of an array from the string that they are stored in."""
    if isinstance(value, DeferredBytes):
        value = value.text
    if isinstance(value, DeferredString):
        return value.data
    if type(value) is str:
        value = encode_latin1(value)
    if type(value) is bytes:
        return memoryview(value)
    raise WeightsError(f"the data of an array is {printable(type(value).__name__)}: arrays of objects are not read")


def encode_latin1(text: str) -> bytes:
    """Encode one byte per character. Raises WeightsError for other characters."""
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        raise WeightsError("the data of an array is text") from None


def decode_string(view: memoryview, encoding: str) -> str:
    """Decode a string. Raises WeightsError if it is damaged."""
    try:
        return str(view, encoding)
    except UnicodeDecodeError:
        raise WeightsError("a string is damaged: get the file again") from None


def materialize(value: Any, size: int) -> Any:
    """Convert an unpickled value to plain dictionaries, lists, tuples, strings, numbers and arrays.

    `size` is the number of bytes of the pickle. Strings and arrays may not have more bytes than that, and there may not
    be more values, apart from some that are repeated by reference. Raises WeightsError otherwise.
    """
    return _Materializer(size).convert(value, 0)


class _Materializer:
    """Converts values within a budget of values and bytes."""

    def __init__(self, size: int):
        self.values, self.bytes = _MAX_REPEATED + size, size

    def convert(self, value: Any, depth: int) -> Any:
        """Convert `value`. A value that is referenced several times counts each time."""
        self.values -= 1
        if depth > _MAX_DEPTH or self.values < 0:
            raise WeightsError("it nests or repeats values without limit")
        if isinstance(value, DeferredValue):
            return self._deferred(value, depth)
        if isinstance(value, dict):
            return {key: self.convert(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list):
            return [self.convert(item, depth + 1) for item in value]
        if isinstance(value, tuple):
            return tuple([self.convert(item, depth + 1) for item in value])
        if value is None or type(value) in (bool, int, float, str, bytes):
            return value
        raise WeightsError(f"it has {printable(getattr(value, 'name', type(value).__name__))} instead of a value")

    def _deferred(self, value: DeferredValue, depth: int) -> Any:
        if "value" not in vars(value):
            self.bytes -= value.cost
            if self.bytes < 0:
                raise WeightsError("its arrays and strings are larger than the file")
        result = value.value
        return self.convert(result, depth + 1) if isinstance(result, dict) else result


def _utf8_to_latin1(view: memoryview) -> memoryview:
    decoder = codecs.getincrementaldecoder("utf-8")()
    result = bytearray()
    try:
        for start in range(0, len(view), _BLOCK):
            result += encode_latin1(decoder.decode(view[start : start + _BLOCK]))
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        raise WeightsError("a string is damaged: get the file again") from None
    return memoryview(result).toreadonly()
