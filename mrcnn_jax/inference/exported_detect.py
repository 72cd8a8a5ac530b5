"""Exported programs in place of the network in a `Predictor`."""

from __future__ import annotations

import dataclasses
import json
import os
import zipfile
from typing import Any

import jax.numpy as jnp
import numpy as np

from mrcnn_jax.config import Config, from_json
from mrcnn_jax.errors import WeightsError
from mrcnn_jax.inference.detector import Detect
from mrcnn_jax.inference.exported import ExportedModel
from mrcnn_jax.structures import Detections


def load(path: str | os.PathLike[str]) -> tuple[Config, Detect]:
    """Return the configuration of an exported model, with the batch size of its programs, and its `Detect`.

    Raises WeightsError for a file that cannot be used.
    """
    try:
        model = ExportedModel(path)
        config = from_json(json.dumps(model.manifest["config"]))
    except FileNotFoundError as error:
        raise WeightsError(f"{os.fspath(path)} does not exist") from error
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise WeightsError(f"{os.fspath(path)} is damaged, or no file of `mrcnn export` ({error})") from error
    except (
        ValueError
    ) as error:  # of `ExportedModel`, which names the file, or of JSON or the configuration, which do not
        name = "" if str(error).startswith(os.fspath(path)) else f"{os.fspath(path)}: "
        raise WeightsError(f"{name}{error}") from error
    if model.manifest["masks"] not in (None, "boxes"):
        raise WeightsError(f"{os.fspath(path)} has pasted masks: export it with --masks=boxes")
    batch_size = max(batch for batch, *_ in model.programs)
    settings = dataclasses.replace(config.eval, batch_size=batch_size)
    return dataclasses.replace(config, eval=settings), _detect(model)


def _detect(model: ExportedModel) -> Detect:
    ids = [category["id"] for category in model.manifest["categories"]]
    labels = np.zeros(max(ids) + 1, np.int32)
    labels[ids] = np.arange(1, len(ids) + 1)

    def detect(images: Any, image_sizes: Any) -> Detections:
        # In the pixels that `postprocess` expects: as if the original images had been of this size.
        found = model(images, image_sizes, image_sizes)
        batch, slots = found["valid"].shape
        return Detections(
            boxes=found["boxes"],
            scores=found["scores"],
            classes=jnp.take(labels, found["category_ids"]),
            masks=found.get("masks", np.zeros((batch, slots, 0, 0), np.float32)),
            keypoints=found.get("keypoints", np.zeros((batch, slots, 0, 3), np.float32)),
            valid=found["valid"],
            truncated=np.zeros(batch, bool),
        )

    return detect
