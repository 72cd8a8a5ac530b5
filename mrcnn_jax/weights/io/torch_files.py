"""Files of `torch.save`, in the zip format (since 1.6) and the legacy format, read without torch.

Both consist of a pickle, in which a tensor is a view (offset, shape, strides) of a storage, and the bytes of the
storages. Sources: torch/serialization.py and torch/_utils.py of PyTorch 2.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np

from mrcnn_jax.errors import WeightsError
from mrcnn_jax.weights.io import numpy_pickles, unpickler, zip_files
from mrcnn_jax.weights.io.arrays import NUMBER_FORMATS, NumberFormat, decode_numbers, strided_view
from mrcnn_jax.weights.io.constructors import AllowedGlobals, Constructor
from mrcnn_jax.weights.io.deferred import DeferredValue, materialize
from mrcnn_jax.weights.io.messages import TRUNCATED, printable

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a legacy file
_LEGACY_PROTOCOL = 1001
_STORAGE_FORMATS = {
    "Float": "f4",
    "Double": "f8",
    "Half": "f2",
    "BFloat16": "bf16",
    "Long": "i8",
    "Int": "i4",
    "Short": "i2",
    "Char": "i1",
    "Byte": "u1",
    "Bool": "b1",
}
_DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")


class TorchStorageType:
    """Replaces `torch.FloatStorage` and the other types of storages."""

    def __init__(self, name: str, format: NumberFormat):
        self.name, self.format = name, format


class TorchStorage(DeferredValue):
    """The numbers of one or more tensors. `find_bytes` returns their bytes once the whole file is read."""

    def __init__(self, type: TorchStorageType, key: str, count: int, find_bytes: Callable[[TorchStorage], memoryview]):
        self.type, self.key, self.count, self.find_bytes = type, key, count, find_bytes

    @property
    def size(self) -> int:
        """Number of bytes in the file."""
        return self.count * self.type.format.stored.itemsize

    @cached_property
    def value(self) -> np.ndarray:
        """All numbers as a flat array."""
        data = self.find_bytes(self)
        if len(data) != self.size:
            raise WeightsError(f"storage {printable(self.key)} has {len(data)} bytes instead of {self.size}")
        return decode_numbers(data, self.type.format)


class TorchTensor(DeferredValue):
    """Replaces the functions that rebuild a tensor; its gradient flag, hooks and metadata are ignored."""

    def __init__(self, storage: object, offset: object, shape: object, strides: object, *unused: object):
        if not isinstance(storage, TorchStorage) or len(unused) > 3:
            raise WeightsError("a tensor has no storage")
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides

    @cached_property
    def value(self) -> np.ndarray:
        return strided_view(self.storage.value, self.offset, self.shape, self.strides)


def read_zip(data: memoryview, members: dict[str, zip_files.ZipMember], root: str) -> Any:
    """Read the saved value from the members of the archive in the folder `root`."""
    if f"{root}/constants.pkl" in members:
        raise WeightsError("it is a TorchScript program: save its state_dict() with torch.save")
    order = members.get(f"{root}/byteorder")
    if order and bytes(zip_files.read_member(data, order)) != b"little":
        raise WeightsError("it was written on a big-endian machine: load and save it again on another one")

    def find_bytes(storage: TorchStorage) -> memoryview:
        name = f"{root}/data/{storage.key}"
        if name not in members:
            raise WeightsError(f"{printable(name)} is missing")
        return zip_files.read_member(data, members[name])

    pickle = zip_files.read_member(data, members[f"{root}/data.pkl"])
    value, _ = unpickler.load(pickle, ALLOWED_GLOBALS, persistent=_StorageTable(find_bytes))
    return materialize(value, len(pickle))


def read_legacy(data: memoryview, start: int) -> Any:
    """Read the saved value of a legacy file, whose first pickle (`LEGACY_MAGIC`) ends at `start`."""
    protocol, start = unpickler.load(data, {}, start=start)
    system, start = unpickler.load(data, {}, start=start)
    if protocol != _LEGACY_PROTOCOL or type(system) is not dict or system.get("little_endian") is not True:
        raise WeightsError("it is from an unknown version of torch or a big-endian machine: load and save it again")
    contents: dict[str, memoryview] = {}
    storages = _StorageTable(lambda storage: contents[storage.key])
    value, end = unpickler.load(data, ALLOWED_GLOBALS, start=start, persistent=storages)
    keys, position = unpickler.load(data, {}, start=end)
    if type(keys) is not list or set(map(type, keys)) - {str} or sorted(keys) != sorted(storages.by_key):
        raise WeightsError("its storages are not those of its tensors: get the file again")
    for key in keys:
        contents[key], position = _storage_bytes(data, position, storages.by_key[key])
    return materialize(value, end - start)


def _storage_bytes(data: memoryview, position: int, storage: TorchStorage) -> tuple[memoryview, int]:
    """Return the bytes of `storage`, which follow their count at `position`, and the position after them."""
    begin = position + 8
    end = begin + storage.size
    if end > len(data):
        raise WeightsError(TRUNCATED)
    count = int.from_bytes(data[position:begin], "little", signed=True)
    if count != storage.count:
        raise WeightsError(f"storage {printable(storage.key)} has {count} numbers instead of {storage.count}")
    return data[begin:end], end


class _StorageTable:
    """Storages by their persistent ids: ("storage", type, key, device, count), in legacy files with a view."""

    def __init__(self, find_bytes: Callable[[TorchStorage], memoryview]):
        self.find_bytes = find_bytes
        self.by_key: dict[str, TorchStorage] = {}

    def __call__(self, identity: object) -> TorchStorage:
        if type(identity) is not tuple or len(identity) not in (5, 6) or identity[0] != "storage":
            raise WeightsError("it refers to something other than a storage of numbers: save only a state_dict()")
        _, storage_type, key, device, count, *view = identity
        if (
            not isinstance(storage_type, TorchStorageType)
            or {type(key), type(device)} != {str}
            or type(count) is not int
        ):
            raise WeightsError("a reference to a storage is invalid")
        if count < 0 or any(part is not None for part in view):
            raise WeightsError(
                "it refers to a storage view or an invalid size: load and save it again with a newer torch"
            )
        storage = self.by_key.setdefault(key, TorchStorage(storage_type, key, count, self.find_bytes))
        if (storage.type, storage.count) != (storage_type, count):
            raise WeightsError(f"storage {printable(key)} has two different descriptions")
        return storage


def _parameter(tensor: object, *unused: object) -> TorchTensor:
    if not isinstance(tensor, TorchTensor) or len(unused) != 2:
        raise WeightsError("a parameter has no tensor")
    return tensor


def _size(sizes: object) -> tuple[Any, ...]:
    if type(sizes) is not tuple:
        raise WeightsError("a torch.Size is not a tuple")
    return sizes


def _device(kind: object, index: object = None) -> str:
    if type(kind) is not str or not (index is None or type(index) is int):
        raise WeightsError("a torch.device is invalid")
    return kind if index is None else f"{kind}:{index}"


ALLOWED_GLOBALS: AllowedGlobals = {
    **numpy_pickles.ALLOWED_GLOBALS,
    **{
        f"torch.{name}Storage": TorchStorageType(f"torch.{name}Storage", NUMBER_FORMATS[format])
        for name, format in _STORAGE_FORMATS.items()
    },
    **{f"torch.{name}": f"torch.{name}" for name in _DTYPES},
    "torch.Size": Constructor("torch.Size", _size),
    "torch.device": Constructor("torch.device", _device),
    "torch._utils._rebuild_tensor": Constructor("torch._utils._rebuild_tensor", TorchTensor),
    "torch._utils._rebuild_tensor_v2": Constructor("torch._utils._rebuild_tensor_v2", TorchTensor),
    "torch._utils._rebuild_parameter": Constructor("torch._utils._rebuild_parameter", _parameter),
}
