"""Evaluation of a model on a dataset: detection, postprocessing, result records, overlays, metrics."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any

import cv2
import jax
import numpy as np
from etils import epath

import mrcnn_jax
from mrcnn_jax.checkpoints.workdir import check_workdir
from mrcnn_jax.config import PATH_FIELDS, Config, flatten
from mrcnn_jax.data.dataset import Dataset, load_split
from mrcnn_jax.data.pipeline import eval_batches
from mrcnn_jax.distributed import collectives
from mrcnn_jax.errors import ConfigError, format_error
from mrcnn_jax.evaluation import class_scores, coco_metrics, ground_truth, notes
from mrcnn_jax.inference import detector, single_image, tta
from mrcnn_jax.inference.devices import largest_divisor
from mrcnn_jax.inference.postprocess import Prediction, postprocess
from mrcnn_jax.runtime import profiling
from mrcnn_jax.runtime.progress import track
from mrcnn_jax.structures import Detections

log = logging.getLogger(__name__)

FOLDER = "evaluation"  # in the work directory
OVERLAYS = "overlays"  # in FOLDER
RESULTS = "results.json"


def check_same_configuration(config: Config) -> None:
    """Raise ConfigError unless all processes have the same settings, except for paths, and the same versions."""
    settings = {name: value for name, value in flatten(config).items() if name not in PATH_FIELDS}
    versions = {"the version of mrcnn_jax": mrcnn_jax.__version__, "the version of jax": jax.__version__}
    collectives.check_same({**settings, **versions}, "configuration")


def check_same_data(splits: Mapping[str, Dataset]) -> None:
    """Raise ConfigError unless the datasets have the same content in all processes. splits: datasets by name."""
    contents = {split: dataset.fingerprint() for split, dataset in splits.items()}
    values = {f"{split}: {name}": value for split, content in contents.items() for name, value in content.items()}
    collectives.check_same(values, "data")


def check_evaluation(config: Config, dataset: Dataset) -> None:
    """Raise ConfigError unless `config` can be evaluated on `dataset` by these processes.

    The model must have the dataset's categories and keypoints, and batches must divide evenly over the processes.
    """
    coco_metrics.check_categories(config.model, dataset.categories.ids, dataset.categories.names)
    coco_metrics.check_keypoints(config.model, dataset.categories.keypoint_schema.names)
    count, size = jax.process_count(), config.eval.batch_size
    if not config.eval.single_image and size % count:
        raise ConfigError(f"eval.batch_size={size} does not divide over {count} processes: give a multiple of {count}")


def scorable_iou_types(config: Config, dataset: Dataset) -> list[str]:
    """Return what the model predicts and `dataset` annotates: of "bbox", "segm", "keypoints"."""
    scorable = {
        "bbox": True,
        "segm": config.model.mask is not None and dataset.has_masks,
        "keypoints": config.model.keypoint is not None and bool(dataset.categories.keypoint_schema.names),
    }
    return [iou_type for iou_type in scorable if scorable[iou_type]]


def evaluate_model(
    config: Config,
    variables: Any,
    workdir: epath.PathLike,
    *,
    dataset: Dataset | None = None,
    devices: Sequence[jax.Device] | None = None,
    check: Callable[[], None] = lambda: None,
    report: Callable[[coco_metrics.Scores, Path], None] | None = None,
    quiet: bool = False,
    profile: bool = False,
) -> dict[str, float]:
    """Evaluate a model on the dataset `config.data.eval` and return the metrics, see `coco_metrics.score`.

    Writes `results.json` (COCO result records), `metrics.json`, `classes.json` and `overlays/<image id>.png`
    (`config.eval.overlays` of them, evenly spaced in the dataset) to `workdir/evaluation`. Overlays that fail are
    logged and left out.

    All processes call this together. Each evaluates a part of the images, on as many of its `devices` (default: all)
    as divide its part of a batch evenly, or on one for single images (`config.eval.single_image`). The main process
    prints, writes and scores; all return the same.

    dataset: the evaluation dataset, if it is loaded already.
    check: called before each global batch, equally often in every process; an exception ends the evaluation.
    report: called on the main process with the scores and the folder of the images.
    quiet: do not print the tables and the notes on them.
    profile: record a few batches to `workdir/evaluation/profile`, see `runtime.profiling`.
    Raises ConfigError, see `check_evaluation`.
    """
    folder = epath.Path(workdir) / FOLDER
    check_workdir(folder)
    if dataset is None:
        check_same_configuration(config)
        dataset = load_split(config.data, "eval")
        check_same_data({"data.eval": dataset})
    check_evaluation(config, dataset)
    collectives.run_on_main(lambda: _clear(folder))
    compile_detect = tta.compile_detect if config.eval.augmented else detector.compile_detect
    detect = compile_detect(config.model, variables, _devices(config, devices))
    with tempfile.TemporaryFile() as records:
        local = _LocalResults(config, dataset, folder, records)
        profiler = profiling.profile_steps(folder / profiling.FOLDER, "evaluate", recorded=profile)
        local.detect_all(detect, check, profiler)
        gathered = collectives.gather(local.serialize())
    return dict(json.loads(collectives.run_on_main(lambda: _score(config, dataset, folder, gathered, report, quiet))))


class _LocalResults:
    """Result records and overlays of the images of one process."""

    def __init__(self, config: Config, dataset: Dataset, folder: epath.Path, records: IO[bytes]):
        self._config, self._dataset, self._folder = config, dataset, folder
        # A line for each image, its index and its result records as JSON. In a file to bound memory.
        self._records = records
        overlays = np.linspace(0, len(dataset) - 1, min(config.eval.overlays, len(dataset)), dtype=int)
        self._with_overlay = set(overlays.tolist())  # indices of images
        self._truncated: list[int] = []  # indices of images with truncated candidates
        self._full: list[int] = []  # indices of images with `max_detections` detections
        self._overlays: dict[str, str] = {}  # file name -> PNG in base64, for the main process to write

    def serialize(self) -> bytes:
        """Return a line of JSON (truncated images, full images, overlays), then a line of records for each image."""
        self._records.seek(0)
        return json.dumps([self._truncated, self._full, self._overlays]).encode() + b"\n" + self._records.read()

    def detect_all(self, detect: detector.Detect, check: Callable[[], None], profile: profiling.StepProfiler) -> None:
        """Detect in all images of this process. The main process shows the progress."""
        process, count = jax.process_index(), jax.process_count()
        label = "images evaluated" if count == 1 else f"images evaluated by process {process} of {count}"
        opened, images = _open(self._dataset, self._config)
        with opened as batches, profile:
            results = detector.detect_batches(detect, _checked(batches, check), self._finish, profile)
            with contextlib.closing(results):
                for index, records in track(results, images, label) if collectives.is_main() else results:
                    self._records.write(b"%d %s\n" % (index, records))

    def _finish(self, index: int, detections: Detections, network_size: Any) -> tuple[int, bytes]:
        """Return an image's index and its records as JSON without brackets; called on worker threads."""
        if detections.truncated:
            self._truncated.append(index)
        height, width = self._dataset.sizes[index].tolist()
        prediction = postprocess(detections, network_size, (height, width), self._config.model)
        if prediction.full:
            self._full.append(index)
        if index in self._with_overlay:
            self._draw(index, prediction)
        records = json.dumps(prediction.to_coco(self._dataset.ids[index]), separators=(",", ":"))
        return index, records[1:-1].encode()

    def _draw(self, index: int, prediction: Prediction) -> None:
        """Draw and save an overlay. Failures are logged, because the metrics do not depend on it."""
        try:
            self._save(f"{self._dataset.ids[index]}.png", self._overlay(index, prediction))
        except Exception as error:
            log.warning("image %s has no overlay: %s", self._dataset.ids[index], format_error(error))

    def _overlay(self, index: int, prediction: Prediction) -> bytes:
        """Return ground truth and prediction side by side as PNG."""
        from mrcnn_jax import visualize  # here: it needs the packages of the extra `viz`

        image, truth = ground_truth.read(self._dataset, index, self._config.model)
        return cv2.imencode(".png", visualize.compare(image, truth, prediction)[:, :, ::-1])[1].tobytes()

    def _save(self, name: str, png: bytes) -> None:
        if collectives.is_main():
            _write_overlay(self._folder / OVERLAYS / name, png)
        else:
            self._overlays[name] = base64.b64encode(png).decode()


def _write_overlay(path: epath.Path, png: bytes) -> None:
    """Write an overlay. Failures are logged, because the metrics do not depend on it."""
    try:
        path.write_bytes(png)
    except OSError as error:
        log.warning("overlay %s is not written: %s", path.name, format_error(error))


def _clear(folder: epath.Path) -> bytes:
    """Create the folder, and delete the overlays of an earlier evaluation."""
    (folder / OVERLAYS).mkdir(parents=True, exist_ok=True)
    for outdated in (folder / OVERLAYS).glob("*.png"):
        outdated.unlink()
    return b""


def _score(
    config: Config,
    dataset: Dataset,
    folder: epath.Path,
    gathered: list[bytes],
    report: Callable[[coco_metrics.Scores, Path], None] | None,
    quiet: bool,
) -> bytes:
    """Write and score the results of all processes, emptying `gathered`; returns the metrics as JSON."""
    full = _join(config, dataset, folder, gathered)
    scores = coco_metrics.score(
        dataset.annotations_path,
        json.loads((folder / RESULTS).read_bytes()),
        iou_types=scorable_iou_types(config, dataset),
        image_ids=dataset.ids.tolist(),
        category_names=config.data.categories,
        keypoint_sigmas=config.eval.keypoint_sigmas,
        images=dataset.images_path,
        quiet=quiet,
    )
    limit_notes = notes.model_limit(scores.ground_truth, full, config.model.box.max_detections)
    for note in limit_notes:
        log.warning("%s", note)
    (folder / "metrics.json").write_text(json.dumps(scores.metrics, indent=2) + "\n")
    class_scores.write(scores, folder / class_scores.FILE)
    if report is not None:
        report(dataclasses.replace(scores, notes=(*limit_notes, *scores.notes)), dataset.images_path)
    return json.dumps(scores.metrics).encode()


def _join(config: Config, dataset: Dataset, folder: epath.Path, gathered: list[bytes]) -> int:
    """Write results and overlays of all processes, emptying `gathered`; returns the number of full images."""
    truncated: list[int] = []
    full = 0
    images: list[tuple[int, bytes]] = []
    while gathered:
        head, *lines = gathered.pop().splitlines()
        truncated_part, full_part, overlays = json.loads(head)
        truncated += truncated_part
        full += len(full_part)
        for name, png in overlays.items():
            _write_overlay(folder / OVERLAYS / name, base64.b64decode(png))
        for line in lines:
            index, _, records = line.partition(b" ")
            images.append((int(index), records))
    _warn_of_truncated(config, dataset, sorted(truncated))
    with (folder / RESULTS).open("wb") as file:
        file.write(b"[" + b",\n".join(records for _, records in sorted(images) if records) + b"]\n")
    return full


def _warn_of_truncated(config: Config, dataset: Dataset, indices: Sequence[int]) -> None:
    if indices:
        log.warning(
            "%d images had more candidates than model.box.nms_candidates=%d and may lack detections: image ids %s",
            len(indices),
            config.model.box.nms_candidates,
            ", ".join(str(dataset.ids[index]) for index in indices[:20]),
        )


def _devices(config: Config, devices: Sequence[jax.Device] | None) -> tuple[jax.Device, ...]:
    """Return the devices over which this process's part of a batch, or a single image, is divided."""
    images = 1 if config.eval.single_image else config.eval.batch_size // jax.process_count()
    return largest_divisor(jax.local_devices() if devices is None else devices, images)


def _open(dataset: Dataset, config: Config) -> tuple[AbstractContextManager[Iterator[Any]], int]:
    """Return this process's batches, of buckets or of single images according to `config.eval`, and its image count."""
    index, count = jax.process_index(), jax.process_count()
    if not config.eval.single_image:
        batches = eval_batches(dataset, config, process_index=index, process_count=count)
        return batches, batches.image_count()
    prepare = tta.prepare if config.eval.augmented else single_image.prepare
    singles = single_image.batches(dataset, config, prepare, process_index=index, process_count=count)
    return contextlib.closing(singles), len(range(index, len(dataset), count))


def _checked(batches: Iterator[Any], check: Callable[[], None]) -> Iterator[Any]:
    for batch in batches:
        check()
        yield batch
