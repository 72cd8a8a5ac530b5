"""An unpickler that can only create plain values and arrays, for files that are not trusted.

Python's unpickler gets everything that a pickle can call from `find_class` and `persistent_load`, except for codes in
the cache of the extension registry, which is emptied first. Here they return replacements from `ALLOWED` and nothing is
imported. All replacements have a `__setstate__`, because the unpickler would otherwise set any attribute of them
(opcode BUILD). Their results are `PickledValue`s, never arrays or dtypes of NumPy, whose own `__setstate__` is not made
for untrusted content. `plain_value` replaces them when the whole pickle is read.
"""

from __future__ import annotations

import copyreg
import itertools
import pickle
import re
from collections.abc import Callable, Mapping
from typing import IO, Any

import numpy as np

from mrcnn_jax.errors import WeightsError
from mrcnn_jax.weights.io.arrays import plain_numbers, printable

_MAX_REPEATED = 10_000  # values in addition to one for each byte of the pickle
_NUMBERS = re.compile(r"b1|f[248]|[iu][1248]")  # NumPy's type strings of plain numbers


class PickledValue:
    """Stands for a value of a pickle until the whole pickle is read."""

    value: Any

    def __setstate__(self, state: Any) -> None:
        raise WeightsError(f"it sets the state of a {type(self).__name__}, which has none")


class Constructor(PickledValue):
    """Replaces a function or class that a pickle may call."""

    def __init__(self, build: Callable[..., Any]):
        self._build = build

    def __call__(self, *arguments: Any) -> Any:
        return self._build(*arguments)


class PickledDict(dict[Any, Any]):
    """Replaces `OrderedDict` and `Counter`. Their attributes, such as `_metadata` of a state dict, are dropped."""

    def __setstate__(self, state: Any) -> None:
        pass


class PickledAttributes(dict[str, Any]):
    """Replaces an object by the dictionary of its attributes."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.update(state)


class PickledDtype(PickledValue):
    """Replaces `numpy.dtype(name)`; the byte order follows in the state."""

    def __init__(self, name: str | bytes, *unused: object):
        self.name, self.byte_order = name, "="

    def __setstate__(self, state: Any) -> None:
        _, self.byte_order, *parts = state
        if any(part is not None for part in parts[:3]):
            raise WeightsError("it contains an array of records or subarrays; only plain numbers are read")

    @property
    def dtype(self) -> np.dtype:
        """The dtype. Raises WeightsError for anything but plain numbers."""
        name = _text(self.name)
        if not _NUMBERS.fullmatch(name):
            raise WeightsError(f"it contains an array of {printable(name)}; only plain numbers are read")
        return np.dtype(_text(self.byte_order) + name)

    @property
    def value(self) -> str:  # type: ignore[override]
        return self.dtype.name


class PickledArray(PickledValue):
    """Replaces `numpy._core.multiarray._reconstruct`; the content of the array follows in the state."""

    def __init__(self, *unused: object):
        pass

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        self.value = _array(data, dtype, shape, "F" if fortran else "C")


class PickledBufferArray(PickledValue):
    """Replaces `numpy._core.numeric._frombuffer`, which NumPy uses with protocol 5."""

    def __init__(self, data: Any, dtype: Any, shape: Any, order: Any, axes: Any = None):
        array = _array(data, dtype, shape, order)
        self.value = array if axes is None else array.transpose(axes)


class PickledScalar(PickledValue):
    """Replaces `numpy._core.multiarray.scalar`, one number."""

    def __init__(self, dtype: Any, data: Any):
        self.value = _array(data, dtype, (), "C")[()]


def _array(data: Any, dtype: PickledDtype, shape: Any, order: Any) -> np.ndarray:
    array: np.ndarray = np.ndarray(shape, dtype.dtype, data, order=order)
    if array.nbytes != len(data):
        raise WeightsError(f"an array of shape {printable(shape)} has {len(data)} bytes of data")
    return plain_numbers(array)


def _text(value: Any) -> Any:
    """Decode a byte string, as Python 2 writes text; anything else is returned as it is."""
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _encode(text: str, encoding: str) -> bytes:
    """Replaces `_codecs.encode`, which Python 3 writes bytes with in protocol 2."""
    if encoding != "latin1":
        raise WeightsError(f"it encodes text as {printable(encoding)}")
    return text.encode("latin-1")


ALLOWED: dict[str, Any] = {
    "numpy.ndarray": "numpy.ndarray",
    "numpy.dtype": Constructor(PickledDtype),
    "_codecs.encode": Constructor(_encode),
    "__builtin__.bytes": Constructor(lambda: b""),  # the data of an empty array in protocol 2
    "collections.OrderedDict": Constructor(PickledDict),
    "collections.Counter": Constructor(PickledDict),  # the type of the milestones in torch's MultiStepLR
    "argparse.Namespace": PickledAttributes,  # torchvision's checkpoints keep their flags
    **{
        f"numpy.{core}.{name}": Constructor(build)
        for core in ("core", "_core")
        for name, build in {
            "multiarray._reconstruct": PickledArray,
            "multiarray.scalar": PickledScalar,
            "numeric._frombuffer": PickledBufferArray,
        }.items()
    },
}


class WeightsUnpickler(pickle.Unpickler):
    """Reads one pickle from a file.

    Args:
      names: replacements of the names that the pickle may refer to, by module and name.
      persistent: returns the object of a persistent id, for objects outside of the pickle.
    """

    def __init__(
        self, file: IO[bytes], names: Mapping[str, Any], persistent: Callable[[Any], PickledValue] | None = None
    ):
        super().__init__(file, encoding="bytes")  # of Python 2's strings, among them the data of arrays
        copyreg.clear_extension_cache()
        self._names, self._persistent = names, persistent

    def find_class(self, module: str, name: str) -> Any:
        """Return the replacement of `module.name`. Raises WeightsError if there is none."""
        if f"{module}.{name}" in self._names:
            return self._names[f"{module}.{name}"]
        raise WeightsError(
            f"its pickle refers to {printable(f'{module}.{name}')}, which weights do not need; nothing of it was run."
            " If the file is your own and contains a whole model object, save only its weights:"
            " torch.save(model.state_dict(), path)"
        )

    def persistent_load(self, pid: Any) -> PickledValue:
        """Return the object of a persistent id. Raises WeightsError if the pickle should have none."""
        if self._persistent is None:
            raise WeightsError("its pickle refers to an object outside of it, and there is none")
        return self._persistent(pid)


def plain_value(value: Any, size: int) -> Any:
    """Convert an unpickled value to plain dictionaries, lists, tuples, strings, numbers and arrays.

    Byte strings are decoded as Latin-1, because Python 2 writes all strings as bytes. `size` is the number of bytes of
    the pickle. Raises WeightsError for other values, and for so many that they must be the same ones, repeated by
    reference.
    """
    remaining = itertools.count(_MAX_REPEATED + size, -1)

    def convert(value: Any) -> Any:
        if next(remaining) < 0:
            raise WeightsError("it repeats values without limit")
        if isinstance(value, PickledValue):
            return value.value
        if isinstance(value, dict):
            return {_key(key): convert(item) for key, item in value.items()}
        if isinstance(value, list):
            return [convert(item) for item in value]
        if isinstance(value, tuple):
            return tuple([convert(item) for item in value])
        if value is None or isinstance(value, bool | int | float | str | bytes | bytearray):
            return _text(value)
        raise WeightsError(f"it contains a {type(value).__name__}: save only a dictionary of arrays")

    return convert(value)


def _key(key: object) -> str | int:
    if isinstance(key, str | bytes) or type(key) is int:
        return _text(key)
    raise WeightsError(f"a dictionary has a {type(key).__name__} as a key; keys must be strings or integers")
