"""What a pickle says before all of it is known, and the plain values that it comes to."""

from __future__ import annotations

import codecs
from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any

from mrcnn_jax.errors import WeightsError
from mrcnn_jax.weights.io.messages import printable

MAX_VALUES = 2_000_000  # the largest checkpoints of the peers, with their optimizer's state, need some 10^5
_MAX_REPEATED = 10_000
_MAX_DEPTH = 100
_BLOCK = 1 << 20


class DeferredValue(ABC):
    """What becomes a value when the file has been understood as a whole."""

    cost = 0  # bytes of memory, beyond the file's own, that `value` takes

    @property
    @abstractmethod
    def value(self) -> Any:
        """The value, made when it is first asked for and then kept."""

    def set_state(self, state: Any) -> None:
        """What a pickle says about an object that it made before (the opcode BUILD)."""
        raise WeightsError(f"it gives a state to {printable(type(self).__name__)}, which has none")


class DeferredString(DeferredValue):
    """A long string left where it lies in the file; `encoding` None means bytes."""

    def __init__(self, view: memoryview, encoding: str | None):
        self.view, self.encoding = view, encoding
        self.cost = len(view)

    @cached_property
    def value(self) -> str | bytes:
        return bytes(self.view) if self.encoding is None else decode_string(self.view, self.encoding)

    @cached_property
    def data(self) -> memoryview:
        """The bytes that it stands for, one for each character of a text."""
        return _characters(self.view) if self.encoding == "utf-8" else self.view


class DeferredBytes(DeferredValue):
    """Bytes that a pickle keeps in a text, as Python 3 writes them for readers of Python 2."""

    def __init__(self, text: DeferredString):
        self.text, self.cost = text, text.cost

    @cached_property
    def value(self) -> bytes:
        return bytes(self.text.data)


def buffer_of(value: object) -> memoryview:
    """The bytes behind an array, from whatever string the pickle keeps them in."""
    if isinstance(value, DeferredBytes):
        value = value.text
    if isinstance(value, DeferredString):
        return value.data
    if type(value) is str:
        value = encode_latin1(value)
    if type(value) is bytes:
        return memoryview(value)
    raise WeightsError(f"the data of an array are {printable(type(value).__name__)}: arrays of objects are not read")


def encode_latin1(text: str) -> bytes:
    """One byte for each character."""
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        raise WeightsError("the data of an array are text") from None


def decode_string(view: memoryview, encoding: str) -> str:
    """A string of the file."""
    try:
        return str(view, encoding)
    except UnicodeDecodeError:
        raise WeightsError("a string in it is damaged") from None


def materialize(value: Any, size: int) -> Any:
    """Plain dictionaries, lists, tuples, strings, numbers and arrays of what was unpickled.

    `size`: bytes of the pickle. What a pickler wrote has no more bytes of strings and arrays, and, but for a few that
    it repeats by reference, no more values.
    """
    return _Finisher(size).plain(value, 0)


class _Finisher:
    def __init__(self, size: int):
        self.values, self.bytes = _MAX_REPEATED + size, size

    def plain(self, value: Any, depth: int) -> Any:
        """`value` without shared parts: what a small file repeats without end is counted as often as it stands."""
        self.values -= 1
        if depth > _MAX_DEPTH or self.values < 0:
            raise WeightsError("it nests or repeats values without end")
        if isinstance(value, DeferredValue):
            return self._deferred(value, depth)
        if isinstance(value, dict):
            return {key: self.plain(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list):
            return [self.plain(item, depth + 1) for item in value]
        if isinstance(value, tuple):
            return tuple([self.plain(item, depth + 1) for item in value])
        if value is None or type(value) in (bool, int, float, str, bytes):
            return value
        raise WeightsError(f"it has {printable(getattr(value, 'name', type(value).__name__))} where a value should be")

    def _deferred(self, value: DeferredValue, depth: int) -> Any:
        if "value" not in vars(value):
            self.bytes -= value.cost
            if self.bytes < 0:
                raise WeightsError("its arrays and strings hold more than the file does")
        result = value.value
        return self.plain(result, depth + 1) if isinstance(result, dict) else result


def _characters(view: memoryview) -> memoryview:
    """The Latin-1 bytes of a text in UTF-8, block by block."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    result = bytearray()
    try:
        for start in range(0, len(view), _BLOCK):
            result += encode_latin1(decoder.decode(view[start : start + _BLOCK]))
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        raise WeightsError("a string in it is damaged") from None
    return memoryview(result).toreadonly()
