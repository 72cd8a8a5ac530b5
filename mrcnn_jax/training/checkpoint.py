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

import contextlib
import logging
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from mrcnn_jax.config import Config, ConfigError
from mrcnn_jax.training.average import averaged_variables
from mrcnn_jax.training.checksums import DamagedError, differences, listing, make_record, read_record, verify
from mrcnn_jax.training.workdir import (
    BEST,
    CHECKPOINTS,
    CONFIG,
    CORRUPT,
    complete_steps,
    is_local,
    make_writable,
    read_config,
)

logger = logging.getLogger(__name__)

CHECKSUMS = "checksums"


class CheckpointError(OSError):
    """A checkpoint could not be written; says which, why, and where the run goes on when that is mended."""

    def __init__(self, step: int, folder: epath.Path, reason: str):
        self.step, self.last = step, max(complete_steps(folder), default=None)
        last = "There is no complete one yet" if self.last is None else f"The last complete one is of step {self.last}"
        super().__init__(
            f"checkpoint {step} could not be written to {folder}: {reason}. {last}. Make room, or mend what is said"
            " here; then the same command continues"
        )


class Checkpointer:
    """Saves and restores train states (`training.step.TrainState`); a context manager.

    In processes other than the main one, `save` and `wait` do nothing.
    """

    def __init__(self, workdir: epath.PathLike, keep: int):
        """Checkpoints of `workdir`, of which the last `keep` stay; leavings of interrupted saves are removed.

        Raises ConfigError for a folder that cannot be written to.
        """
        self._workdir = epath.Path(workdir).absolute()
        self._folder = self._workdir / CHECKPOINTS
        self._saving = 0  # the step of the latest save
        self._manager = _open(self._folder, keep) if jax.process_index() == 0 else None

    def save(self, step: int, state: Any) -> None:
        """Write `state` in the background; it may be donated as soon as this returns. A step saved before is kept.

        Raises CheckpointError for what went wrong in an earlier background save, or goes wrong at once.
        """
        if self._manager is None or self._manager.latest_step() == step:
            return
        self.wait()
        self.check_room(step, state)
        # NumPy arrays: the file is then free of the layout of devices that wrote it, and Orbax takes its own copy.
        arguments = _saving(_items(jax.device_get(state)))
        self._saving = step
        with _writing(step, self._folder):
            self._manager.save(step, args=arguments)

    def check_room(self, step: int, state: Any) -> None:
        """Raise CheckpointError if the disk has no room for a checkpoint of `state` (of which shapes are enough)."""
        if self._manager is None or not is_local(self._folder):
            return
        needed = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
        free = shutil.disk_usage(self._folder).free
        if free < needed:
            reason = f"it needs {needed / 1e6:.1f} MB, and {free / 1e6:.1f} MB are free"
            raise CheckpointError(step, self._folder, reason)

    def restore_latest(self, template: Any) -> Any | None:
        """The newest intact state, as NumPy arrays in the structure of `template`; None if there is no checkpoint.

        The leaves of `template` need a shape and a dtype, no values (`jax.eval_shape`). Damaged checkpoints after the
        one that is used are moved to `workdir/corrupt`, with a warning. Raises DamagedError, and moves nothing, if none
        is intact, and ConfigError for one that holds other arrays than `template`.
        """
        assert self._manager is not None, "only the main process restores"
        self.wait()
        damaged: dict[int, DamagedError] = {}
        for step in reversed(complete_steps(self._folder)):
            try:
                state = _restore(self._folder / str(step), template)
            except DamagedError as error:
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
            raise _none_intact(self._folder, damaged)
        return None

    def _set_aside(self, step: int) -> epath.Path:
        """Move a checkpoint out of the way, so that its step can be saved again; where it is now."""
        folder = self._workdir / CORRUPT
        folder.mkdir(exist_ok=True)
        names = [str(step), *(f"{step}-{count}" for count in range(2, 1000))]
        target = next(folder / name for name in names if not (folder / name).exists())
        (self._folder / str(step)).rename(target)
        return target

    def wait(self) -> None:
        """Return when everything is on disk; raises CheckpointError for what went wrong there."""
        if self._manager is not None:
            with _writing(self._saving, self._folder):
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
    folder = epath.Path(workdir).absolute() / BEST
    params, model_state = variables["params"], {name: tree for name, tree in variables.items() if name != "params"}
    arguments = _saving(jax.device_get({"params": params, "model_state": model_state}))
    with _writing(step, folder):
        manager = _open(folder, keep=None)
        try:
            if step in manager.all_steps():  # measured again, after the run was resumed
                manager.delete(step)
            manager.save(step, args=arguments, force=True)  # also a step before that of the one before
            manager.wait_until_finished()
            for older in set(manager.all_steps()) - {step}:
                manager.delete(older)
        finally:
            manager.close()


def load_variables(workdir: epath.PathLike, checkpoint: str | int = "latest") -> tuple[Config, dict[str, Any]]:
    """Configuration and model variables (NumPy arrays) of a run; needs no training packages and changes nothing.

    `checkpoint` is "latest", "best", or a step; averaged weights if it has them. A damaged latest one is passed over,
    with a warning. Raises FileNotFoundError for a folder that is no run, or has no such checkpoint; DamagedError.
    """
    workdir = epath.Path(workdir).absolute()
    config = read_config(workdir)
    if config is None:
        raise FileNotFoundError(f"{workdir} has no {CONFIG}: it is not a workdir of train.py")
    folder = workdir / (BEST if checkpoint == "best" else CHECKPOINTS)
    damaged: dict[int, DamagedError] = {}
    for step in _candidates(workdir, folder, checkpoint):
        try:
            variables = _restore_variables(folder / str(step))
        except DamagedError as error:
            damaged[step] = error
            continue
        for bad, reason in damaged.items():
            logger.warning("%s is damaged (%s); that of step %d is used", folder / str(bad), reason, step)
        return config, variables
    raise _none_intact(folder, damaged)


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


def _none_intact(folder: epath.Path, damaged: Mapping[int, DamagedError]) -> DamagedError:
    reasons = "; ".join(f"step {step}: {reason}" for step, reason in damaged.items())
    return DamagedError(
        f"no checkpoint asked for in {folder} is intact ({reasons}). Put an intact one there, of a backup; or move the"
        " folder away: train.py then begins anew"
    )


def _open(folder: epath.Path, keep: int | None) -> _Manager:
    """Orbax's manager, in the main process alone."""
    make_writable(folder)
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep, create=False, cleanup_tmp_directories=True, multiprocessing_options=_alone(folder.name)
    )
    return _Manager(folder, options=options)


class _Manager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        """Never: the loop asks for itself, in all processes alike, and Orbax asking in one would confuse it."""
        return False


def _alone(prefix: str) -> ocp.options.MultiprocessingOptions:
    """Orbax waits for no other process than the main one."""
    return ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0}, barrier_sync_key_prefix=prefix)


@contextlib.contextmanager
def _writing(step: int, folder: epath.Path) -> Iterator[None]:
    """What Orbax raises (OSError, ValueError of its C++ part) becomes CheckpointError."""
    try:
        yield
    except (OSError, ValueError) as error:
        code = re.search(r"os_error_code='(\d+)'", str(error))
        reason = os.strerror(int(code[1])) if code else getattr(error, "strerror", None) or str(error)
        raise CheckpointError(step, folder, reason) from error


def _items(state: Any) -> dict[str, Any]:
    """The parts of a checkpoint; those without arrays are left out."""
    items = {
        "params": state.params,
        "model_state": state.model_state,
        "ema": state.ema,
        "training": {"step": state.step, "opt_state": state.opt_state, "skipped": state.skipped},
    }
    return {name: item for name, item in items.items() if jax.tree.leaves(item)}


def _saving(items: Mapping[str, Any]) -> ocp.args.Composite:
    """What to tell Orbax to save: the items that have arrays, and their checksums."""
    items = {name: item for name, item in items.items() if jax.tree.leaves(item)}
    arguments = {name: ocp.args.StandardSave(item) for name, item in items.items()}
    return ocp.args.Composite(**arguments, **{CHECKSUMS: ocp.args.JsonSave(make_record(items))})


def _restore(folder: epath.Path, template: Any) -> Any:
    """The state of one checkpoint. Raises DamagedError; ConfigError if it is intact but other than `template`."""
    wanted, recorded = _items(template), _recorded(folder)
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
    items = {name: _read(folder, name, recorded[name], zeros[name]) for name in wanted}
    return template._replace(**items.pop("training"), **items)


def _restore_variables(folder: epath.Path) -> dict[str, Any]:
    """What inference needs of one checkpoint. Raises DamagedError."""
    recorded = _recorded(folder)
    weights = "ema" if "ema" in recorded else "params"
    items = {name: _read(folder, name, recorded[name]) for name in (weights, "model_state") if name in recorded}
    return averaged_variables(items.get("params"), items.get("model_state", {}), items.get("ema", {}))


def _recorded(folder: epath.Path) -> dict[str, dict[str, list[Any]]]:
    """The checksums of one checkpoint, by item. Raises DamagedError."""
    with _reading("the list of checksums"):
        text = (folder / CHECKSUMS / "metadata").read_text()
    return read_record(text)


def _read(folder: epath.Path, name: str, recorded: Mapping[str, list[Any]], template: Any = None) -> Any:
    """One item, as it was written; without a template, in nested dicts. Raises DamagedError."""
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
        raise DamagedError(f"{what} cannot be read: {type(error).__name__}: {lines[0][:200]}") from error
