"""Writing and reading of single checkpoints with Orbax, with a checksum of every array."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from mrcnn_jax.checkpoints.workdir import latest_step, make_writable_folder
from mrcnn_jax.errors import CheckpointError, DamagedCheckpointError, format_changes, format_list
from mrcnn_jax.runtime.trees import leaves_by_path

CHECKSUMS = "checksums"  # item of a checkpoint: a JSON file
MAX_LISTED = 3  # arrays in an error message


def open_manager(folder: epath.Path, keep: int | None) -> OrbaxManager:
    """Return a manager of the checkpoints in `folder`, for the main process. Unfinished checkpoints are removed.

    Raises ConfigError if the folder cannot be written to.
    """
    make_writable_folder(folder)
    # Not left to Orbax, which removes them in the background, where a second manager could interfere.
    entries = list(folder.iterdir()) if folder.exists() else []  # object stores have no empty folders
    for unfinished in filter(ocp.utils.is_tmp_checkpoint, entries):
        _remove(unfinished)
    multiprocessing_options = _main_process_only(folder.name)
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep, create=False, multiprocessing_options=multiprocessing_options
    )
    return OrbaxManager(folder, options=options)


def _remove(folder: epath.Path) -> None:
    """Remove a folder. Retries for a few seconds, because a failed save may still be writing."""
    for _ in range(20):
        try:
            return folder.rmtree(missing_ok=True)
        except OSError:
            time.sleep(0.2)
    folder.rmtree()


class OrbaxManager(ocp.CheckpointManager):
    """A checkpoint manager without preemption checks, which the training loop does in all processes."""

    def reached_preemption(self, step: int) -> bool:
        return False


def _main_process_only(prefix: str) -> ocp.options.MultiprocessingOptions:
    return ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0}, barrier_sync_key_prefix=prefix)


@contextlib.contextmanager
def convert_write_errors(step: int, folder: epath.Path) -> Iterator[None]:
    """Convert errors of Orbax (OSError, and ValueError of tensorstore) to CheckpointError."""
    try:
        yield
    except (OSError, ValueError) as error:
        code = re.search(r"os_error_code='(\d+)'", str(error))
        reason = os.strerror(int(code[1])) if code else getattr(error, "strerror", None) or str(error)
        raise CheckpointError(step, latest_step(folder), folder, reason) from error


def save_arguments(items: Mapping[str, Any]) -> ocp.args.Composite:
    """Return the arguments for Orbax to save the items that have arrays, and their checksums."""
    items = {name: item for name, item in items.items() if jax.tree.leaves(item)}
    arguments = {name: ocp.args.StandardSave(item) for name, item in items.items()}
    return ocp.args.Composite(**arguments, **{CHECKSUMS: ocp.args.JsonSave(make_record(items))})


def read_checksums(folder: epath.Path) -> dict[str, dict[str, list[Any]]]:
    """Read the checksums of a checkpoint: item -> path of a leaf -> [dtype, shape, CRC-32].

    Raises DamagedCheckpointError.
    """
    with _convert_read_errors("the list of checksums"):
        record = json.loads((folder / CHECKSUMS / "metadata").read_text())
        items: dict[str, dict[str, list[Any]]] = record["items"]
        intact = record["crc32"] == _json_checksum(items)
    if not intact:
        raise DamagedCheckpointError("the list of checksums is damaged")
    return items


def read_item(folder: epath.Path, name: str, recorded: Mapping[str, list[Any]], template: Any = None) -> Any:
    """Read one item in the structure of `template`, or in nested dicts. Raises DamagedCheckpointError."""
    options = _main_process_only(folder.parent.name)
    handler = ocp.StandardCheckpointHandler(multiprocessing_options=options)
    with _convert_read_errors(name), ocp.Checkpointer(handler, multiprocessing_options=options) as reader:
        item = reader.restore(folder / name, args=ocp.args.StandardRestore(template))
    verify(recorded, item)
    return item


@contextlib.contextmanager
def _convert_read_errors(what: str) -> Iterator[None]:
    """Convert any error to DamagedCheckpointError, because damaged files cause all types of errors."""
    try:
        yield
    except (PermissionError, MemoryError):
        raise  # not caused by damaged files
    except Exception as error:
        lines = str(error).splitlines() or [""]
        raise DamagedCheckpointError(f"{what} cannot be read: {type(error).__name__}: {lines[0][:200]}") from error


def make_record(items: Mapping[str, Any]) -> dict[str, Any]:
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
    return {"items": entries, "crc32": _json_checksum(entries)}


def differences(recorded: Mapping[str, list[Any]], template: Any) -> list[str]:
    """Return how the recorded leaves of an item differ from those of `template` in name, dtype or shape."""
    wanted = {path: _signature(leaf) for path, leaf in leaves_by_path(template).items()}
    written = {path: leaf[:2] for path, leaf in recorded.items()}
    return format_changes(written, wanted, _describe)


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


def _json_checksum(items: Any) -> int:
    return zlib.crc32(json.dumps(items, sort_keys=True).encode())


def _describe(signature: list[Any] | None) -> str:
    return "absent" if signature is None else f"{signature[0]}{signature[1]}"
