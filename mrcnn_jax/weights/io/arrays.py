"""Bytes of a file as NumPy arrays, without a copy where the machine can read the numbers where they lie.

Nothing is believed: a shape, an offset or a stride is checked before NumPy sees it. Every array is aligned and
read-only, since it may be a window on the file itself.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from mrcnn_jax.errors import WeightsError
from mrcnn_jax.weights.io.messages import printable

_MAX_DIMENSIONS = 32
_MAX_BYTES = 1 << 48  # of an array's address range; the product of an empty array's other axes counts too
_EXPANDED = 1 << 20  # numbers that a tensor may show of a smaller storage (`expand` repeats without a copy)
_BLOCK = 1 << 18  # numbers converted at a time


class NumberFormat(NamedTuple):
    """How a file stores one number, and what it is in an array."""

    stored: np.dtype
    dtype: np.dtype
    convert: Callable[[np.ndarray, np.ndarray], None] | None = None  # from stored, into the array; None: as NumPy does


def _widen(bfloat16: np.ndarray, result: np.ndarray) -> None:
    """The bits of a bfloat16 are the upper half of a float32's."""
    np.left_shift(bfloat16, np.uint32(16), out=result.view(np.uint32))


NUMBER_FORMATS = {
    **{
        name: NumberFormat(np.dtype("<" + name), np.dtype(name))
        for name in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")
    },
    # NumPy counts wrongly, and indexes by the wrong count, where a bool's byte is neither 0 nor 1: none is left so.
    "b1": NumberFormat(np.dtype("u1"), np.dtype(bool)),
    "bf16": NumberFormat(np.dtype("<u2"), np.dtype(np.float32), _widen),
}


def number_format(name: str, byte_order: str = "<") -> NumberFormat:
    """The number that NumPy calls `name` ("f4"); ">" is the byte order of big-endian machines."""
    if name not in NUMBER_FORMATS or byte_order not in ("<", ">", "|", "="):
        raise WeightsError(f"it holds an array of {printable(byte_order + name)}; weights are plain numbers")
    found = NUMBER_FORMATS[name]
    return found._replace(stored=found.stored.newbyteorder(">")) if byte_order == ">" else found


def decode_numbers(data: memoryview, kind: NumberFormat) -> np.ndarray:
    """(len(data) / size of a number,) array of all the numbers in `data`."""
    if data.nbytes % kind.stored.itemsize:
        raise WeightsError(f"{data.nbytes} bytes are no whole count of {kind.stored.itemsize}-byte numbers")
    stored: np.ndarray = np.ndarray((data.nbytes // kind.stored.itemsize,), kind.stored, data)
    if kind.convert is None and stored.dtype == kind.dtype and stored.flags.aligned:
        result = stored
    else:
        result = _converted(stored, kind)
    result.flags.writeable = False
    return result


def reshape(numbers: np.ndarray, shape: object, order: object = "C") -> np.ndarray:
    """A flat array in the `shape` that a file declares; `order` "F" means that the first axis varies fastest."""
    sizes = _dimensions(shape, numbers.itemsize)
    if math.prod(sizes) != numbers.size or order not in ("C", "F"):
        raise WeightsError(f"an array of shape {printable(sizes)} has data for {numbers.size} numbers")
    return numbers.reshape(sizes, order="F" if order == "F" else "C")


def strided_view(numbers: np.ndarray, offset: object, shape: object, strides: object) -> np.ndarray:
    """A view of a flat array as torch describes it; `offset` and `strides` count numbers, not bytes."""
    sizes = _dimensions(shape, numbers.itemsize)
    if type(offset) is not int or type(strides) is not tuple or len(strides) != len(sizes):
        raise WeightsError("a tensor's offset, sizes and strides do not belong together")
    if offset < 0 or any(type(step) is not int or step < 0 for step in strides):
        raise WeightsError("a tensor has a negative or meaningless offset or stride")
    if not math.prod(sizes):
        return numbers[:0].reshape(sizes)
    steps = tuple(step if size > 1 else 0 for step, size in zip(strides, sizes, strict=True))
    last = offset + sum(step * (size - 1) for step, size in zip(steps, sizes, strict=True))
    if last >= numbers.size or math.prod(sizes) > max(numbers.size, _EXPANDED):
        raise WeightsError(
            f"a tensor of shape {printable(sizes)} reaches outside its storage of {numbers.size} numbers"
        )
    width = numbers.itemsize
    return np.ndarray(sizes, numbers.dtype, numbers, offset * width, tuple(step * width for step in steps))


def _dimensions(shape: object, width: int) -> tuple[int, ...]:
    if type(shape) is not tuple or len(shape) > _MAX_DIMENSIONS:
        raise WeightsError(f"an array's shape is {printable(type(shape).__name__)} of too many axes or of no sizes")
    if any(type(size) is not int or size < 0 for size in shape):
        raise WeightsError(f"an array's shape is {printable(shape)}")
    if math.prod(max(size, 1) for size in shape) * width > _MAX_BYTES:
        raise WeightsError(f"an array of shape {printable(shape)} cannot be")
    return shape


def _converted(stored: np.ndarray, kind: NumberFormat) -> np.ndarray:
    """A copy, block by block; pages of the file are let go as they are used up, so that they do not add to it."""
    result = np.empty(stored.shape, kind.dtype)
    for start in range(0, stored.size, _BLOCK):
        block, target = stored[start : start + _BLOCK], result[start : start + _BLOCK]
        if kind.convert:
            kind.convert(block, target)
        else:
            target[:] = block
        _let_go(block)
    return result


def _let_go(block: np.ndarray) -> None:
    """Tell the system that the pages wholly inside `block` are not needed now (they can be read again)."""
    mapping: Any = block
    while isinstance(mapping, np.ndarray):
        mapping = mapping.base
    if not isinstance(mapping, mmap.mmap) or not hasattr(mapping, "madvise"):
        return
    begin = block.ctypes.data - np.frombuffer(mapping, np.uint8).ctypes.data
    first = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE
    pages = (begin + block.nbytes - first) // mmap.PAGESIZE
    if pages > 0:
        mapping.madvise(mmap.MADV_DONTNEED, first, pages * mmap.PAGESIZE)
