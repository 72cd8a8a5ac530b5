"""The .safetensors format: the length of a JSON header, the header, and the bytes of the tensors.

The `safetensors` package is not used: its NumPy interface (0.8.0) writes transposed arrays in the wrong order, returns
bools whose byte is neither 0 nor 1, and copies data that could be memory-mapped.
Source: https://github.com/huggingface/safetensors, "Format".
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mrcnn_jax.errors import WeightsError
from mrcnn_jax.weights.io.arrays import NUMBER_FORMATS, decode_numbers, reshape
from mrcnn_jax.weights.io.messages import TRUNCATED, printable

_MAX_HEADER = 16 << 20  # bytes; a tensor takes about 100 of them
_FORMATS = {
    "F16": "f2",
    "BF16": "bf16",
    "F32": "f4",
    "F64": "f8",
    "I8": "i1",
    "I16": "i2",
    "I32": "i4",
    "I64": "i8",
    "U8": "u1",
    "U16": "u2",
    "U32": "u4",
    "U64": "u8",
    "BOOL": "b1",
}
_DTYPE_NAMES = {NUMBER_FORMATS[name].dtype: dtype for dtype, name in _FORMATS.items() if name != "bf16"}


def is_safetensors(data: memoryview) -> bool:
    """Whether `data` begins like a .safetensors file."""
    return len(data) > 8 and data[8] == ord("{") and int.from_bytes(data[:8], "little") <= _MAX_HEADER


def read(data: memoryview) -> dict[str, np.ndarray]:
    """Read the tensors, by name. Raises WeightsError unless they cover the data exactly, as the format requires."""
    begin = 8 + int.from_bytes(data[:8], "little")
    if begin > len(data):
        raise WeightsError(TRUNCATED)
    header = _header(bytes(data[8:begin]))
    header.pop("__metadata__", None)
    spans = {name: _span(name, entry) for name, entry in header.items()}
    position = 0
    for name, (start, end) in sorted(spans.items(), key=lambda item: item[1]):
        if start != position:
            raise WeightsError(f"tensor {printable(name)} does not begin at the end of the previous one")
        position = end
    if begin + position != len(data):
        raise WeightsError(TRUNCATED if begin + position > len(data) else "it has data after its last tensor")
    return {name: _tensor(header[name], data[begin + start : begin + end]) for name, (start, end) in spans.items()}


def write(path: Path, state: Mapping[str, np.ndarray]) -> None:
    """Write `state`, in descending order of the item size, so that all tensors are aligned."""
    ordered = dict(sorted(state.items(), key=lambda item: -item[1].itemsize))
    header, position = {}, 0
    for name, array in ordered.items():
        offsets = [position, position + array.nbytes]
        header[name] = {
            "dtype": _DTYPE_NAMES[array.dtype.newbyteorder("=")],
            "shape": list(array.shape),
            "data_offsets": offsets,
        }
        position += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for array in ordered.values():
            file.write(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())


def _header(text: bytes) -> dict[str, Any]:
    # Decoded first, because json.loads accepts bytes of other encodings.
    try:
        header = json.loads(text.decode(), object_pairs_hook=_unique_pairs)
    except WeightsError:
        raise
    except (ValueError, RecursionError):
        raise WeightsError("its header is damaged: get the file again") from None
    return header


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise WeightsError("its header contains a tensor twice")
    return result


def _span(name: str, entry: object) -> tuple[int, int]:
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if type(offsets) is not list or len(offsets) != 2 or {type(offset) for offset in offsets} != {int}:
        raise WeightsError(f"tensor {printable(name)} is not described as the format requires")
    start, end = offsets
    if not 0 <= start <= end:
        raise WeightsError(f"tensor {printable(name)} has invalid offsets")
    return start, end


def _tensor(entry: dict[str, Any], data: memoryview) -> np.ndarray:
    dtype, shape = entry.get("dtype"), entry.get("shape")
    if type(dtype) is not str or dtype not in _FORMATS or type(shape) is not list:
        raise WeightsError(f"it contains a tensor of {printable(dtype)}, which is not supported")
    return reshape(decode_numbers(data, NUMBER_FORMATS[_FORMATS[dtype]]), tuple(shape))
