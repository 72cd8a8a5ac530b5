"""A step that went wrong, kept in one file with all that it takes to do it again (`training.replay`).

The file is an .npz archive of plain arrays:

    about                        JSON: the configuration, the images, what the step said, who wrote it
    key                          the data of the run's key
    state/..., batch/...         the state before the step and the whole batch, by path
"""

from __future__ import annotations

import io
import json
import logging
import zipfile
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath

import mrcnn_jax
from mrcnn_jax.config import Config, from_json, to_json
from mrcnn_jax.errors import FailureFileError
from mrcnn_jax.structures import Batch, GroundTruth

FOLDER = "failures"  # in the workdir
FORMAT = 1

logger = logging.getLogger(__name__)


class Failure(NamedTuple):
    """What a bad step was made of."""

    state: Any  # before the step: a TrainState; nested dicts of arrays when it was read from a file
    batch: Batch  # this process's part of it; the whole of it when it was read from a file
    key: jax.Array  # of the run
    image_ids: list[Any]  # of the valid slots of the whole batch
    metrics: dict[str, Any]  # what the step said
    devices: int  # that shared the batch


class FailureFile(NamedTuple):
    """What `load_failure` finds."""

    config: Config
    failure: Failure
    versions: dict[str, str]  # of the packages, and the kind of device, that wrote it


def save_failure(workdir: epath.PathLike, config: Config, failure: Failure) -> str:
    """Write a step to `workdir/failures`; the path of the file, or "" if it cannot be written (the log says why).

    All processes call it, each with its part of the batch; the main one writes.
    """
    from mrcnn_jax.distributed import (
        collectives,  # here: it knows of errors in data, whose packages reading a file does not need
    )

    path = epath.Path(workdir) / FOLDER / f"step_{int(failure.state.step) + 1:06d}.npz"
    parts = [_unpacked(part) for part in collectives.gather_bytes(_packed(failure.batch))]
    if not collectives.is_main():
        return str(path)
    about = {
        "format": FORMAT,
        "config": to_json(config),
        "image_ids": failure.image_ids,
        "metrics": {name: float(value) for name, value in failure.metrics.items()},
        "devices": failure.devices,
        "key": str(jax.random.key_impl(failure.key)),
        "versions": versions(),
    }
    arrays = {
        "about": np.array(json.dumps(about)),
        "key": np.asarray(jax.random.key_data(failure.key)),
        **_by_path("state", failure.state._asdict()),
        **{name: np.concatenate([part[name] for part in parts]) for name in parts[0]},
    }
    try:
        _write(path, arrays)
    except OSError as error:
        logger.warning("the step could not be kept in %s: %s", path, error)
        return ""
    return str(path)


def load_failure(path: epath.PathLike) -> FailureFile:
    """Read what `save_failure` wrote. Nothing in the file is run. Raises FailureFileError."""
    try:
        with epath.Path(path).open("rb") as file:
            if not zipfile.is_zipfile(file):
                raise FailureFileError("it is no .npz archive, or not a whole one")
            file.seek(0)
            with np.load(file, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
        return _understood(arrays)
    except OSError as error:
        raise FailureFileError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # a damaged file may fail in any way
        reason = f"no {error}" if isinstance(error, KeyError) else error
        raise FailureFileError(f"{path} is not a step that a training left in {FOLDER}/: {reason}") from error


def versions() -> dict[str, str]:
    """Of what a step depends on."""
    packages = {module.__name__: module.__version__ for module in (mrcnn_jax, jax, flax, optax, np)}
    return {**packages, "device": jax.devices()[0].device_kind}


def _understood(arrays: dict[str, np.ndarray]) -> FailureFile:
    about = json.loads(str(arrays["about"]))
    if about["format"] != FORMAT:
        raise FailureFileError(f"it has format {about['format']}, of mrcnn_jax {about['versions']['mrcnn_jax']}")
    fields = _nested(arrays, "batch/")
    failure = Failure(
        state=_nested(arrays, "state/"),
        batch=Batch(**{**fields, "ground_truth": GroundTruth(**fields["ground_truth"])}),
        key=jax.random.wrap_key_data(jnp.asarray(arrays["key"]), impl=about["key"]),
        image_ids=about["image_ids"],
        metrics=about["metrics"],
        devices=about["devices"],
    )
    return FailureFile(from_json(about["config"]), failure, about["versions"])


def _write(path: epath.Path, arrays: dict[str, np.ndarray]) -> None:
    """Write an archive under another name, and rename it: it is whole, or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    temporary.replace(path)


def _by_path(name: str, tree: Any) -> dict[str, np.ndarray]:
    """The leaves of a tree as NumPy arrays, each under `name` and its path in the tree."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(jax.device_get(tree))
    return {
        f"{name}/{jax.tree_util.keystr(path, simple=True, separator='/')}": np.asarray(leaf) for path, leaf in leaves
    }


def _nested(arrays: dict[str, np.ndarray], start: str) -> dict[str, Any]:
    """Nested dicts of the arrays below `start`."""
    tree: dict[str, Any] = {}
    for name, array in arrays.items():
        if name.startswith(start):
            *folders, leaf = name.removeprefix(start).split("/")
            node = tree
            for folder in folders:
                node = node.setdefault(folder, {})
            node[leaf] = array
    return tree


def _packed(batch: Batch) -> bytes:
    content = io.BytesIO()
    np.savez(content, **_by_path("batch", batch))  # type: ignore[arg-type]
    return content.getvalue()


def _unpacked(content: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        return dict(archive)
