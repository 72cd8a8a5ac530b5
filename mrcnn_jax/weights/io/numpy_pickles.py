"""What a pickle of NumPy arrays, or of the plain containers of a checkpoint, may ask for."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from mrcnn_jax.errors import WeightsError
from mrcnn_jax.weights.io.arrays import NumberFormat, decode_numbers, number_format, reshape
from mrcnn_jax.weights.io.constructors import (
    PickledAttributes,
    Constructor,
    AllowedGlobals,
    PickledOrderedDict,
    check_key,
)
from mrcnn_jax.weights.io.deferred import DeferredValue, DeferredString, DeferredBytes, buffer_of, encode_latin1
from mrcnn_jax.weights.io.messages import printable

_NDARRAY = "numpy.ndarray"


class PickledDtype(DeferredValue):
    """`numpy.dtype(name)`; its byte order comes later."""

    def __init__(self, name: str, align: object = False, copy: object = True):
        if type(name) is not str:
            raise WeightsError(f"an array's dtype is {printable(type(name).__name__)}; weights are plain numbers")
        self.name, self.byte_order = name, "<"

    @cached_property
    def value(self) -> str:
        return self.number.dtype.name

    @property
    def number(self) -> NumberFormat:
        return number_format(self.name, self.byte_order)

    def set_state(self, state: Any) -> None:
        """(version, byte order, subarray, names, fields, ...): of records and subarrays nothing is read."""
        if type(state) is not tuple or len(state) < 5 or type(state[1]) is not str or state[2:5] != (None,) * 3:
            raise WeightsError("an array's dtype is not of plain numbers")
        self.byte_order = state[1]


class PickledArray(DeferredValue):
    """An array whose shape and data come after it."""

    def __init__(self, kind: object, *unused: object):
        if kind is not _NDARRAY:
            raise WeightsError("it reconstructs something that is not an array")
        self.state: tuple[Any, ...] | None = None

    def set_state(self, state: Any) -> None:
        """(version 1, shape, dtype, whether the first axis varies fastest, data)."""
        if type(state) is not tuple or len(state) != 5 or state[0] != 1 or not isinstance(state[2], PickledDtype):
            raise WeightsError("an array in it is described in no known way")
        self.state = state
        self.cost = _length(state[4])

    @cached_property
    def value(self) -> np.ndarray:
        if self.state is None:
            raise WeightsError("an array in it has no data")
        _, shape, kind, fortran, data = self.state
        return reshape(decode_numbers(buffer_of(data), kind.number), shape, "F" if fortran else "C")


class PickledBufferArray(DeferredValue):
    """An array as NumPy writes it with protocol 5."""

    def __init__(self, data: object, kind: object, shape: object, order: object, axes: object = None):
        if not isinstance(kind, PickledDtype):
            raise WeightsError("an array in it has no dtype")
        self.data, self.kind, self.shape, self.order, self.axes = data, kind, shape, order, axes
        self.cost = _length(data)

    @cached_property
    def value(self) -> np.ndarray:
        numbers = decode_numbers(buffer_of(self.data), self.kind.number)
        if self.order != "K":
            return reshape(numbers, self.shape, self.order)
        array = reshape(numbers, self.shape)
        if type(self.axes) is not tuple or len(self.axes) != array.ndim:
            raise WeightsError("an array's order of axes does not fit its shape")
        if set(map(type, self.axes)) != {int} or sorted(self.axes) != list(range(array.ndim)):
            raise WeightsError("an array's order of axes does not fit its shape")
        return array.transpose(self.axes)


class PickledScalar(DeferredValue):
    """One NumPy number."""

    def __init__(self, kind: object, data: object):
        if not isinstance(kind, PickledDtype):
            raise WeightsError("a number in it has no dtype")
        self.kind, self.data = kind, data

    @cached_property
    def value(self) -> Any:
        return reshape(decode_numbers(buffer_of(self.data), self.kind.number), ())[()]


def _length(data: object) -> int:
    return len(data) if isinstance(data, str | bytes) else data.cost if isinstance(data, DeferredValue) else 0


def _encode(text: object, encoding: object) -> Any:
    """`_codecs.encode`: how Python 3 writes bytes with protocol 2."""
    if encoding != "latin1":
        raise WeightsError("it encodes text in a way that no pickler does")
    if isinstance(text, DeferredString):
        return DeferredBytes(text)
    if type(text) is not str:
        raise WeightsError("it encodes something that is not text")
    return encode_latin1(text)


def _no_bytes() -> bytes:
    """`bytes()`: how Python 3 writes the data of an empty array with protocol 2."""
    return b""


def _ordered_dict(pairs: object = None) -> PickledOrderedDict:
    """Empty, or of the (key, value) pairs that Python 2 wrote."""
    result = PickledOrderedDict()
    if pairs is None:
        return result
    if type(pairs) is not list or any(type(pair) not in (list, tuple) or len(pair) != 2 for pair in pairs):
        raise WeightsError("an OrderedDict in it is made of something that is not pairs")
    result.update((check_key(key), value) for key, value in pairs)
    pairs.clear()  # a pickler writes them once; whoever repeats them by reference gets nothing for it
    return result


def _counter(counts: object) -> dict[Any, Any]:
    """`collections.Counter`, in which torch's MultiStepLR keeps its milestones."""
    if type(counts) is not dict:
        raise WeightsError("a Counter in it is made of something that is not counts")
    return counts


ALLOWED_GLOBALS: AllowedGlobals = {
    _NDARRAY: _NDARRAY,
    "numpy.dtype": Constructor("numpy.dtype", PickledDtype),
    "_codecs.encode": Constructor("_codecs.encode", _encode),
    "__builtin__.bytes": Constructor("bytes", _no_bytes),
    "collections.OrderedDict": Constructor("collections.OrderedDict", _ordered_dict),
    "collections.Counter": Constructor("collections.Counter", _counter),
    "argparse.Namespace": Constructor(
        "argparse.Namespace", PickledAttributes
    ),  # torchvision's checkpoints keep their flags
    **{
        f"numpy.{core}.{name}": Constructor(name, build)
        for core in ("core", "_core")
        for name, build in {
            "multiarray._reconstruct": PickledArray,
            "multiarray.scalar": PickledScalar,
            "numeric._frombuffer": PickledBufferArray,
        }.items()
    },
}
