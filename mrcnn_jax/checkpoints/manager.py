"""Saving and restoring of checkpoints.

`Checkpointer` saves and restores the training state, `save_best` keeps the variables with the best metric, and
`load_variables` loads the model of a run for inference. Items of a checkpoint:

    workdir/checkpoints/<step>/      `params`, `model_state` (constants and running statistics), `ema` (the moving
                                     averages that inference uses, if enabled), `training` (step, optimizer state)
                                     and `checksums`
    workdir/best/<step>/             `params`, `model_state`, `checksums`, ready for inference
    workdir/corrupt/<step>/          damaged checkpoints, which are never deleted

A checkpoint is written to a temporary folder and renamed when it is complete; in object stores, which cannot rename, it
is complete when its commit file exists. Interrupted saves are therefore never used. Every array has a checksum, so that
damage is detected when the checkpoint is read. Only the main process accesses the disk. Arrays are saved as NumPy
arrays, independent of the number of processes and devices.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from mrcnn_jax.checkpoints import storage
from mrcnn_jax.checkpoints.ema import ema_variables
from mrcnn_jax.checkpoints.workdir import (
    BEST,
    CHECKPOINTS,
    CONFIG,
    CORRUPT,
    absolute_path,
    complete_steps,
    latest_step,
    read_config,
)
from mrcnn_jax.config import Config
from mrcnn_jax.distributed import collectives
from mrcnn_jax.errors import CheckpointError, ConfigError, DamagedCheckpointError, format_list
from mrcnn_jax.runtime import files

logger = logging.getLogger(__name__)


class Checkpointer:
    """Saves and restores training states (`training.step.TrainState`); a context manager.

    `save` and `wait` do nothing in processes other than the main one.
    """

    def __init__(self, workdir: epath.PathLike, keep: int):
        """Open the checkpoints of `workdir`, of which the last `keep` are kept. Unfinished ones are removed.

        Raises ConfigError if the folder cannot be written to.
        """
        self._workdir = absolute_path(workdir)
        self._folder = self._workdir / CHECKPOINTS
        self._saving = 0  # the step of the latest save
        self._manager = storage.open_manager(self._folder, keep) if collectives.is_main() else None

    def save(self, step: int, state: Any) -> None:
        """Write `state` in the background. It may be donated when this returns. A step that exists is not overwritten.

        Raises CheckpointError if this save, or the previous one in the background, fails.
        """
        if self._manager is None or self._manager.latest_step() == step:
            return
        self.wait()
        self.check_disk_space(step, state)
        # NumPy arrays are independent of the devices, and Orbax copies them.
        arguments = storage.save_arguments(_items(jax.device_get(state)))
        self._saving = step
        with storage.convert_write_errors(step, self._folder):
            self._manager.save(step, args=arguments)

    def check_disk_space(self, step: int, state: Any) -> None:
        """Raise CheckpointError if the disk is too full for a checkpoint of `state`, which may consist of shapes."""
        if self._manager is None or files.is_remote(self._folder):
            return
        needed = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
        free = shutil.disk_usage(self._folder).free
        if free < needed:
            reason = f"it needs {needed / 1e6:.1f} MB, but only {free / 1e6:.1f} MB are free"
            raise CheckpointError(step, latest_step(self._folder), self._folder, reason)

    def restore_latest(self, template: Any) -> Any | None:
        """Restore the newest intact state as NumPy arrays; None if there is no checkpoint.

        Newer checkpoints that are damaged are moved to `workdir/corrupt`, with a warning.

        Args:
          template: a state with the expected structure, shapes and dtypes; values are not needed (`jax.eval_shape`).

        Raises DamagedCheckpointError if no checkpoint is intact (none is moved then), and ConfigError if an intact one
        has other arrays than `template`.
        """
        assert self._manager is not None, "only the main process restores"
        self.wait()
        steps = complete_steps(self._folder)[::-1]
        if not steps:
            return None
        read = functools.partial(_restore, template=template)
        step, state, damaged = _read_newest(self._folder, steps, read, "move the folder away to restart the run")
        for bad, reason in damaged.items():
            logger.warning(
                "%s is damaged (%s) and was moved to %s; the run resumes from step %d",
                *(self._folder / str(bad), reason, self._move_to_corrupt(bad), step),
            )
        self._manager.reload()
        return state

    def _move_to_corrupt(self, step: int) -> epath.Path:
        """Move a damaged checkpoint, so that its step can be saved again, and return its new path."""
        folder = self._workdir / CORRUPT
        names = [str(step), *(f"{step}-{count}" for count in range(2, 1000))]
        target = next(folder / name for name in names if not (folder / name).exists())
        files.move_folder(self._folder / str(step), target)
        return target

    def wait(self) -> None:
        """Wait for the save in the background. Raises CheckpointError if it failed."""
        if self._manager is not None:
            with storage.convert_write_errors(self._saving, self._folder):
                self._manager.wait_until_finished()

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._manager is None:
            return
        try:
            self.wait()
        except CheckpointError as error:
            if kind is None:
                raise
            logger.error("%s", error)  # must not hide the error that ended the run
        finally:
            self._manager.close()


def save_best(workdir: epath.PathLike, step: int, variables: Mapping[str, Any]) -> None:
    """Save `variables`, the ones for inference, as the best of the run.

    The previous best checkpoint is removed when this one is complete. Raises CheckpointError.
    """
    if not collectives.is_main():
        return
    folder = absolute_path(workdir) / BEST
    params, model_state = variables["params"], {name: tree for name, tree in variables.items() if name != "params"}
    arguments = storage.save_arguments(jax.device_get({"params": params, "model_state": model_state}))
    with (
        storage.convert_write_errors(step, folder),
        contextlib.closing(storage.open_manager(folder, keep=None)) as manager,
    ):
        if step in manager.all_steps():  # evaluated again in a resumed run
            manager.delete(step)
        manager.save(step, args=arguments, force=True)  # the step may be smaller than the previous one
        manager.wait_until_finished()
        for older in set(manager.all_steps()) - {step}:
            manager.delete(older)


def best_step(workdir: epath.PathLike) -> int | None:
    """Return the step of the best checkpoint; None if there is none."""
    return latest_step(absolute_path(workdir) / BEST)


def load_variables(workdir: epath.PathLike, checkpoint: str | int = "latest") -> tuple[Config, dict[str, Any]]:
    """Load the configuration and the variables (NumPy arrays) of a run for inference.

    The variables are the averaged ones if the checkpoint has them. Needs no packages that only training uses, and
    changes no files.

    Args:
      checkpoint: "latest" (damaged ones are skipped with a warning), "best", or a step.

    Raises FileNotFoundError if `workdir` contains no run or no such checkpoint, and DamagedCheckpointError.
    """
    return load_step(workdir, checkpoint)[1:]


def load_step(workdir: epath.PathLike, checkpoint: str | int = "latest") -> tuple[int, Config, dict[str, Any]]:
    """Return the step of a checkpoint, and its configuration and variables as `load_variables` does."""
    workdir = absolute_path(workdir)
    config = read_config(workdir)
    if config is None:
        raise FileNotFoundError(f"{workdir} has no {CONFIG}: it is not a workdir of train.py")
    folder = workdir / (BEST if checkpoint == "best" else CHECKPOINTS)
    steps = _candidates(workdir, folder, checkpoint)
    step, variables, damaged = _read_newest(folder, steps, _restore_variables, "use another checkpoint")
    for bad, reason in damaged.items():
        logger.warning("%s is damaged (%s); the checkpoint of step %d is used", folder / str(bad), reason, step)
    return step, config, variables


def _candidates(workdir: epath.Path, folder: epath.Path, checkpoint: str | int) -> list[int]:
    """Return the steps to try, newest first. Raises FileNotFoundError if there are none."""
    steps = complete_steps(folder)[::-1]
    if checkpoint == "best":
        if not steps:
            raise FileNotFoundError(
                f"{workdir} has no best checkpoint yet (train.evaluate_every sets the interval of evaluations)"
            )
        return steps[:1]
    if not steps:
        raise FileNotFoundError(f"{workdir} has no complete checkpoint yet")
    if checkpoint == "latest":
        return steps
    if not str(checkpoint).isdigit() or int(checkpoint) not in steps:
        available = ", ".join(map(str, sorted(steps)))
        raise FileNotFoundError(f"{workdir} has no checkpoint {checkpoint!r}; available steps: {available}")
    return [int(checkpoint)]


def _read_newest(
    folder: epath.Path, steps: Sequence[int], read: Callable[[epath.Path], Any], alternative: str
) -> tuple[int, Any, dict[int, DamagedCheckpointError]]:
    """Read the first intact one of the checkpoints `steps`, newest first.

    Returns its step, what it contains, and the steps before it, which are damaged, with the reasons. Raises
    DamagedCheckpointError with advice, to restore one or the `alternative`, if none is intact.
    """
    damaged: dict[int, DamagedCheckpointError] = {}
    for step in steps:
        try:
            return step, read(folder / str(step)), damaged
        except DamagedCheckpointError as error:
            damaged[step] = error
    reasons = "; ".join(f"step {step}: {reason}" for step, reason in damaged.items())
    raise DamagedCheckpointError(
        f"{folder} has no intact checkpoint ({reasons}). Restore one from a backup, or {alternative}"
    )


def _items(state: Any) -> dict[str, Any]:
    """Return the items of a checkpoint, without those that have no arrays."""
    training = {"step": state.step, "opt_state": state.opt_state, "skipped": state.skipped}
    items = {"params": state.params, "model_state": state.model_state, "ema": state.ema, "training": training}
    return {name: item for name, item in items.items() if jax.tree.leaves(item)}


def _restore(folder: epath.Path, template: Any) -> Any:
    """Restore the state of one checkpoint.

    Raises DamagedCheckpointError, and ConfigError if the arrays differ from those of `template`.
    """
    wanted, recorded = _items(template), storage.read_checksums(folder)
    changes = [
        change
        for name in {**wanted, **recorded}
        for change in storage.differences(recorded.get(name, {}), wanted.get(name, {}))
    ]
    if changes:
        raise ConfigError(
            f"{folder} was written by another version or configuration ({len(changes)} arrays):"
            f" {format_list(changes, storage.MAX_LISTED)}. Use a new workdir"
        )
    # Orbax restores NumPy arrays for a NumPy template; broadcast zeros take no memory.
    zeros = jax.tree.map(lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape), wanted)
    items = {name: storage.read_item(folder, name, recorded[name], zeros[name]) for name in wanted}
    return template._replace(**items.pop("training"), **items)


def _restore_variables(folder: epath.Path) -> dict[str, Any]:
    """Restore the variables for inference from one checkpoint. Raises DamagedCheckpointError."""
    recorded = storage.read_checksums(folder)
    weights = "ema" if "ema" in recorded else "params"
    items = {
        name: storage.read_item(folder, name, recorded[name]) for name in (weights, "model_state") if name in recorded
    }
    return ema_variables(items.get("params"), items.get("model_state", {}), items.get("ema", {}))
