"""NumPy arrays from the bytes of a file, as views of the memory-mapped file where possible.

Shapes, offsets and strides from the file are validated before they are passed to NumPy. Arrays are aligned and
read-only, because they may be views of the file.
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
_MAX_BYTES = 1 << 48  # of an array; axes of size 0 count as 1
_MAX_EXPANDED = 1 << 20  # size of a tensor that is larger than its storage (`expand` in torch)
_BLOCK = 1 << 18  # numbers that are converted at a time


class NumberFormat(NamedTuple):
    """The dtype of numbers in a file and the dtype of the array that they are read into."""

    stored: np.dtype
    dtype: np.dtype
    convert: Callable[[np.ndarray, np.ndarray], None] | None = None  # (stored, result); None: NumPy's conversion


def _bfloat16_to_float32(bfloat16: np.ndarray, result: np.ndarray) -> None:
    """Write the bits of each bfloat16 to the upper half of a float32."""
    np.left_shift(bfloat16, np.uint32(16), out=result.view(np.uint32))


NUMBER_FORMATS = {
    **{
        name: NumberFormat(np.dtype("<" + name), np.dtype(name))
        for name in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")
    },
    # Read as bytes and converted: NumPy gives wrong results for bools whose byte is neither 0 nor 1.
    "b1": NumberFormat(np.dtype("u1"), np.dtype(bool)),
    "bf16": NumberFormat(np.dtype("<u2"), np.dtype(np.float32), _bfloat16_to_float32),
}


def number_format(name: str, byte_order: str = "<") -> NumberFormat:
    """Return the format of numbers with NumPy's type string `name`, such as "f4".

    Raises WeightsError for anything but plain numbers.
    """
    if name not in NUMBER_FORMATS or byte_order not in ("<", ">", "|", "="):
        raise WeightsError(f"it contains an array of {printable(byte_order + name)}; only plain numbers are read")
    format = NUMBER_FORMATS[name]
    return format._replace(stored=format.stored.newbyteorder(">")) if byte_order == ">" else format


def decode_numbers(data: memoryview, format: NumberFormat) -> np.ndarray:
    """Return all numbers in `data` as a flat array, without a copy if possible."""
    if data.nbytes % format.stored.itemsize:
        raise WeightsError(f"{data.nbytes} bytes are not a multiple of {format.stored.itemsize}-byte numbers")
    stored: np.ndarray = np.ndarray((data.nbytes // format.stored.itemsize,), format.stored, data)
    if format.convert is None and stored.dtype == format.dtype and stored.flags.aligned:
        result = stored
    else:
        result = _convert(stored, format)
    result.flags.writeable = False
    return result


def reshape(numbers: np.ndarray, shape: object, order: object = "C") -> np.ndarray:
    """Reshape a flat array to the `shape` that a file declares, in C or Fortran `order`. Raises WeightsError."""
    sizes = _check_shape(shape, numbers.itemsize)
    if math.prod(sizes) != numbers.size or order not in ("C", "F"):
        raise WeightsError(f"an array of shape {printable(sizes)} has data for {numbers.size} numbers")
    return numbers.reshape(sizes, order="F" if order == "F" else "C")


def strided_view(numbers: np.ndarray, offset: object, shape: object, strides: object) -> np.ndarray:
    """Return a view of a flat array. `offset` and `strides` count numbers, not bytes, as in torch.

    Raises WeightsError if they are invalid or reach outside of the array.
    """
    sizes = _check_shape(shape, numbers.itemsize)
    if type(offset) is not int or type(strides) is not tuple or len(strides) != len(sizes):
        raise WeightsError("a tensor has an inconsistent offset, shape and strides")
    if offset < 0 or any(type(step) is not int or step < 0 for step in strides):
        raise WeightsError("a tensor has an invalid offset or stride")
    if not math.prod(sizes):
        return numbers[:0].reshape(sizes)
    steps = tuple(step if size > 1 else 0 for step, size in zip(strides, sizes, strict=True))
    last = offset + sum(step * (size - 1) for step, size in zip(steps, sizes, strict=True))
    if last >= numbers.size or math.prod(sizes) > max(numbers.size, _MAX_EXPANDED):
        raise WeightsError(f"a tensor of shape {printable(sizes)} exceeds its storage of {numbers.size} numbers")
    width = numbers.itemsize
    return np.ndarray(sizes, numbers.dtype, numbers, offset * width, tuple(step * width for step in steps))


def _check_shape(shape: object, width: int) -> tuple[int, ...]:
    if type(shape) is not tuple or len(shape) > _MAX_DIMENSIONS:
        raise WeightsError(f"the shape of an array is a {printable(type(shape).__name__)} or has too many axes")
    if any(type(size) is not int or size < 0 for size in shape):
        raise WeightsError(f"the shape of an array is {printable(shape)}")
    if math.prod(max(size, 1) for size in shape) * width > _MAX_BYTES:
        raise WeightsError(f"an array of shape {printable(shape)} is too large")
    return shape


def _convert(stored: np.ndarray, format: NumberFormat) -> np.ndarray:
    """Return a converted copy. Pages of the file are released block by block, to limit memory."""
    result = np.empty(stored.shape, format.dtype)
    for start in range(0, stored.size, _BLOCK):
        block, target = stored[start : start + _BLOCK], result[start : start + _BLOCK]
        if format.convert:
            format.convert(block, target)
        else:
            target[:] = block
        _release_pages(block)
    return result


def _release_pages(block: np.ndarray) -> None:
    """Release the memory of the file's pages that are entirely inside `block`."""
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
