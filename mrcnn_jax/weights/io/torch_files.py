"""Pickles: of NumPy arrays, and in the files of `torch.save`, in the zip format (since 1.6) and the legacy format.

A file of torch consists of a pickle, in which a tensor is a view (offset, shape, strides) of a storage, and the bytes
of the storages. torch is not needed. Sources: torch/serialization.py and torch/_utils.py of PyTorch 2.
"""

from __future__ import annotations

import io
import math
import mmap
import zipfile
import zlib
from typing import IO, Any

import numpy as np

from mrcnn_jax.errors import WeightsError
from mrcnn_jax.weights.io import pickles
from mrcnn_jax.weights.io.arrays import BFLOAT16, plain_numbers, printable
from mrcnn_jax.weights.io.pickles import Constructor, PickledValue, WeightsUnpickler, plain_value

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a legacy file
_LEGACY_PROTOCOL = 1001
_MAX_EXPANDED = 1 << 20  # size of a tensor that is larger than its storage (`expand` in torch)
_DTYPES = {
    "Float": "float32",
    "Double": "float64",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Long": "int64",
    "Int": "int32",
    "Short": "int16",
    "Char": "int8",
    "Byte": "uint8",
    "Bool": "bool",
}  # by the names of the storage types


class TorchStorageType(PickledValue):
    """Replaces `torch.FloatStorage` and the other types of storages."""

    def __init__(self, dtype: str):
        self.dtype = np.dtype(dtype).newbyteorder("<")


class TorchStorage(PickledValue):
    """The numbers of one or more tensors, which are read after the pickle."""

    numbers: np.ndarray

    def __init__(self, type: TorchStorageType, count: int):
        self.type, self.count = type, count

    @property
    def size(self) -> int:
        """Number of bytes in the file."""
        return self.count * self.type.dtype.itemsize

    def fill(self, data: bytes | memoryview) -> None:
        """Set the numbers."""
        if len(data) != self.size:
            raise WeightsError(f"a storage has {len(data)} bytes instead of {self.size}: get the file again")
        self.numbers = plain_numbers(np.frombuffer(data, self.type.dtype))


class TorchTensor(PickledValue):
    """Replaces the functions that rebuild a tensor; its gradient flag, hooks and metadata are ignored."""

    def __init__(self, storage: Any, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *unused: object):
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides

    @property
    def value(self) -> np.ndarray:  # type: ignore[override]
        numbers = self.storage.numbers
        # NumPy's own check overflows for very large sizes.
        last = self.offset + sum(step * (size - 1) for step, size in zip(self.strides, self.shape, strict=True))
        size = math.prod(self.shape)
        if not size:
            return numbers[:0].reshape(self.shape)
        is_inside = min((self.offset, *self.shape, *self.strides)) >= 0 and last < numbers.size
        if not is_inside or size > max(numbers.size, _MAX_EXPANDED):
            raise WeightsError(
                f"a tensor of shape {printable(self.shape)} exceeds its storage of {numbers.size} numbers"
            )
        width = numbers.itemsize
        strides = [step * width for step in self.strides]
        return np.ndarray(self.shape, numbers.dtype, numbers, self.offset * width, strides)


def read_zip(file: IO[bytes], archive: zipfile.ZipFile, root: str) -> Any:
    """Read the saved value from the members of `archive`, opened from `file`, in the folder `root`."""
    names = archive.namelist()
    if f"{root}/constants.pkl" in names:
        raise WeightsError("it is a TorchScript program: save its state_dict() with torch.save")
    if f"{root}/byteorder" in names and archive.read(f"{root}/byteorder") != b"little":
        raise WeightsError("it was written on a big-endian machine: load and save it again on another one")
    pickle, storages = archive.read(f"{root}/data.pkl"), _StorageTable()
    value = WeightsUnpickler(io.BytesIO(pickle), ALLOWED, storages.find).load()
    mapping = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    for key, storage in storages.items():
        member = archive.getinfo(f"{root}/data/{key}")
        if member.compress_type != zipfile.ZIP_STORED or storage.type.dtype == BFLOAT16:
            storage.fill(archive.read(member))  # not mapped, because it is converted: the mapping would stay in memory
            continue
        with archive.open(member):
            begin = file.tell()  # zipfile has read the header of the member, which its content follows
        data = mapping[begin : begin + member.file_size]
        if zlib.crc32(data) != member.CRC:
            raise WeightsError(f"its storage {printable(key)} is damaged (its checksum differs): get the file again")
        storage.fill(data)
    return plain_value(value, len(pickle))


def read_pickle(file: IO[bytes]) -> Any:
    """Read the value of a pickle or of a legacy file of torch."""
    value = WeightsUnpickler(file, pickles.ALLOWED).load()
    return _read_legacy(file) if value == _LEGACY_MAGIC else plain_value(value, file.tell())


def _read_legacy(file: IO[bytes]) -> Any:
    """Read the saved value of a legacy file after its first pickle."""
    protocol, system = (WeightsUnpickler(file, {}).load() for _ in range(2))
    if protocol != _LEGACY_PROTOCOL or system["little_endian"] is not True:
        raise WeightsError("it is from an unknown version of torch or a big-endian machine: load and save it again")
    storages = _StorageTable()
    value = WeightsUnpickler(file, ALLOWED, storages.find).load()
    size = file.tell()
    keys = WeightsUnpickler(file, {}).load()
    if sorted(keys) != sorted(storages):
        raise WeightsError("its storages are not those of its tensors: get the file again")
    for key in keys:
        count = int.from_bytes(file.read(8), "little")
        if count != storages[key].count:
            raise WeightsError(f"a storage has {count} numbers instead of {storages[key].count}: get the file again")
        storages[key].fill(file.read(storages[key].size))
    return plain_value(value, size)


class _StorageTable(dict[str, TorchStorage]):
    """Storages by their keys."""

    def find(self, identity: Any) -> TorchStorage:
        """Return the storage of a persistent id: ("storage", type, key, device, count), in legacy files with a view."""
        if type(identity) is not tuple or identity[:1] != ("storage",):
            raise WeightsError("it refers to something other than a storage of numbers: save only a state_dict()")
        _, storage_type, key, _, count, *view = identity
        if not isinstance(storage_type, TorchStorageType) or any(part is not None for part in view):
            raise WeightsError("it refers to a view of a storage: load and save it again with a newer torch")
        storage = self.setdefault(key, TorchStorage(storage_type, count))
        if (storage.type, storage.count) != (storage_type, count):
            raise WeightsError(f"storage {printable(key)} has two different descriptions")
        return storage


def _device(kind: str, index: int | None = None) -> str:
    return kind if index is None else f"{kind}:{index}"


ALLOWED: dict[str, Any] = {
    **pickles.ALLOWED,
    **{f"torch.{name}Storage": TorchStorageType(dtype) for name, dtype in _DTYPES.items()},
    **{f"torch.{dtype}": f"torch.{dtype}" for dtype in _DTYPES.values()},
    "torch.Size": Constructor(tuple),
    "torch.device": Constructor(_device),
    "torch._utils._rebuild_tensor": Constructor(TorchTensor),
    "torch._utils._rebuild_tensor_v2": Constructor(TorchTensor),
    "torch._utils._rebuild_parameter": Constructor(lambda tensor, *unused: tensor),
}
