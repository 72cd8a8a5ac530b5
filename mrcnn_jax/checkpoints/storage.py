"""Writing and reading of single checkpoints with Orbax, with a checksum of every array."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from mrcnn_jax.checkpoints.checksums import json_checksum, make_record, verify
from mrcnn_jax.checkpoints.workdir import latest_step, make_writable_folder
from mrcnn_jax.errors import CheckpointError, DamagedCheckpointError

CHECKSUMS = "checksums"


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
    """Read the checksums of a checkpoint, by item. Raises DamagedCheckpointError."""
    with _convert_read_errors("the list of checksums"):
        record = json.loads((folder / CHECKSUMS / "metadata").read_text())
        items: dict[str, dict[str, list[Any]]] = record["items"]
        intact = record["crc32"] == json_checksum(items)
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
