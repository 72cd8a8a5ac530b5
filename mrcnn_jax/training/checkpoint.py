"""What a run leaves behind so that it can go on, or be used: its checkpoints and its resolved configuration.

    workdir/config.json              the configuration, categories filled in
    workdir/checkpoints/<step>/      `variables` (all that inference needs) and `training` (the step, optimizer state)

A checkpoint is written under a temporary name and renamed when it is complete: an interrupted one never counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from mrcnn_jax import paths
from mrcnn_jax.config import Config, ConfigError, from_json, to_json

CHECKPOINTS = "checkpoints"
CONFIG = "config.json"
# Fields that a resumed run may change: how long it runs, what it says and keeps, how it spares memory, how fast it
# reads, what it passes over, what it evaluates and when.
CHANGEABLE = (
    "train.steps",
    "train.log_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.accumulate",
    "train.remat",
    "train.max_skipped",
    "train.validate_every",
    "train.evaluate_every",
    "train.best_metric",
    "train.patience",
    "eval.",
    "data.eval.",
    "data.shortest_edge_eval",
    "data.cache_dir",
    "data.workers",
    "data.on_corrupt",
)


class Checkpointer:
    """Saves and restores train states (`training.step.TrainState`); a context manager."""

    def __init__(self, workdir: epath.PathLike, keep: int):
        """Checkpoints of `workdir`, of which the last `keep` stay; leavings of interrupted saves are removed."""
        self._manager = ocp.CheckpointManager(
            _folder(workdir),
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True),
        )

    def save(self, step: int, state: Any) -> None:
        """Write `state` in the background; it may be donated as soon as this returns. A step saved before is kept.

        Raises what went wrong in an earlier background save.
        """
        if self._manager.latest_step() == step:
            return
        # NumPy arrays: the file is then free of the layout of devices that wrote it, and Orbax takes its own copy.
        self._manager.save(step, args=_arguments(jax.device_get(state), ocp.args.StandardSave))

    def restore_latest(self, template: Any) -> Any | None:
        """The newest complete state, as NumPy arrays in the structure of `template`; None if there is none.

        The leaves of `template` need a shape and a dtype, no values (`jax.eval_shape`).
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        # A NumPy template asks for NumPy arrays; broadcast zeros take no memory.
        zeros = jax.tree.map(lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape), template)
        items = self._manager.restore(step, args=_arguments(zeros, ocp.args.StandardRestore))
        return template._replace(**items["variables"], **items["training"])

    def wait(self) -> None:
        """Return when everything is on disk; raises what went wrong there."""
        self._manager.wait_until_finished()

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()


def load_variables(workdir: epath.PathLike) -> tuple[Config, dict[str, Any]]:
    """Configuration and model variables (NumPy arrays) of the newest checkpoint of a run; needs no training packages.

    Raises FileNotFoundError for a folder that is no run, or has no complete checkpoint yet.
    """
    config = read_config(workdir)
    if config is None:
        raise FileNotFoundError(f"{workdir} has no {CONFIG}: it is not a workdir of train.py")
    steps = _complete_steps(workdir)
    if not steps:
        raise FileNotFoundError(f"{workdir} has no complete checkpoint yet")
    with ocp.StandardCheckpointer() as checkpointer:
        variables = checkpointer.restore(_folder(workdir) / str(max(steps)) / "variables")
    return config, {"params": variables["params"], **variables["model_state"]}


def claim_workdir(workdir: epath.PathLike, config: Config) -> None:
    """Record `config` in `workdir`, or refuse to continue a run that was started with another one.

    Raises ConfigError naming the fields that differ, other than those of `CHANGEABLE`. Before its first checkpoint a
    run has nothing to continue, and may be started anew with any configuration.
    """
    workdir = epath.Path(workdir)
    before = read_config(workdir)
    if before is not None and _complete_steps(workdir):
        names = [name for name in differing_fields(before, config) if not name.startswith(CHANGEABLE)]
        if names:
            old, new = dict(_flatten(asdict(before))), dict(_flatten(asdict(config)))
            changes = "; ".join(f"{name} was {old.get(name)!r}, is {new.get(name)!r}" for name in names)
            raise ConfigError(f"{workdir} holds a run with another configuration: {changes}. Use a new workdir")
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        temporary = workdir / (CONFIG + ".tmp")
        temporary.write_text(to_json(config))
        temporary.replace(workdir / CONFIG)


def read_config(workdir: epath.PathLike) -> Config | None:
    """The configuration recorded in `workdir`, or None."""
    path = epath.Path(workdir) / CONFIG
    return from_json(path.read_text()) if path.is_file() else None


def resumable(workdir: epath.PathLike) -> Config | None:
    """The configuration of the run in `workdir` if it has a complete checkpoint to go on from."""
    return read_config(workdir) if _complete_steps(workdir) else None


def differing_fields(first: Config, second: Config) -> list[str]:
    """Dotted names of the fields in which two configurations differ."""
    old, new = dict(_flatten(asdict(first))), dict(_flatten(asdict(second)))
    missing = object()
    return [name for name in {**old, **new} if old.get(name, missing) != new.get(name, missing)]


def _folder(workdir: epath.PathLike) -> epath.Path:
    folder = epath.Path(workdir)
    return (folder if paths.is_remote(folder) else folder.absolute()) / CHECKPOINTS


def _complete_steps(workdir: epath.PathLike) -> list[int]:
    """Steps of the checkpoints that were written to the end."""
    folder = _folder(workdir)
    return ocp.utils.checkpoint_steps(folder) if folder.is_dir() else []


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _arguments(state: Any, kind: Any) -> ocp.args.Composite:
    """The two items of a checkpoint, wrapped for saving or restoring."""
    return ocp.args.Composite(
        variables=kind({"params": state.params, "model_state": state.model_state}),
        training=kind({"step": state.step, "opt_state": state.opt_state, "ema": state.ema, "skipped": state.skipped}),
    )
