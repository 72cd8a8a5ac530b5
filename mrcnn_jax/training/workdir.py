"""The folder of a run: which configuration it belongs to, which checkpoints are there.

    workdir/README.md                what is what, for people
    workdir/config.json              the configuration, categories filled in
    workdir/checkpoints/<step>/      what to go on from, see `training.checkpoint`
    workdir/best/<step>/             what scored best
    workdir/corrupt/<step>/          checkpoints that turned out to be damaged

It may be in an object store (gs://): nothing here counts on renaming, and a checkpoint there is complete when Orbax
has written its commit file.
"""

from __future__ import annotations

import errno
import os

import jax
import orbax.checkpoint as ocp
from etils import epath

from mrcnn_jax import paths
from mrcnn_jax.config import Config, ConfigError, flatten, from_json, to_json
from mrcnn_jax.training import readme

CHECKPOINTS, BEST, CORRUPT = "checkpoints", "best", "corrupt"
CONFIG = "config.json"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # errors that room mends
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


def claim_workdir(workdir: epath.PathLike, config: Config) -> None:
    """Record `config` in `workdir`, or refuse to continue a run that was started with another one.

    A README.md that explains the folder is written when the run begins, and where it is missing.
    Raises ConfigError naming the fields that differ, other than those of `CHANGEABLE`, and for a folder that cannot be
    written to. Before its first checkpoint a run has nothing to continue, and may be started anew with any
    configuration.
    """
    workdir = epath.Path(workdir)
    before = resumable(workdir)
    if before is not None:
        names = [name for name in differing_fields(before, config) if not name.startswith(CHANGEABLE)]
        if names:
            old, new = flatten(before), flatten(config)
            changes = "; ".join(f"{name} was {old.get(name)!r}, is {new.get(name)!r}" for name in names)
            raise ConfigError(f"{workdir} holds a run with another configuration: {changes}. Use a new workdir")
    if jax.process_index() == 0:
        make_writable(workdir / CHECKPOINTS)
        try:
            paths.write_text(workdir / CONFIG, to_json(config))
            if before is None or not (workdir / readme.README).is_file():
                readme.write(workdir, config)
        except OSError as error:
            raise _unwritable(workdir, error) from error


def make_writable(folder: epath.Path) -> None:
    """Make `folder`. Raises ConfigError if nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not paths.is_remote(folder) and not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "it is read-only, or somebody else's")
    except OSError as error:
        raise _unwritable(folder, error) from error


def _unwritable(folder: epath.Path, error: OSError) -> Exception:
    """What to raise for an error on first writing: a full disk is no matter of the configuration."""
    if error.errno in FULL:
        return error
    return ConfigError(f"{folder} cannot be written to ({error.strerror or error}): use another --workdir")


def read_config(workdir: epath.PathLike) -> Config | None:
    """The configuration recorded in `workdir`, or None."""
    path = epath.Path(workdir) / CONFIG
    return from_json(path.read_text()) if path.is_file() else None


def resumable(workdir: epath.PathLike) -> Config | None:
    """The configuration of the run in `workdir` if it has a complete checkpoint to go on from."""
    return read_config(workdir) if complete_steps(epath.Path(workdir) / CHECKPOINTS) else None


def locate(workdir: epath.PathLike) -> epath.Path:
    """The absolute path of a workdir; in a remote store every path is."""
    workdir = epath.Path(workdir)
    return workdir if paths.is_remote(workdir) else workdir.absolute()


def complete_steps(folder: epath.Path) -> list[int]:
    """Steps of the checkpoints in `folder` that were written to the end, in ascending order."""
    return sorted(ocp.utils.checkpoint_steps(folder)) if folder.is_dir() else []


def differing_fields(first: Config, second: Config) -> list[str]:
    """Dotted names of the fields in which two configurations differ."""
    old, new = flatten(first), flatten(second)
    missing = object()
    return [name for name in {**old, **new} if old.get(name, missing) != new.get(name, missing)]
