"""The work directory of a run: its files, and whether a configuration and training data may continue it.

    workdir/README.md                description of the files for users
    workdir/config.json              the configuration, including the categories of the data
    workdir/data.json                counts and hashes that identify the training data, independently of its path
    workdir/checkpoints/<step>/      checkpoints to resume from, see `manager`
    workdir/best/<step>/             the checkpoint with the best metric
    workdir/corrupt/<step>/          damaged checkpoints

A run resumes from its newest checkpoint. Only the fields in `MUTABLE_FIELDS` may then differ from config.json.
The work directory may be in an object store (gs://), which cannot rename: a checkpoint there is complete when Orbax has
written its commit file.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from typing import Any

import orbax.checkpoint as ocp
from etils import epath

from mrcnn_jax.checkpoints import run_readme
from mrcnn_jax.config import PATH_FIELDS, Config, flatten, from_json, to_json
from mrcnn_jax.distributed import collectives
from mrcnn_jax.errors import DISK_FULL, ConfigError, format_changes
from mrcnn_jax.runtime import files

CHECKPOINTS, BEST, CORRUPT = "checkpoints", "best", "corrupt"
CONFIG, DATA = "config.json", "data.json"
# Fields that a resumed run may change: paths, run length, logging, checkpoints, memory, data workers, handling of
# errors, and evaluation. A name that ends in a dot includes all fields below it.
MUTABLE_FIELDS = (
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
    """Raise ConfigError in all processes if the main process cannot write to `path`; see `files.check_output`."""
    collectives.run_on_main(lambda: files.check_output(path, "--workdir", folder=True))


def prepare_workdir(workdir: epath.PathLike, config: Config, content: Mapping[str, Any] | None = None) -> None:
    """Record the configuration and the training data of a run, or check them if the run resumes.

    A run without a complete checkpoint may be restarted with any configuration and data. A README.md is written when
    the run starts, or if it is missing.

    Args:
      content: what identifies the training data (`Dataset.fingerprint`).

    Raises ConfigError if the run has other data, or other values of fields that are not in `MUTABLE_FIELDS`, which
    are listed; and if the work directory cannot be written to.
    """
    workdir = epath.Path(workdir)
    recorded = resumable_config(workdir)
    if recorded is not None:
        _check_config(workdir, recorded, config)
        _check_content(workdir / DATA, content)
    if collectives.is_main():
        make_writable_folder(workdir / CHECKPOINTS)
        try:
            files.write_text(workdir / CONFIG, to_json(config))
            if content is not None:
                files.write_text(workdir / DATA, json.dumps(content, indent=2) + "\n")
            if recorded is None or not (workdir / run_readme.README).is_file():
                run_readme.write(workdir, config)
        except OSError as error:
            raise _write_error(workdir, error) from error


def _check_config(workdir: epath.Path, recorded: Config, config: Config) -> None:
    """Raise ConfigError if `config` differs in fields that must not change."""
    names = [name for name in differing_fields(recorded, config) if not name.startswith(MUTABLE_FIELDS)]
    if names:
        old, new = flatten(recorded), flatten(config)
        changes = "; ".join(f"{name} was {old.get(name)!r}, is {new.get(name)!r}" for name in names)
        raise ConfigError(f"{workdir} contains a run with another configuration: {changes}. Use a new workdir")


def _check_content(path: epath.Path, content: Mapping[str, Any] | None) -> None:
    """Raise ConfigError if the training data changed. Runs of earlier versions have no record of it."""
    if content is None or not path.is_file():
        return
    recorded = _read_json(path)
    before = {name: recorded.get(name) for name in content}
    if changes := format_changes(before, content, lambda value: f"{json.dumps(value):.80}"):
        raise ConfigError(
            f"{path.parent} contains a run with other training data: {'; '.join(changes)}. Use the data of that run"
            f" (set data.root if it was moved), or start a new run, for example with init={path.parent}"
        )


def make_writable_folder(folder: epath.Path) -> None:
    """Create `folder` if it does not exist. Raises ConfigError if it cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not files.is_remote(folder) and not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "it is read-only, or belongs to another user")
    except OSError as error:
        raise _write_error(folder, error) from error


def _write_error(folder: epath.Path, error: OSError) -> Exception:
    """Return the error to raise: a ConfigError unless the disk is full."""
    if error.errno in DISK_FULL:
        return error
    return ConfigError(f"{folder} cannot be written to ({error.strerror or error}): use another --workdir")


def read_config(workdir: epath.PathLike) -> Config | None:
    """Return the configuration recorded in `workdir`, or None. Raises ConfigError if it cannot be read."""
    path = epath.Path(workdir) / CONFIG
    if not path.is_file():
        return None
    content = json.dumps(_read_json(path))
    try:
        return from_json(content)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def read_fingerprint(workdir: epath.PathLike) -> dict[str, Any] | None:
    """Return what identifies the training data of a run (`Dataset.fingerprint`), or None if it is not recorded.

    Raises ConfigError if the record cannot be read.
    """
    path = epath.Path(workdir) / DATA
    return _read_json(path) if path.is_file() else None


def _read_json(path: epath.Path) -> dict[str, Any]:
    """Read a JSON object. Raises ConfigError if the file is damaged."""
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise _damaged(path, f"is damaged ({error})") from None
    if not isinstance(content, dict):
        raise _damaged(path, "is damaged (it does not contain a JSON object)")
    return content


def _damaged(path: epath.Path, what: str) -> ConfigError:
    return ConfigError(
        f"{path} {what}. Replace it by a backup, or by the same file of a new run, started with the same command in"
        " another workdir"
    )


def resumable_config(workdir: epath.PathLike) -> Config | None:
    """Return the configuration of the run in `workdir`, or None if it has no complete checkpoint to resume from.

    Raises ConfigError if there is a checkpoint but no readable configuration.
    """
    if not complete_steps(epath.Path(workdir) / CHECKPOINTS):
        return None
    config = read_config(workdir)
    if config is None:
        raise _damaged(epath.Path(workdir) / CONFIG, "is missing, but there are checkpoints")
    return config


def absolute_path(workdir: epath.PathLike) -> epath.Path:
    """Return the absolute path of a work directory, with "~" expanded; paths in object stores are unchanged."""
    workdir = epath.Path(os.path.expanduser(workdir))
    return workdir if files.is_remote(workdir) else workdir.absolute()


def complete_steps(folder: epath.Path) -> list[int]:
    """Return the steps of the complete checkpoints in `folder`, in ascending order."""
    return sorted(ocp.utils.checkpoint_steps(folder)) if folder.is_dir() else []


def latest_step(folder: epath.Path) -> int | None:
    """Return the step of the latest complete checkpoint in `folder`; None if there is none."""
    return max(complete_steps(folder), default=None)


def differing_fields(first: Config, second: Config) -> list[str]:
    """Return the dotted names of the fields in which two configurations differ."""
    old, new = flatten(first), flatten(second)
    missing = object()
    return [name for name in {**old, **new} if old.get(name, missing) != new.get(name, missing)]
