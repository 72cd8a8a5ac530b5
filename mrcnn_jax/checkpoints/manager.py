"""Checkpoints: what a run leaves behind so that it can go on, or be used.

    workdir/checkpoints/<step>/      `params`, `model_state` (with them, all that inference needs), `ema` (instead of
                                     `params`, if there is an average), `training` (the step, optimizer state)
                                     and `checksums`
    workdir/best/<step>/             what scored best, ready for inference: `params`, `model_state`, `checksums`
    workdir/corrupt/<step>/          checkpoints that turned out to be damaged; nothing here is ever removed

A checkpoint is written under a temporary name and renamed when it is complete (in object stores, which cannot rename,
it is complete when its commit file is there): an interrupted one never counts. Every array has a checksum: one that is
damaged later is found when it is read. Only the main process touches the disk, and NumPy arrays go there: a checkpoint
knows nothing of processes and devices.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from mrcnn_jax.checkpoints.checksums import differences, listing
from mrcnn_jax.checkpoints.ema import averaged_variables
from mrcnn_jax.checkpoints.storage import arguments_for, open_manager, read_checksums, read_item, writing
from mrcnn_jax.checkpoints.workdir import BEST, CHECKPOINTS, CONFIG, CORRUPT, complete_steps, locate, read_config
from mrcnn_jax.config import Config
from mrcnn_jax.errors import CheckpointError, ConfigError, DamagedCheckpointError
from mrcnn_jax.runtime import files

logger = logging.getLogger(__name__)


class Checkpointer:
    """Saves and restores train states (`training.step.TrainState`); a context manager.

    In processes other than the main one, `save` and `wait` do nothing.
    """

    def __init__(self, workdir: epath.PathLike, keep: int):
        """Checkpoints of `workdir`, of which the last `keep` stay; leavings of interrupted saves are removed.

        Raises ConfigError for a folder that cannot be written to.
        """
        self._workdir = locate(workdir)
        self._folder = self._workdir / CHECKPOINTS
        self._saving = 0  # the step of the latest save
        self._manager = open_manager(self._folder, keep) if jax.process_index() == 0 else None

    def save(self, step: int, state: Any) -> None:
        """Write `state` in the background; it may be donated as soon as this returns. A step saved before is kept.

        Raises CheckpointError for what went wrong in an earlier background save, or goes wrong at once.
        """
        if self._manager is None or self._manager.latest_step() == step:
            return
        self.wait()
        self.check_room(step, state)
        # NumPy arrays: the file is then free of the layout of devices that wrote it, and Orbax takes its own copy.
        arguments = arguments_for(_items(jax.device_get(state)))
        self._saving = step
        with writing(step, self._folder):
            self._manager.save(step, args=arguments)

    def check_room(self, step: int, state: Any) -> None:
        """Raise CheckpointError if the disk has no room for a checkpoint of `state` (of which shapes are enough)."""
        if self._manager is None or files.is_remote(self._folder):
            return
        needed = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
        free = shutil.disk_usage(self._folder).free
        if free < needed:
            reason = f"it needs {needed / 1e6:.1f} MB, and {free / 1e6:.1f} MB are free"
            raise CheckpointError(step, max(complete_steps(self._folder), default=None), self._folder, reason)

    def restore_latest(self, template: Any) -> Any | None:
        """The newest intact state, as NumPy arrays in the structure of `template`; None if there is no checkpoint.

        The leaves of `template` need a shape and a dtype, no values (`jax.eval_shape`). Damaged checkpoints after the
        one that is used are moved to `workdir/corrupt`, with a warning. Raises DamagedCheckpointError, and moves
        nothing, if none is intact, and ConfigError for one that holds other arrays than `template`.
        """
        assert self._manager is not None, "only the main process restores"
        self.wait()
        damaged: dict[int, DamagedCheckpointError] = {}
        for step in reversed(complete_steps(self._folder)):
            try:
                state = _restore(self._folder / str(step), template)
            except DamagedCheckpointError as error:
                damaged[step] = error
                continue
            for bad, reason in damaged.items():
                logger.warning(
                    "%s is damaged (%s) and moved to %s; the run goes on from step %d",
                    *(self._folder / str(bad), reason, self._set_aside(bad), step),
                )
            self._manager.reload()
            return state
        if damaged:
            raise _none_intact(self._folder, damaged, "move the folder away: the run then begins anew")
        return None

    def _set_aside(self, step: int) -> epath.Path:
        """Move a checkpoint out of the way, so that its step can be saved again; where it is now."""
        folder = self._workdir / CORRUPT
        names = [str(step), *(f"{step}-{count}" for count in range(2, 1000))]
        target = next(folder / name for name in names if not (folder / name).exists())
        files.move_folder(self._folder / str(step), target)
        return target

    def wait(self) -> None:
        """Return when everything is on disk; raises CheckpointError for what went wrong there."""
        if self._manager is not None:
            with writing(self._saving, self._folder):
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
            logger.error("%s", error)  # what ended the run is more than this
        finally:
            self._manager.close()


def save_best(workdir: epath.PathLike, step: int, variables: Mapping[str, Any]) -> None:
    """Keep `variables` (for inference: averaged ones if there are any) as the best of the run, in place of the one
    before, which is removed when this one is complete. Raises CheckpointError."""
    if jax.process_index() != 0:
        return
    folder = locate(workdir) / BEST
    params, model_state = variables["params"], {name: tree for name, tree in variables.items() if name != "params"}
    arguments = arguments_for(jax.device_get({"params": params, "model_state": model_state}))
    with writing(step, folder):
        manager = open_manager(folder, keep=None)
        try:
            if step in manager.all_steps():  # measured again, after the run was resumed
                manager.delete(step)
            manager.save(step, args=arguments, force=True)  # also a step before that of the one before
            manager.wait_until_finished()
            for older in set(manager.all_steps()) - {step}:
                manager.delete(older)
        finally:
            manager.close()


def best_step(workdir: epath.PathLike) -> int | None:
    """The step that `save_best` has kept; None if there is none."""
    return next(reversed(complete_steps(locate(workdir) / BEST)), None)


def load_variables(workdir: epath.PathLike, checkpoint: str | int = "latest") -> tuple[Config, dict[str, Any]]:
    """Configuration and model variables (NumPy arrays) of a run; needs no training packages and changes nothing.

    `checkpoint` is "latest", "best", or a step; averaged weights if it has them. A damaged latest one is passed over,
    with a warning. Raises FileNotFoundError for a folder that is no run, or has no such checkpoint, and
    DamagedCheckpointError.
    """
    workdir = locate(workdir)
    config = read_config(workdir)
    if config is None:
        raise FileNotFoundError(f"{workdir} has no {CONFIG}: it is not a workdir of train.py")
    folder = workdir / (BEST if checkpoint == "best" else CHECKPOINTS)
    damaged: dict[int, DamagedCheckpointError] = {}
    for step in _candidates(workdir, folder, checkpoint):
        try:
            variables = _restore_variables(folder / str(step))
        except DamagedCheckpointError as error:
            damaged[step] = error
            continue
        for bad, reason in damaged.items():
            logger.warning("%s is damaged (%s); that of step %d is used", folder / str(bad), reason, step)
        return config, variables
    raise _none_intact(folder, damaged, "use another checkpoint")


def _candidates(workdir: epath.Path, folder: epath.Path, checkpoint: str | int) -> list[int]:
    """Steps to try, the newest first. Raises FileNotFoundError if there are none."""
    steps = complete_steps(folder)[::-1]
    if checkpoint == "best":
        if not steps:
            raise FileNotFoundError(
                f"{workdir} has no best checkpoint yet (train.evaluate_every says how often to look)"
            )
        return steps[:1]
    if not steps:
        raise FileNotFoundError(f"{workdir} has no complete checkpoint yet")
    if checkpoint == "latest":
        return steps
    if not str(checkpoint).isdigit() or int(checkpoint) not in steps:
        there = ", ".join(map(str, sorted(steps)))
        raise FileNotFoundError(f"{workdir} has no checkpoint {checkpoint!r}; it has those of steps {there}")
    return [int(checkpoint)]


def _none_intact(
    folder: epath.Path, damaged: Mapping[int, DamagedCheckpointError], other: str
) -> DamagedCheckpointError:
    reasons = "; ".join(f"step {step}: {reason}" for step, reason in damaged.items())
    return DamagedCheckpointError(
        f"{folder} has no intact checkpoint ({reasons}). Put one there, of a backup; or {other}"
    )


def _items(state: Any) -> dict[str, Any]:
    """The parts of a checkpoint; those without arrays are left out."""
    items = {
        "params": state.params,
        "model_state": state.model_state,
        "ema": state.ema,
        "training": {"step": state.step, "opt_state": state.opt_state, "skipped": state.skipped},
    }
    return {name: item for name, item in items.items() if jax.tree.leaves(item)}


def _restore(folder: epath.Path, template: Any) -> Any:
    """The state of one checkpoint.

    Raises DamagedCheckpointError, and ConfigError if it is intact but other than `template`.
    """
    wanted, recorded = _items(template), read_checksums(folder)
    other = [
        change
        for name in {**wanted, **recorded}
        for change in differences(recorded.get(name, {}), wanted.get(name, {}))
    ]
    if other:
        raise ConfigError(
            f"{folder} was written by another version or configuration ({len(other)} arrays): {listing(other)}."
            " Use a new workdir"
        )
    # A NumPy template asks for NumPy arrays; broadcast zeros take no memory.
    zeros = jax.tree.map(lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape), wanted)
    items = {name: read_item(folder, name, recorded[name], zeros[name]) for name in wanted}
    return template._replace(**items.pop("training"), **items)


def _restore_variables(folder: epath.Path) -> dict[str, Any]:
    """What inference needs of one checkpoint. Raises DamagedCheckpointError."""
    recorded = read_checksums(folder)
    weights = "ema" if "ema" in recorded else "params"
    items = {name: read_item(folder, name, recorded[name]) for name in (weights, "model_state") if name in recorded}
    return averaged_variables(items.get("params"), items.get("model_state", {}), items.get("ema", {}))
