"""Files that `torch.save` wrote, in its zip format (since 1.6) and in the one before, read without torch.

Both are a pickle of whatever was saved, in which a tensor is a view (offset, sizes, strides) of a storage, and the
storages' bytes beside it. Facts: torch/serialization.py and torch/_utils.py of PyTorch 2.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np

from mrcnn_jax.errors import WeightsError
from mrcnn_jax.weights.io import numpy_pickles, unpickler, zip_files
from mrcnn_jax.weights.io.arrays import NUMBER_FORMATS, NumberFormat, decode_numbers, strided_view
from mrcnn_jax.weights.io.constructors import Constructor, AllowedGlobals
from mrcnn_jax.weights.io.deferred import DeferredValue, materialize
from mrcnn_jax.weights.io.messages import TRUNCATED, printable

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a file of the older format
_LEGACY_PROTOCOL = 1001
_STORAGES = {
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
    """`torch.FloatStorage` and its like."""

    def __init__(self, name: str, number: NumberFormat):
        self.name, self.number = name, number


class TorchStorage(DeferredValue):
    """The numbers that one or more tensors show. `find` gives their bytes when the whole file is known."""

    def __init__(self, kind: TorchStorageType, key: str, count: int, find: Callable[[TorchStorage], memoryview]):
        self.kind, self.key, self.count, self.find = kind, key, count, find

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return self.count * self.kind.number.stored.itemsize

    @cached_property
    def value(self) -> np.ndarray:
        """All its numbers."""
        data = self.find(self)
        if len(data) != self.size:
            raise WeightsError(f"storage {printable(self.key)} has {len(data)} bytes instead of {self.size}")
        return decode_numbers(data, self.kind.number)


class TorchTensor(DeferredValue):
    """A tensor that waits for its storage; whether it wants gradients, its hooks and its metadata are not looked at."""

    def __init__(self, storage: object, offset: object, shape: object, strides: object, *unused: object):
        if not isinstance(storage, TorchStorage) or len(unused) > 3:
            raise WeightsError("a tensor in it has no storage")
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides

    @cached_property
    def value(self) -> np.ndarray:
        return strided_view(self.storage.value, self.offset, self.shape, self.strides)


def read_zip(data: memoryview, members: dict[str, zip_files.ZipMember], root: str) -> Any:
    """What was saved, from the archive's members below the folder `root`."""
    if f"{root}/constants.pkl" in members:
        raise WeightsError("it is a TorchScript program, not weights: save its state_dict() with torch.save")
    order = members.get(f"{root}/byteorder")
    if order and bytes(zip_files.read_member(data, order)) != b"little":
        raise WeightsError("it comes from a big-endian machine: load and save it again on another one")

    def find(storage: TorchStorage) -> memoryview:
        name = f"{root}/data/{storage.key}"
        if name not in members:
            raise WeightsError(f"it lacks {printable(name)}")
        return zip_files.read_member(data, members[name])

    pickle = zip_files.read_member(data, members[f"{root}/data.pkl"])
    value, _ = unpickler.load(pickle, ALLOWED_GLOBALS, persistent=_Storages(find))
    return materialize(value, len(pickle))


def read_legacy(data: memoryview, start: int) -> Any:
    """What was saved, from a file whose first pickle, LEGACY_MAGIC, ends at `start`."""
    protocol, start = unpickler.load(data, {}, start=start)
    machine, start = unpickler.load(data, {}, start=start)
    if protocol != _LEGACY_PROTOCOL or type(machine) is not dict or machine.get("little_endian") is not True:
        raise WeightsError("it comes from an unknown version of torch or a big-endian machine: load and save it again")
    places: dict[str, memoryview] = {}
    storages = _Storages(lambda storage: places[storage.key])
    value, end = unpickler.load(data, ALLOWED_GLOBALS, start=start, persistent=storages)
    keys, position = unpickler.load(data, {}, start=end)
    if type(keys) is not list or set(map(type, keys)) - {str} or sorted(keys) != sorted(storages.known):
        raise WeightsError("its storages are not those that its tensors use: get the file again")
    for key in keys:
        position = _place(data, position, storages.known[key], places)
    return materialize(value, end - start)


def _place(data: memoryview, position: int, storage: TorchStorage, places: dict[str, memoryview]) -> int:
    """Note where the bytes of `storage` lie, after their count at `position`; the end of them."""
    begin = position + 8
    end = begin + storage.size
    if end > len(data):
        raise WeightsError(TRUNCATED)
    count = int.from_bytes(data[position:begin], "little", signed=True)
    if count != storage.count:
        raise WeightsError(f"storage {printable(storage.key)} has {count} numbers instead of {storage.count}")
    places[storage.key] = data[begin:end]
    return end


class _Storages:
    """Answers a torch pickle's persistent ids: ("storage", type, key, device, count), in old files with a view."""

    def __init__(self, find: Callable[[TorchStorage], memoryview]):
        self.find = find
        self.known: dict[str, TorchStorage] = {}

    def __call__(self, identity: object) -> TorchStorage:
        if type(identity) is not tuple or len(identity) not in (5, 6) or identity[0] != "storage":
            raise WeightsError("it refers to something that is no storage of numbers: save a state_dict() alone")
        _, kind, key, device, count, *view = identity
        if not isinstance(kind, TorchStorageType) or {type(key), type(device)} != {str} or type(count) is not int:
            raise WeightsError("it refers to a storage in no known way")
        if count < 0 or any(part is not None for part in view):
            raise WeightsError("it refers to a storage of no known extent: load and save it again with a newer torch")
        storage = self.known.setdefault(key, TorchStorage(kind, key, count, self.find))
        if (storage.kind, storage.count) != (kind, count):
            raise WeightsError(f"storage {printable(key)} is described in two ways")
        return storage


def _parameter(tensor: object, *unused: object) -> TorchTensor:
    if not isinstance(tensor, TorchTensor) or len(unused) != 2:
        raise WeightsError("a parameter in it has no tensor")
    return tensor


def _size(sizes: object) -> tuple[Any, ...]:
    if type(sizes) is not tuple:
        raise WeightsError("a torch.Size in it is made of something that is not sizes")
    return sizes


def _device(kind: object, index: object = None) -> str:
    if type(kind) is not str or not (index is None or type(index) is int):
        raise WeightsError("a torch.device in it is no device")
    return kind if index is None else f"{kind}:{index}"


ALLOWED_GLOBALS: AllowedGlobals = {
    **numpy_pickles.ALLOWED_GLOBALS,
    **{
        f"torch.{name}Storage": TorchStorageType(f"torch.{name}Storage", NUMBER_FORMATS[kind])
        for name, kind in _STORAGES.items()
    },
    **{f"torch.{name}": f"torch.{name}" for name in _DTYPES},
    "torch.Size": Constructor("torch.Size", _size),
    "torch.device": Constructor("torch.device", _device),
    "torch._utils._rebuild_tensor": Constructor("torch._utils._rebuild_tensor", TorchTensor),
    "torch._utils._rebuild_tensor_v2": Constructor("torch._utils._rebuild_tensor_v2", TorchTensor),
    "torch._utils._rebuild_parameter": Constructor("torch._utils._rebuild_parameter", _parameter),
}
