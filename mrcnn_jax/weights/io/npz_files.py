"""NumPy's .npz format, for arrays of numbers.

The header of an array is a Python literal. It is matched with a pattern, not evaluated. Source: numpy.lib.format.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mrcnn_jax.errors import WeightsError
from mrcnn_jax.weights.io import zip_files
from mrcnn_jax.weights.io.arrays import decode_numbers, number_format, reshape
from mrcnn_jax.weights.io.messages import printable

_SUFFIX = ".npy"
_MAGIC = b"\x93NUMPY"
_LENGTH_BYTES = {1: 2, 2: 4, 3: 4}  # bytes of the length of the header, by version
_MAX_HEADER = 4096
# Python 2 writes long integers with an L.
_SHAPE = rb"\(((?:\d{1,18}L?, ?)*(?:\d{1,18}L?)?)\)"
_HEADER = re.compile(
    rb"\{'descr': '([<>|=])([a-z]\d)', 'fortran_order': (True|False), 'shape': " + _SHAPE + rb", ?\}\s*"
)


def read(data: memoryview, members: dict[str, zip_files.ZipMember]) -> dict[str, np.ndarray]:
    """Read the arrays of an archive, by name."""
    return {name.removesuffix(_SUFFIX): _array(zip_files.read_member(data, member)) for name, member in members.items()}


def write(path: Path, state: Mapping[str, np.ndarray]) -> None:
    """Write an uncompressed archive."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in state.items():
            with archive.open(name + _SUFFIX, "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def _array(content: memoryview) -> np.ndarray:
    version = content[len(_MAGIC)] if len(content) > len(_MAGIC) else 0
    if content[: len(_MAGIC)] != _MAGIC or version not in _LENGTH_BYTES:
        raise WeightsError("it contains something other than an array, or an array of an unknown version")
    begin = len(_MAGIC) + 2 + _LENGTH_BYTES[version]
    end = begin + int.from_bytes(content[begin - _LENGTH_BYTES[version] : begin], "little")
    header = bytes(content[begin : min(end, begin + _MAX_HEADER)])
    match = _HEADER.fullmatch(header)
    if not match:
        raise WeightsError(
            f"it contains an array that is not of plain numbers ({printable(header.decode('latin-1').strip())})"
        )
    byte_order, type_name, fortran, shape = (group.decode() for group in match.groups())
    sizes = tuple(int(size) for size in re.findall(r"\d+", shape))
    return reshape(
        decode_numbers(content[end:], number_format(type_name, byte_order)), sizes, "F" if fortran == "True" else "C"
    )
