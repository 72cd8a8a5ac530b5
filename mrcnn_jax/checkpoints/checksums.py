"""Checksums of the arrays in a checkpoint, which detect damage during and after writing."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from mrcnn_jax.errors import DamagedCheckpointError, format_list
from mrcnn_jax.runtime.trees import leaves_by_path

MAX_LISTED = 3  # arrays in an error message
ChecksumRecord = dict[str, Any]  # the content of the JSON file in a checkpoint


def make_record(items: Mapping[str, Any]) -> ChecksumRecord:
    """Return dtype, shape and CRC-32 of each leaf (NumPy array) of each item, and a CRC-32 of the record itself.

    The speed is about 2.5 GB/s per core.
    """
    leaves = {name: leaves_by_path(item) for name, item in items.items()}
    flat = [leaf for item in leaves.values() for leaf in item.values()]
    with ThreadPoolExecutor() as pool:  # zlib releases the GIL
        checksums = iter(list(pool.map(_checksum, flat)))
    entries = {
        name: {path: [*_signature(leaf), next(checksums)] for path, leaf in item.items()}
        for name, item in leaves.items()
    }
    return {"items": entries, "crc32": json_checksum(entries)}


def differences(recorded: Mapping[str, list[Any]], template: Any) -> list[str]:
    """Return how the recorded leaves of an item differ from those of `template` in name, dtype or shape."""
    wanted = {path: _signature(leaf) for path, leaf in leaves_by_path(template).items()}
    written = {path: leaf[:2] for path, leaf in recorded.items()}
    return [
        f"{path} was {_describe(written.get(path))}, is {_describe(wanted.get(path))}"
        for path in {**written, **wanted}
        if written.get(path) != wanted.get(path)
    ]


def verify(recorded: Mapping[str, list[Any]], item: Any) -> None:
    """Raise DamagedCheckpointError, naming the leaves, if `item` differs from the recorded checksums."""
    actual = make_record({"": item})["items"][""]
    wrong = [path for path in {**recorded, **actual} if recorded.get(path) != actual.get(path)]
    if wrong:
        raise DamagedCheckpointError(f"wrong checksum of {format_list(wrong, MAX_LISTED)}")


def _signature(leaf: Any) -> list[Any]:
    return [str(leaf.dtype), list(leaf.shape)]


def _checksum(leaf: Any) -> int:
    return zlib.crc32(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)


def json_checksum(items: Any) -> int:
    return zlib.crc32(json.dumps(items, sort_keys=True).encode())


def _describe(signature: list[Any] | None) -> str:
    return "absent" if signature is None else f"{signature[0]}{signature[1]}"
