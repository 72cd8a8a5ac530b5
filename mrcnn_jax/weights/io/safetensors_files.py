"""The .safetensors format: the length of a JSON header, the header, and the bytes of the tensors.

Read and written here rather than by the `safetensors` package, whose NumPy side (0.8.0) writes the memory of a
transposed array as if it were in order, hands out bools that are neither 0 nor 1, and copies what could be mapped.
Facts: https://github.com/huggingface/safetensors, "Format".
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

_MAX_HEADER = 16 << 20  # a tensor takes about a hundred bytes of it
_NAMES = {
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
_THEIRS = {NUMBER_FORMATS[name].dtype: theirs for theirs, name in _NAMES.items() if name != "bf16"}


def is_safetensors(data: memoryview) -> bool:
    """Whether `data` begins as such a file does."""
    return len(data) > 8 and data[8] == ord("{") and int.from_bytes(data[:8], "little") <= _MAX_HEADER


def read(data: memoryview) -> dict[str, np.ndarray]:
    """The tensors by name. They must cover the data exactly, as the format demands."""
    begin = 8 + int.from_bytes(data[:8], "little")
    if begin > len(data):
        raise WeightsError(TRUNCATED)
    header = _header(bytes(data[8:begin]))
    header.pop("__metadata__", None)
    spans = {name: _span(name, entry) for name, entry in header.items()}
    position = 0
    for name, (start, end) in sorted(spans.items(), key=lambda item: item[1]):
        if start != position:
            raise WeightsError(f"tensor {printable(name)} does not begin where the one before it ends")
        position = end
    if begin + position != len(data):
        raise WeightsError(TRUNCATED if begin + position > len(data) else "something follows its last tensor")
    return {name: _tensor(header[name], data[begin + start : begin + end]) for name, (start, end) in spans.items()}


def write(path: Path, state: Mapping[str, np.ndarray]) -> None:
    """Write `state`; wide numbers come first, so that all of them are aligned."""
    ordered = dict(sorted(state.items(), key=lambda item: -item[1].itemsize))
    header, position = {}, 0
    for name, array in ordered.items():
        offsets = [position, position + array.nbytes]
        header[name] = {
            "dtype": _THEIRS[array.dtype.newbyteorder("=")],
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
    try:
        header = json.loads(text.decode(), object_pairs_hook=_unrepeated)  # bytes may be of any encoding
    except WeightsError:
        raise
    except (ValueError, RecursionError):
        raise WeightsError("its header is damaged: get the file again") from None
    return header


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise WeightsError("its header names a tensor twice")
    return result


def _span(name: str, entry: object) -> tuple[int, int]:
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if type(offsets) is not list or len(offsets) != 2 or {type(offset) for offset in offsets} != {int}:
        raise WeightsError(f"tensor {printable(name)} is not described as the format demands")
    start, end = offsets
    if not 0 <= start <= end:
        raise WeightsError(f"tensor {printable(name)} has no meaningful extent")
    return start, end


def _tensor(entry: dict[str, Any], data: memoryview) -> np.ndarray:
    theirs, shape = entry.get("dtype"), entry.get("shape")
    if type(theirs) is not str or theirs not in _NAMES or type(shape) is not list:
        raise WeightsError(f"it holds a tensor of {printable(theirs)}, which is not read")
    return reshape(decode_numbers(data, NUMBER_FORMATS[_NAMES[theirs]]), tuple(shape))
