"""One checkpoint in a folder of checkpoints: Orbax writes and reads its items, with a checksum of every array."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from mrcnn_jax.checkpoints.checksums import make_record, read_record, verify
from mrcnn_jax.checkpoints.workdir import complete_steps, make_writable_folder
from mrcnn_jax.errors import CheckpointError, DamagedCheckpointError

CHECKSUMS = "checksums"


def open_manager(folder: epath.Path, keep: int | None) -> OrbaxManager:
    """Orbax's manager, in the main process alone. What interrupted saves left in `folder` is removed."""
    make_writable_folder(folder)
    # Orbax itself would do it in the background, and a second manager soon after the first in the way of that.
    entries = list(folder.iterdir()) if folder.exists() else []  # in a store there are no empty folders
    for unfinished in filter(ocp.utils.is_tmp_checkpoint, entries):
        _remove(unfinished)
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=False, multiprocessing_options=_alone(folder.name))
    return OrbaxManager(folder, options=options)


def _remove(folder: epath.Path) -> None:
    """Remove a folder. What failed in this process a moment ago may still be writing there, for another moment."""
    for _ in range(20):
        try:
            return folder.rmtree(missing_ok=True)
        except OSError:
            time.sleep(0.2)
    folder.rmtree()


class OrbaxManager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        """Never: the loop asks for itself, in all processes alike, and Orbax asking in one would confuse it."""
        return False


def _alone(prefix: str) -> ocp.options.MultiprocessingOptions:
    """Orbax waits for no other process than the main one."""
    return ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0}, barrier_sync_key_prefix=prefix)


@contextlib.contextmanager
def convert_write_errors(step: int, folder: epath.Path) -> Iterator[None]:
    """What Orbax raises (OSError, ValueError of its C++ part) becomes CheckpointError."""
    try:
        yield
    except (OSError, ValueError) as error:
        code = re.search(r"os_error_code='(\d+)'", str(error))
        reason = os.strerror(int(code[1])) if code else getattr(error, "strerror", None) or str(error)
        raise CheckpointError(step, max(complete_steps(folder), default=None), folder, reason) from error


def save_arguments(items: Mapping[str, Any]) -> ocp.args.Composite:
    """What to tell Orbax to save: the items that have arrays, and their checksums."""
    items = {name: item for name, item in items.items() if jax.tree.leaves(item)}
    arguments = {name: ocp.args.StandardSave(item) for name, item in items.items()}
    return ocp.args.Composite(**arguments, **{CHECKSUMS: ocp.args.JsonSave(make_record(items))})


def read_checksums(folder: epath.Path) -> dict[str, dict[str, list[Any]]]:
    """The checksums of one checkpoint, by item. Raises DamagedCheckpointError."""
    with _reading("the list of checksums"):
        text = (folder / CHECKSUMS / "metadata").read_text()
    return read_record(text)


def read_item(folder: epath.Path, name: str, recorded: Mapping[str, list[Any]], template: Any = None) -> Any:
    """One item, as it was written; without a template, in nested dicts. Raises DamagedCheckpointError."""
    options = _alone(folder.parent.name)
    handler = ocp.StandardCheckpointHandler(multiprocessing_options=options)
    with _reading(name), ocp.Checkpointer(handler, multiprocessing_options=options) as reader:
        item = reader.restore(folder / name, args=ocp.args.StandardRestore(template))
    verify(recorded, item)
    return item


@contextlib.contextmanager
def _reading(what: str) -> Iterator[None]:
    """Any error in here is one of damaged files: names, sizes and numbers in them may be anything."""
    try:
        yield
    except (PermissionError, MemoryError):
        raise  # says nothing about the files
    except Exception as error:
        lines = str(error).splitlines() or [""]
        raise DamagedCheckpointError(f"{what} cannot be read: {type(error).__name__}: {lines[0][:200]}") from error
