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
    profiler = profiling.profile_steps(folder / profiling.FOLDER, "evaluate", recorded=profile)
    with tempfile.TemporaryFile() as lines:  # a file, to bound memory
        _write_lines(lines, config, dataset, detect, check, profiler)
        lines.seek(0)
        gathered = collectives.gather(lines.read())
    return dict(json.loads(collectives.run_on_main(lambda: _score(config, dataset, folder, gathered, report, quiet))))


def _clear(folder: epath.Path) -> bytes:
    """Create the folder, and delete the overlays of an earlier evaluation."""
    (folder / OVERLAYS).mkdir(parents=True, exist_ok=True)
    for outdated in (folder / OVERLAYS).glob("*.png"):
        outdated.unlink()
    return b""


def _devices(config: Config, devices: Sequence[jax.Device] | None) -> tuple[jax.Device, ...]:
    """Return the devices over which this process's part of a batch, or a single image, is divided."""
    images = 1 if config.eval.single_image else config.eval.batch_size // jax.process_count()
    return largest_divisor(jax.local_devices() if devices is None else devices, images)


def _write_lines(
    file: IO[bytes],
    config: Config,
    dataset: Dataset,
    detect: detector.Detect,
    check: Callable[[], None],
    profiler: profiling.StepProfiler,
) -> None:
    """Detect in all images of this process and write a line for each. The main process shows the progress.

    A line has the index of the image, whether candidates were truncated, whether there are `max_detections`
    detections, the overlay (PNG in base64) if any, and the result records as JSON without brackets.
    """
    process, count = jax.process_index(), jax.process_count()
    drawn = set(np.linspace(0, len(dataset) - 1, min(config.eval.overlays, len(dataset)), dtype=int).tolist())
    # torchvision trains and evaluates on pixel indices, without adding 1/2 (references/detection/coco_eval.py).
    offset = 0.0 if config.eval.resize == "torchvision" else 0.5

    def finish(index: int, detections: Detections, network_size: Any) -> bytes:
        """Return the line of an image; called on worker threads."""
        height, width = dataset.sizes[index].tolist()
        prediction = postprocess(detections, network_size, (height, width), config.model)
        overlay = base64.b64encode(_overlay(config, dataset, index, prediction) if index in drawn else b"")
        results = prediction.to_coco(dataset.ids[index], keypoint_offset=offset)
        records = json.dumps(results, separators=(",", ":"))[1:-1].encode()
        flags = bool(detections.truncated), prediction.full
        return b"%d %d %d %s %s\n" % (index, *flags, overlay, records)

    opened, images = _open(dataset, config)
    label = "images evaluated" if count == 1 else f"images evaluated by process {process} of {count}"
    with opened as batches, profiler:
        lines = detector.detect_batches(detect, _checked(batches, check), finish, profiler)
        with contextlib.closing(lines):
            file.writelines(track(lines, images, label) if collectives.is_main() else lines)


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


def _overlay(config: Config, dataset: Dataset, index: int, prediction: Prediction) -> bytes:
    """Return ground truth and prediction side by side as PNG; empty if that fails, because metrics do not need it."""
    try:
        from mrcnn_jax import visualize  # here, because it takes long to import

        image, truth = ground_truth.read(dataset, index, config.model)
        return cv2.imencode(".png", visualize.compare(image, truth, prediction)[:, :, ::-1])[1].tobytes()
    except Exception as error:
        log.warning("image %s has no overlay: %s", dataset.ids[index], format_error(error))
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
    num_full = _write_results(config, dataset, folder, gathered)
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
    limit_notes = notes.model_limit(scores.ground_truth, num_full, config.model.box.max_detections)
    for note in limit_notes:
        log.warning("%s", note)
    (folder / "metrics.json").write_text(json.dumps(scores.metrics, indent=2) + "\n")
    class_scores.write(scores, folder / class_scores.FILE)
    if report is not None:
        report(dataclasses.replace(scores, notes=(*limit_notes, *scores.notes)), dataset.images_path)
    return json.dumps(scores.metrics).encode()


def _write_results(config: Config, dataset: Dataset, folder: epath.Path, gathered: list[bytes]) -> int:
    """Write records and overlays of all processes, emptying `gathered`; returns the number of full images."""
    num_full, truncated = 0, []
    records: dict[int, bytes] = {}
    while gathered:
        for line in gathered.pop().splitlines():
            *numbers, overlay, content = line.split(b" ", 4)
            index, is_truncated, is_full = map(int, numbers)
            records[index] = content
            num_full += is_full
            truncated += [index] * is_truncated
            if overlay:
                _write_overlay(folder / OVERLAYS / f"{dataset.ids[index]}.png", base64.b64decode(overlay))
    if truncated:
        log.warning(
            "%d images had more candidates than model.box.nms_candidates=%d and may lack detections: image ids %s",
            len(truncated),
            config.model.box.nms_candidates,
            ", ".join(str(dataset.ids[index]) for index in sorted(truncated)[:20]),
        )
    with (folder / RESULTS).open("wb") as file:
        file.write(b"[" + b",\n".join(records[index] for index in sorted(records) if records[index]) + b"]\n")
    return num_full


def _write_overlay(path: epath.Path, png: bytes) -> None:
    """Write an overlay. Failures are logged, because the metrics do not depend on it."""
    try:
        path.write_bytes(png)
    except OSError as error:
        log.warning("overlay %s is not written: %s", path.name, format_error(error))
