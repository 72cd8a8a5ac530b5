"""NumPy's .npz archives: arrays of numbers only."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from mrcnn_jax.weights import zip_files
from mrcnn_jax.weights.arrays import flat, number, shaped
from mrcnn_jax.weights.errors import WeightsError, shown

_SUFFIX = ".npy"
_MAX_HEADER = 1 << 16
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def read(data: memoryview, members: dict[str, zip_files.Member]) -> dict[str, np.ndarray]:
    """The arrays of an archive, by name."""
    return {name.removesuffix(_SUFFIX): _array(zip_files.contents(data, member)) for name, member in members.items()}


def write(path: Path, state: Mapping[str, np.ndarray]) -> None:
    """Write an uncompressed archive."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in state.items():
            with archive.open(name + _SUFFIX, "w", force_zip64=True) as member:
                npy.write_array(member, array, allow_pickle=False)


def _array(content: memoryview) -> np.ndarray:
    header = io.BytesIO(content[:_MAX_HEADER])
    try:
        version = npy.read_magic(header)
        if version not in _HEADERS:
            raise WeightsError(f"it holds an array of the unknown .npy version {version}")
        shape, fortran, dtype = _HEADERS[version](header)
    except WeightsError:
        raise
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        raise WeightsError(f"the header of an array in it is damaged ({shown(str(error))})") from None
    if dtype.hasobject or dtype.kind not in "biuf":
        raise WeightsError(f"it holds an array of {shown(dtype.str)}; weights are plain numbers")
    kind = number(f"{dtype.kind}{dtype.itemsize}", dtype.byteorder)
    return shaped(flat(content[header.tell() :], kind), shape, "F" if fortran else "C")
