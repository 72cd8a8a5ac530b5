"""Replacements of the names in pickles of NumPy arrays and of the containers in checkpoints."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from mrcnn_jax.errors import WeightsError
from mrcnn_jax.weights.io.arrays import NumberFormat, decode_numbers, number_format, reshape
from mrcnn_jax.weights.io.constructors import (
    AllowedGlobals,
    Constructor,
    PickledAttributes,
    PickledOrderedDict,
    check_key,
)
from mrcnn_jax.weights.io.deferred import DeferredBytes, DeferredString, DeferredValue, buffer_of, encode_latin1
from mrcnn_jax.weights.io.messages import printable

_NDARRAY = "numpy.ndarray"


class PickledDtype(DeferredValue):
    """Replaces `numpy.dtype(name)`; the byte order follows in the state."""

    def __init__(self, name: str, align: object = False, copy: object = True):
        if type(name) is not str:
            raise WeightsError(f"a dtype is {printable(type(name).__name__)}; only plain numbers are read")
        self.name, self.byte_order = name, "<"

    @cached_property
    def value(self) -> str:
        return self.format.dtype.name

    @property
    def format(self) -> NumberFormat:
        return number_format(self.name, self.byte_order)

    def set_state(self, state: Any) -> None:
        """Set the state (version, byte order, subarray, names, fields, ...); no records or subarrays."""
        if type(state) is not tuple or len(state) < 5 or type(state[1]) is not str or state[2:5] != (None,) * 3:
            raise WeightsError("the dtype of an array is not one of plain numbers")
        self.byte_order = state[1]


class PickledArray(DeferredValue):
    """Replaces `numpy._core.multiarray._reconstruct`; shape and data follow in the state."""

    def __init__(self, cls: object, *unused: object):
        if cls is not _NDARRAY:
            raise WeightsError("it reconstructs something that is not an array")
        self.state: tuple[Any, ...] | None = None

    def set_state(self, state: Any) -> None:
        """Set the state (version 1, shape, dtype, whether in Fortran order, data)."""
        if type(state) is not tuple or len(state) != 5 or state[0] != 1 or not isinstance(state[2], PickledDtype):
            raise WeightsError("the description of an array is invalid")
        self.state = state
        self.cost = _length(state[4])

    @cached_property
    def value(self) -> np.ndarray:
        if self.state is None:
            raise WeightsError("an array has no data")
        _, shape, dtype, fortran, data = self.state
        return reshape(decode_numbers(buffer_of(data), dtype.format), shape, "F" if fortran else "C")


class PickledBufferArray(DeferredValue):
    """Replaces `numpy._core.numeric._frombuffer`, which NumPy uses with protocol 5."""

    def __init__(self, data: object, dtype: object, shape: object, order: object, axes: object = None):
        if not isinstance(dtype, PickledDtype):
            raise WeightsError("an array has no dtype")
        self.data, self.dtype, self.shape, self.order, self.axes = data, dtype, shape, order, axes
        self.cost = _length(data)

    @cached_property
    def value(self) -> np.ndarray:
        numbers = decode_numbers(buffer_of(self.data), self.dtype.format)
        if self.order != "K":
            return reshape(numbers, self.shape, self.order)
        array = reshape(numbers, self.shape)
        if type(self.axes) is not tuple or len(self.axes) != array.ndim:
            raise WeightsError("the order of the axes of an array does not fit its shape")
        if set(map(type, self.axes)) != {int} or sorted(self.axes) != list(range(array.ndim)):
            raise WeightsError("the order of the axes of an array does not fit its shape")
        return array.transpose(self.axes)


class PickledScalar(DeferredValue):
    """Replaces `numpy._core.multiarray.scalar`, one number."""

    def __init__(self, dtype: object, data: object):
        if not isinstance(dtype, PickledDtype):
            raise WeightsError("a number has no dtype")
        self.dtype, self.data = dtype, data

    @cached_property
    def value(self) -> Any:
        return reshape(decode_numbers(buffer_of(self.data), self.dtype.format), ())[()]


def _length(data: object) -> int:
    return len(data) if isinstance(data, str | bytes) else data.cost if isinstance(data, DeferredValue) else 0


def _encode(text: object, encoding: object) -> Any:
    """Replaces `_codecs.encode`, which Python 3 writes bytes with in protocol 2."""
    if encoding != "latin1":
        raise WeightsError("it encodes text in an unexpected way")
    if isinstance(text, DeferredString):
        return DeferredBytes(text)
    if type(text) is not str:
        raise WeightsError("it encodes something other than text")
    return encode_latin1(text)


def _empty_bytes() -> bytes:
    """Replaces `bytes()`, the data of an empty array in protocol 2."""
    return b""


def _ordered_dict(pairs: object = None) -> PickledOrderedDict:
    """Replaces `collections.OrderedDict()` and, of Python 2, `OrderedDict(pairs)`."""
    result = PickledOrderedDict()
    if pairs is None:
        return result
    if type(pairs) is not list or any(type(pair) not in (list, tuple) or len(pair) != 2 for pair in pairs):
        raise WeightsError("an OrderedDict is created from something other than pairs")
    result.update((check_key(key), value) for key, value in pairs)
    pairs.clear()  # picklers write each list once; repeated references must not multiply its content
    return result


def _counter(counts: object) -> dict[Any, Any]:
    """Replaces `collections.Counter`, the type of the milestones in torch's MultiStepLR."""
    if type(counts) is not dict:
        raise WeightsError("a Counter is created from something other than counts")
    return counts


ALLOWED_GLOBALS: AllowedGlobals = {
    _NDARRAY: _NDARRAY,
    "numpy.dtype": Constructor("numpy.dtype", PickledDtype),
    "_codecs.encode": Constructor("_codecs.encode", _encode),
    "__builtin__.bytes": Constructor("bytes", _empty_bytes),
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
