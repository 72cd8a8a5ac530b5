"""Evaluation of published weights. Reports are stored, and used again for the same weights, data and settings."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import jax

import mrcnn_jax
from mrcnn_jax.config import PATH_FIELDS, Config, DataConfig, KeypointHeadConfig, ModelConfig, apply_overrides, presets
from mrcnn_jax.data.annotations import read
from mrcnn_jax.data.dataset import Dataset, load_split
from mrcnn_jax.errors import ConfigError, DataError
from mrcnn_jax.evaluation.bootstrap import ap_deviation
from mrcnn_jax.evaluation.coco_metrics import Scores
from mrcnn_jax.evaluation.evaluate import evaluate_model, scorable_iou_types
from mrcnn_jax.evaluation.notes import NAMES
from mrcnn_jax.runtime import files
from mrcnn_jax.tools.verify.report import Report, published_ap, read_json, to_json
from mrcnn_jax.weights import reference_models, zoo_files
from mrcnn_jax.weights.zoo import ZooEntry

REPORT = "report.json"
_PACKAGES = ("jax", "jaxlib", "numpy", "pycocotools", "pillow")


class Images(NamedTuple):
    """The images to evaluate."""

    dataset: Dataset
    is_part: bool  # of the dataset


def recipe(entry: ZooEntry, root: Path, overrides: Sequence[str], limit: int | None) -> Config:
    """Return the configuration of the evaluation, whose model only tells whether there are keypoints.

    Raises ConfigError or DataError if the published AP cannot be compared with one on this data.
    """
    if not published_ap(entry):
        raise ConfigError(f"{entry.name} has no published AP: it is a backbone; `mrcnn weights list` shows detectors")
    if not entry.data.startswith(("COCO", "LVIS")):
        raise ConfigError(
            f"the published AP of {entry.name} is by the rules of {entry.data}, not COCO's; see mrcnn eval"
        )
    model = ModelConfig(keypoint=None if entry.keypoint_ap is None else KeypointHeadConfig())
    config = presets.published(entry.name, model)
    data = dataclasses.replace(config.data, root=str(root))
    config = dataclasses.replace(config, data=data, eval=dataclasses.replace(config.eval, overlays=0))
    config = apply_overrides(config, overrides)
    if entry.data.startswith("LVIS") and (limit or config.data.eval.image_ids):
        raise ConfigError(f"{entry.name} is scored by LVIS's rules: omit --limit and data.eval.image_ids")
    for path in (config.data.eval.annotations, config.data.eval.images):
        if not (Path(config.data.root) / path).exists():
            raise DataError(
                f"{config.data.root} has no {path}: `mrcnn convert coco2017 DIR --split=val` downloads COCO's; other"
                " data is named by --config.data.eval.annotations=FILE and --config.data.eval.images=DIR"
            )
    return config


def open_images(data: DataConfig, limit: int | None) -> Images:
    """Return at most `limit` images of the dataset `data.eval`, evenly spaced in the order of their ids; None: all."""
    selected = data.eval.image_ids
    if limit:
        ids = sorted(image.id for image in read(Path(data.root) / data.eval.annotations, selected).images)
        if limit < len(ids):
            selected = tuple(ids[index * len(ids) // limit] for index in range(limit))
    data = dataclasses.replace(data, eval=dataclasses.replace(data.eval, image_ids=selected))
    return Images(load_split(data, "eval"), bool(selected))


def measure(
    entry: ZooEntry, recipe: Config, images: Images, overrides: Sequence[str], output: Path, command: str
) -> Report:
    """Fetch weights, evaluate them in exact mode, and return a report, which is also stored in `output/NAME`."""
    dataset = images.dataset
    weights = zoo_files.fetch(entry)
    folder = output / entry.name
    report = Report(
        name=entry.name,
        weights=files.file_hash(weights, "sha256"),
        data=hashlib.sha256(json.dumps(dataset.fingerprint()).encode()).hexdigest()[:16],
        overrides=sorted(text for text in overrides if text.partition("=")[0] not in PATH_FIELDS),
        version=mrcnn_jax.__version__,
        published=published_ap(entry),
        images=len(dataset),
        date=datetime.date.today().isoformat(),
        software=_software(),
        hardware=_hardware(),
        command=command,
    )
    if stored := _stored(folder / REPORT, report):
        print(f"{entry.name}: measured before, {folder / REPORT}", flush=True)
        return stored
    start = time.perf_counter()
    config, variables = reference_models.load(weights, *reference_models.preset_of(entry), recipe)
    scores = _evaluate(apply_overrides(config, overrides), variables, dataset, folder, report.published)
    deviations = {name: 100 * ap_deviation(scores, name) for name in report.published if images.is_part}
    report = dataclasses.replace(
        report,
        measured={name: 100 * scores.metrics[f"{name}/AP"] for name in report.published},
        deviations=deviations,
        seconds=time.perf_counter() - start,
    )
    files.write_text(folder / REPORT, to_json([report]))
    return report


def _evaluate(config: Config, variables: object, dataset: Dataset, folder: Path, published: dict[str, float]) -> Scores:
    """Evaluate the model and return the scores."""
    scorable = scorable_iou_types(config, dataset)
    for iou_type in published:
        if iou_type not in scorable:
            raise DataError(f"{dataset.annotations_path} has no {NAMES[iou_type]}, for which {config.name} has an AP")
    found: list[Scores] = []
    evaluate_model(
        config, variables, folder, dataset=dataset, report=lambda scores, _: found.append(scores), quiet=True
    )
    return found[0]


def _stored(path: Path, report: Report) -> Report | None:
    """Return the report of an earlier call with the same weights, data and settings, if there is one."""
    try:
        [stored] = read_json(path)
    except ValueError:  # also DataError
        return None
    return stored if stored.is_of(report) else None


def _software() -> str:
    versions = [f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES]
    python = f"Python {platform.python_version()}"
    return ", ".join([f"mrcnn_jax {mrcnn_jax.__version__}", *versions, f"opencv {cv2.__version__}", python])


def _hardware() -> str:
    device = jax.devices()[0]
    if device.platform != "cpu":
        return device.device_kind
    info = Path("/proc/cpuinfo")
    name = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    return f"{name[1] if name else platform.machine()}, {os.cpu_count()} cores"
