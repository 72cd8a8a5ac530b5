"""Reading and writing of weights files. The format is detected from the content, and nothing in a file is executed.

    read(path)           nested dictionaries, lists, tuples, strings, numbers and NumPy arrays
    write(path, state)   .npz or .safetensors

Formats: `torch.save` (zip and legacy), pickles of NumPy arrays (protocols 2 to 5, including those of Python 2), .npz
and .safetensors. torch is not needed.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import safetensors.numpy

from mrcnn_jax.errors import WeightsError
from mrcnn_jax.weights.io import torch_files
from mrcnn_jax.weights.io.arrays import plain_numbers, printable

_SUFFIXES = (".npz", ".safetensors")
# An interrupted copy may have its full length, filled with zeros. So many zero bytes at the end are an error.
_ZERO_TAIL = 1 << 20
# Limits against decompression bombs: the ratio applies above this size. Weights compress to about 90 %.
_MAX_RATIO, _MAX_UNLIMITED = 16, 64 << 20
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
        try:
            return _content(file, Path(path))
        except WeightsError as error:
            raise WeightsError(f"{path}: {error}") from None
        except Exception as error:  # of many kinds, from the unpickler, zipfile, NumPy and safetensors
            raise WeightsError(
                f"{path}: it is damaged, incomplete, or contains something other than plain arrays"
                f" ({printable(error)}): get the file again"
            ) from error


def write(path: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
    """Write arrays by name, atomically, as .npz or .safetensors depending on the suffix of `path`."""
    path = Path(path)
    check_suffix(path)
    # safetensors writes an array in the order of its memory.
    arrays = {name: np.asarray(value, order="C") for name, value in state.items()}
    for name, array in arrays.items():
        if not isinstance(name, str):
            raise WeightsError(f"{path}: {name!r} is not a string")
        if array.dtype.kind not in "biuf" or array.itemsize > 8:
            raise WeightsError(f"{path}: {name} is {array.dtype}, which is not supported: convert it to float32")
    unfinished = path.with_name(path.name + ".unfinished")
    try:
        if path.suffix == ".npz":
            with unfinished.open("wb") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]
        else:
            safetensors.numpy.save_file(arrays, unfinished)
            unfinished.chmod(0o644)  # safetensors lets only the owner read it
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def check_suffix(path: str | os.PathLike[str]) -> None:
    """Raise WeightsError unless `write` supports the suffix of `path`."""
    if Path(path).suffix not in _SUFFIXES:
        raise WeightsError(f"{path}: the suffix must be {' or '.join(_SUFFIXES)}")


def _content(file: IO[bytes], path: Path) -> Any:
    begin, size = file.read(512), file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _ZERO_TAIL))
    if size > _ZERO_TAIL and not any(file.read()):
        raise WeightsError("it ends in zeros, as after an interrupted download or copy: get the file again")
    file.seek(0)
    if begin[:2] == b"PK":
        with zipfile.ZipFile(file) as archive:
            return _archive(file, archive, size)
    if begin[:1] == b"\x80":
        return torch_files.read_pickle(file)
    if begin[8:9] == b"{":
        with safetensors.safe_open(path, "numpy", backend="pread") as tensors:
            return {name: plain_numbers(tensors.get_tensor(name)) for name in tensors.keys()}  # noqa: SIM118
    raise WeightsError(_describe_other_format(begin))


def _archive(file: IO[bytes], archive: zipfile.ZipFile, size: int) -> Any:
    names = archive.namelist()
    inflated = sum(member.file_size for member in archive.infolist())
    if inflated > max(_MAX_UNLIMITED, _MAX_RATIO * size):
        raise WeightsError(f"it would grow from {size} to {inflated} bytes, which is too much for weights")
    roots = [name.removesuffix("/data.pkl") for name in names if name.endswith("/data.pkl")]
    if len(roots) == 1:
        return torch_files.read_zip(file, archive, roots[0])
    if names and all(name.endswith(".npy") for name in names):
        return {name.removesuffix(".npy"): _npy_array(archive.read(name)) for name in names}
    raise WeightsError("it is a zip archive of neither torch nor NumPy: unpack it, perhaps it contains weights")


def _npy_array(content: bytes) -> np.ndarray:
    stream = io.BytesIO(content)
    array = plain_numbers(np.lib.format.read_array(stream, allow_pickle=False))
    if stream.read(1):
        raise WeightsError("it contains an array with too much data: get the file again")
    return array


def _describe_other_format(begin: bytes) -> str:
    if not begin:
        return "it is empty: get the file again"
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
