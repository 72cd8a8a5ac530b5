"""A training step with a non-finite loss or gradient, saved in one file for `training.replay`.

The file is an .npz archive of plain arrays:

    about                        JSON: configuration, image ids, metrics of the step, package versions
    key                          data of the run's PRNG key
    state/..., batch/...         the state before the step and the global batch, by path
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
from mrcnn_jax.distributed import collectives
from mrcnn_jax.errors import FailureFileError
from mrcnn_jax.runtime import files
from mrcnn_jax.runtime.trees import leaves_by_path
from mrcnn_jax.structures import Batch, GroundTruth

FOLDER = "failures"  # in the work directory
FORMAT = 1

logger = logging.getLogger(__name__)


class FailedStep(NamedTuple):
    """Inputs and metrics of a step that was not finite."""

    state: Any  # before the step: a TrainState; nested dicts of arrays if loaded from a file
    batch: Batch  # this process's part; the global batch if loaded from a file
    key: jax.Array  # of the run
    image_ids: list[Any]  # of the valid slots of the global batch
    metrics: dict[str, Any]
    devices: int  # number of devices that the batch was split over


class FailedStepFile(NamedTuple):
    """Contents of a file written by `save_failed_step`."""

    config: Config
    failed_step: FailedStep
    versions: dict[str, str]  # of the packages that wrote the file, and the kind of device


def save_failed_step(workdir: epath.PathLike, config: Config, failed_step: FailedStep) -> str:
    """Write a step to `workdir/failures` and return the path, or "" after logging why it cannot be written.

    All processes must call it, each with its part of the batch; process 0 writes.
    """
    path = epath.Path(workdir) / FOLDER / f"step_{int(failed_step.state.step) + 1:06d}.npz"
    parts = collectives.gather(leaves_by_path({"batch": failed_step.batch}))
    if not collectives.is_main():
        return str(path)
    about = {
        "format": FORMAT,
        "config": to_json(config),
        "image_ids": failed_step.image_ids,
        "metrics": {name: float(value) for name, value in failed_step.metrics.items()},
        "devices": failed_step.devices,
        "key": str(jax.random.key_impl(failed_step.key)),
        "versions": versions(),
    }
    trees = {
        "about": np.array(json.dumps(about)),
        "key": jax.random.key_data(failed_step.key),
        "state": failed_step.state._asdict(),
        **{name: np.concatenate([part[name] for part in parts]) for name in parts[0]},
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_bytes(path, _archive(trees))
    except OSError as error:
        logger.warning("the failed step could not be written to %s: %s", path, error)
        return ""
    return str(path)


def load_failed_step(path: epath.PathLike) -> FailedStepFile:
    """Load a file written by `save_failed_step`, without executing anything in it. Raises FailureFileError."""
    try:
        return _parse(_read_archive(epath.Path(path).read_bytes()))
    except OSError as error:
        raise FailureFileError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # a damaged file may fail in any way
        reason = f"no {error}" if isinstance(error, KeyError) else error
        raise FailureFileError(f"{path} is not a step that training saved in {FOLDER}/: {reason}") from error


def format_losses(metrics: dict[str, Any]) -> str:
    """Return the losses and the norm of their gradient in one line."""
    names = [name for name in metrics if name.startswith("loss") or name == "grad_norm"]
    return ", ".join(f"{name} {float(metrics[name]):.7g}" for name in names)


def versions() -> dict[str, str]:
    """Return the versions of the packages that a step depends on, and the kind of device."""
    packages = {module.__name__: module.__version__ for module in (mrcnn_jax, jax, flax, optax, np)}
    return {**packages, "device": jax.devices()[0].device_kind}


def _parse(arrays: dict[str, np.ndarray]) -> FailedStepFile:
    about = json.loads(str(arrays["about"]))
    if about["format"] != FORMAT:
        raise FailureFileError(f"it has format {about['format']}, of mrcnn_jax {about['versions']['mrcnn_jax']}")
    trees = flax.traverse_util.unflatten_dict(arrays, sep="/")
    fields = trees["batch"]
    failed_step = FailedStep(
        state=trees["state"],
        batch=Batch(**{**fields, "ground_truth": GroundTruth(**fields["ground_truth"])}),
        key=jax.random.wrap_key_data(jnp.asarray(arrays["key"]), impl=about["key"]),
        image_ids=about["image_ids"],
        metrics=about["metrics"],
        devices=about["devices"],
    )
    return FailedStepFile(from_json(about["config"]), failed_step, about["versions"])


def _archive(trees: Any) -> bytes:
    """Return an .npz archive of the leaves of a pytree, by path."""
    content = io.BytesIO()
    np.savez(content, **leaves_by_path(jax.device_get(trees)))
    return content.getvalue()


def _read_archive(content: bytes) -> dict[str, np.ndarray]:
    if not zipfile.is_zipfile(io.BytesIO(content)):
        raise FailureFileError("not an .npz archive, or a truncated one")
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        return dict(archive)
