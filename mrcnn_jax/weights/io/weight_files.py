"""Reading and writing of weights files. The format is detected from the content, and nothing in a file is executed.

    read(path)           nested dictionaries, lists, tuples, strings, numbers and NumPy arrays
    write(path, state)   .npz or .safetensors

Formats: `torch.save` (zip and legacy), pickles of NumPy arrays (protocols 2 to 5, including those of Python 2), .npz
and .safetensors. Neither torch nor Python's unpickler is used; see `unpickler`.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mrcnn_jax.errors import WeightsError
from mrcnn_jax.weights.io import npz_files, numpy_pickles, safetensors_files, torch_files, unpickler, zip_files
from mrcnn_jax.weights.io.deferred import materialize
from mrcnn_jax.weights.io.messages import printable

__all__ = ["WeightsError", "read", "write"]

_WRITERS = {".npz": npz_files.write, ".safetensors": safetensors_files.write}
# An interrupted copy may have its full length, filled with zeros. So many zero bytes at the end are an error.
_ZERO_TAIL = 1 << 20
_OTHER_FORMATS = {
    b"<": "it is a web page, not weights: download the file itself",
    b"version https://git-lfs": "it is a pointer to a file in Git LFS: run `git lfs pull`",
    b"\x1f\x8b": "it is compressed with gzip: unpack it first",
    b"BZh": "it is compressed with bzip2: unpack it first",
    b"\xfd7zXZ": "it is compressed with xz: unpack it first",
    b"\x89HDF": "it is an HDF5 file; Keras and TensorFlow weights are not supported",
    b"\x93NUMPY": "it is a single array without a name: save an .npz",
    b"\0" * 16: "it is filled with zeros, as after an interrupted download: get the file again",
}


def read(path: str | os.PathLike[str]) -> Any:
    """Read a weights file: usually a dictionary of arrays, or nested dictionaries with arrays.

    Arrays are read-only and may be views of the file, which must not be modified while they are used; replacing the
    file, as `write` does, is safe. bfloat16 is converted to float32.

    Raises WeightsError, with the path and what to do, if the file is damaged or incomplete, has an unknown format, or
    contains anything but arrays and plain values.
    """
    with Path(path).open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            raise WeightsError(f"{path}: it is empty: get the file again")
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    try:
        return _content(data)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None


def write(path: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
    """Write arrays by name, atomically, as .npz or .safetensors depending on the suffix of `path`."""
    path = Path(path)
    check_suffix(path)
    arrays = {name: np.asarray(value) for name, value in state.items()}
    for name, array in arrays.items():
        if not isinstance(name, str):
            raise WeightsError(f"{path}: {name!r} is not a string")
        if array.dtype.kind not in "biuf" or array.itemsize > 8:
            raise WeightsError(f"{path}: {name} is {array.dtype}, which is not supported: convert it to float32")
    unfinished = path.with_name(path.name + ".unfinished")
    try:
        _WRITERS[path.suffix](unfinished, arrays)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def check_suffix(path: str | os.PathLike[str]) -> None:
    """Raise WeightsError unless `write` supports the suffix of `path`."""
    if Path(path).suffix not in _WRITERS:
        raise WeightsError(f"{path}: the suffix must be {' or '.join(_WRITERS)}")


def _content(data: memoryview) -> Any:
    if data[:2] == b"PK":
        return _zip(data)
    if data[:1] == b"\x80":
        value, end = unpickler.load(data, numpy_pickles.ALLOWED_GLOBALS)
        if value != torch_files.LEGACY_MAGIC:
            return materialize(value, end)
        _check_zero_tail(data)
        return torch_files.read_legacy(data, end)
    if safetensors_files.is_safetensors(data):
        _check_zero_tail(data)
        return safetensors_files.read(data)
    raise WeightsError(_describe_other_format(bytes(data[:512])))


def _zip(data: memoryview) -> Any:
    members = zip_files.read_directory(data)
    roots = [name.removesuffix("/data.pkl") for name in members if name.endswith("/data.pkl")]
    if len(roots) == 1:
        return torch_files.read_zip(data, members, roots[0])
    if members and all(name.endswith(".npy") for name in members):
        return npz_files.read(data, members)
    raise WeightsError("it is a zip archive of neither torch nor NumPy: unpack it, perhaps it contains weights")


def _check_zero_tail(data: memoryview) -> None:
    """Raise WeightsError if the file ends in zeros. For formats without checksums."""
    if len(data) > _ZERO_TAIL and not np.frombuffer(data[-_ZERO_TAIL:], np.uint8).any():
        raise WeightsError("it ends in zeros, as after an interrupted download or copy: get the file again")


def _describe_other_format(begin: bytes) -> str:
    for magic, reason in _OTHER_FORMATS.items():
        if begin.startswith(magic):
            return reason
    if begin[257:262] == b"ustar":
        return (
            "it is a tar archive: unpack it first (torch before 0.4 wrote such files: save it again with a newer one)"
        )
    return (
        f"it has an unknown format (it begins with {printable(begin[:16])}); supported are .pth, .pkl, .npz and"
        " .safetensors. If it should be one of them, get the file again"
    )
