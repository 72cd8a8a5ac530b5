"""The folder of a run: which configuration it belongs to, which checkpoints are there.

    workdir/README.md                what is what, for people
    workdir/config.json              the configuration, categories filled in
    workdir/data.json                what identifies the content of the training data, wherever it is
    workdir/checkpoints/<step>/      what to go on from, see `training.checkpoint`
    workdir/best/<step>/             what scored best
    workdir/corrupt/<step>/          checkpoints that turned out to be damaged

It may be in an object store (gs://): nothing here counts on renaming, and a checkpoint there is complete when Orbax
has written its commit file.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from mrcnn_jax.checkpoints import run_readme
from mrcnn_jax.config import PATH_FIELDS, Config, flatten, from_json, to_json
from mrcnn_jax.distributed import collectives
from mrcnn_jax.errors import DISK_FULL, ConfigError
from mrcnn_jax.runtime import files

CHECKPOINTS, BEST, CORRUPT = "checkpoints", "best", "corrupt"
CONFIG, DATA = "config.json", "data.json"
# Fields that a resumed run may change: where its data is, how long it runs, what it says and keeps, how it spares
# memory, how fast it reads, what it passes over, what it evaluates and when.
CHANGEABLE = (
    *PATH_FIELDS,
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
    "data.workers",
    "data.on_corrupt",
)


def check_workdir(path: epath.PathLike) -> None:
    """Raise ConfigError, in all processes, if the main process cannot write to `path`: see `files.check_output`."""

    def check() -> bytes:
        files.check_output(path, "--workdir", folder=True)
        return b""

    collectives.run_on_main(check)


def prepare_workdir(workdir: epath.PathLike, config: Config, content: Mapping[str, Any] | None = None) -> None:
    """Record `config` in `workdir`, or refuse to continue a run that was started with another one.

    `content` is that of the training data (`Dataset.fingerprint`), which is recorded and compared likewise.
    A README.md that explains the folder is written when the run begins, and where it is missing.
    Raises ConfigError naming the fields that differ, other than those of `CHANGEABLE`, and for a folder that cannot be
    written to. Before its first checkpoint a run has nothing to continue, and may be started anew with any
    configuration and data.
    """
    workdir = epath.Path(workdir)
    before = resumable(workdir)
    if before is not None:
        names = [name for name in differing_fields(before, config) if not name.startswith(CHANGEABLE)]
        if names:
            old, new = flatten(before), flatten(config)
            changes = "; ".join(f"{name} was {old.get(name)!r}, is {new.get(name)!r}" for name in names)
            raise ConfigError(f"{workdir} holds a run with another configuration: {changes}. Use a new workdir")
        _check_content(workdir / DATA, content)
    if jax.process_index() == 0:
        make_writable(workdir / CHECKPOINTS)
        try:
            files.write_text(workdir / CONFIG, to_json(config))
            if content is not None:
                files.write_text(workdir / DATA, json.dumps(content, indent=2) + "\n")
            if before is None or not (workdir / run_readme.README).is_file():
                run_readme.write(workdir, config)
        except OSError as error:
            raise _unwritable(workdir, error) from error


def _check_content(path: epath.Path, content: Mapping[str, Any] | None) -> None:
    """Raise ConfigError if the training data was another when the run began. Runs of earlier versions do not know."""
    if content is None or not path.is_file():
        return
    before = _read_json(path)
    if changes := [
        f"{name} was {json.dumps(before.get(name)):.80}, is {json.dumps(value):.80}"
        for name, value in content.items()
        if before.get(name) != value
    ]:
        raise ConfigError(
            f"{path.parent} holds a run with other training data: {'; '.join(changes)}. Give it back the data that it"
            f" was begun with, which may be in another place (data.root), or begin a new run, for example with"
            f" init={path.parent}"
        )


def make_writable(folder: epath.Path) -> None:
    """Make `folder`. Raises ConfigError if nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not files.is_remote(folder) and not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "it is read-only, or somebody else's")
    except OSError as error:
        raise _unwritable(folder, error) from error


def _unwritable(folder: epath.Path, error: OSError) -> Exception:
    """What to raise for an error on first writing: a full disk is no matter of the configuration."""
    if error.errno in DISK_FULL:
        return error
    return ConfigError(f"{folder} cannot be written to ({error.strerror or error}): use another --workdir")


def read_config(workdir: epath.PathLike) -> Config | None:
    """The configuration recorded in `workdir`, or None. Raises ConfigError for one that cannot be read."""
    path = epath.Path(workdir) / CONFIG
    if not path.is_file():
        return None
    content = json.dumps(_read_json(path))
    try:
        return from_json(content)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _read_json(path: epath.Path) -> dict[str, Any]:
    """The object in a file of the run. Raises ConfigError for what a power failure, or an editor, makes of it."""
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise _damaged(path, f"is damaged ({error})") from None
    if not isinstance(content, dict):
        raise _damaged(path, "is damaged (it holds no object)")
    return content


def _damaged(path: epath.Path, what: str) -> ConfigError:
    return ConfigError(
        f"{path} {what}. Put a copy there: of a backup, or of a new run that is begun with the same command in another"
        " workdir, which writes the same file"
    )


def resumable(workdir: epath.PathLike) -> Config | None:
    """The configuration of the run in `workdir` if it has a complete checkpoint to go on from.

    Raises ConfigError if there is a checkpoint, but no configuration that can be read.
    """
    if not complete_steps(epath.Path(workdir) / CHECKPOINTS):
        return None
    config = read_config(workdir)
    if config is None:
        raise _damaged(epath.Path(workdir) / CONFIG, "is missing, beside checkpoints")
    return config


def locate(workdir: epath.PathLike) -> epath.Path:
    """The absolute path of a workdir; in a remote store every path is. "~" is the home directory."""
    workdir = epath.Path(os.path.expanduser(workdir))
    return workdir if files.is_remote(workdir) else workdir.absolute()


def complete_steps(folder: epath.Path) -> list[int]:
    """Steps of the checkpoints in `folder` that were written to the end, in ascending order."""
    return sorted(ocp.utils.checkpoint_steps(folder)) if folder.is_dir() else []


def differing_fields(first: Config, second: Config) -> list[str]:
    """Dotted names of the fields in which two configurations differ."""
    old, new = flatten(first), flatten(second)
    missing = object()
    return [name for name in {**old, **new} if old.get(name, missing) != new.get(name, missing)]
