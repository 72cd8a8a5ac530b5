"""Evaluation of a model on the evaluation split: detect, post-process, write results and pictures, score."""

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
from mrcnn_jax.errors import ConfigError, described
from mrcnn_jax.evaluation import class_scores, coco_metrics, ground_truth, notes
from mrcnn_jax.inference import detector, single_image, tta
from mrcnn_jax.inference.devices import largest_divisor
from mrcnn_jax.inference.postprocess import Prediction, postprocess
from mrcnn_jax.runtime import profiling
from mrcnn_jax.runtime.progress import track
from mrcnn_jax.structures import Detections

log = logging.getLogger(__name__)

FOLDER = "evaluation"  # in the workdir
OVERLAYS = "overlays"  # in that
RESULTS = "results.json"


def check_same_configuration(config: Config) -> None:
    """Raise ConfigError unless all processes have the same settings, but for places, and versions of the programs."""
    settings = {name: value for name, value in flatten(config).items() if name not in PATH_FIELDS}
    versions = {"the version of mrcnn_jax": mrcnn_jax.__version__, "the version of jax": jax.__version__}
    collectives.check_same({**settings, **versions}, "configuration")


def check_same_data(splits: Mapping[str, Dataset]) -> None:
    """Raise ConfigError unless all processes have opened splits of the same content, each by its name."""
    contents = {split: dataset.fingerprint() for split, dataset in splits.items()}
    values = {f"{split}: {name}": value for split, content in contents.items() for name, value in content.items()}
    collectives.check_same(values, "data")


def check_evaluation(config: Config, dataset: Dataset) -> None:
    """Raise ConfigError if `config` cannot be evaluated on `dataset` by these processes.

    It can when the model knows the data's categories and has their keypoints, and a batch divides over the processes.
    """
    coco_metrics.check_categories(config.model, dataset.categories.ids, dataset.categories.names)
    coco_metrics.check_keypoints(config.model, dataset.categories.pose.names)
    count, size = jax.process_count(), config.eval.batch_size
    if not config.eval.single_image and size % count:
        raise ConfigError(f"eval.batch_size={size} does not divide over {count} processes: give a multiple of {count}")


def tables(config: Config, dataset: Dataset) -> list[str]:
    """What `dataset` can score: "bbox", "segm", "keypoints"."""
    wanted = {
        "bbox": True,
        "segm": config.model.mask is not None and dataset.has_masks,
        "keypoints": config.model.keypoint is not None and bool(dataset.categories.pose.names),
    }
    return [name for name in wanted if wanted[name]]


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
    """Evaluate `variables` on the split `config.data.eval`; prints the COCO tables unless `quiet`.

    Writes `results.json` (COCO result records), `metrics.json`, `classes.json` and `overlays/<image id>.png`
    (`config.eval.overlays` of them, spread over the split) to `workdir/evaluation`, with `profile` also a recording of
    a few batches to `profile/`, see `profiling`. Returns the metrics, see `coco_metrics.score`. Overlays that cannot be
    made are logged and left out. The main process calls `report` with the scores and the folder of the images.

    All processes call this together. Each sees its share of the images, on as many of its `devices` (default: all) as
    divide its part of a batch; where each image is alone (`eval.single_image`), on one. The main process prints, writes
    and scores; all return the same. `dataset` is the split if it is open already. `check` is called before each global
    batch, equally often in every process; what it raises ends the evaluation. Raises ConfigError, see
    `check_evaluation`.
    """
    folder = epath.Path(workdir) / FOLDER
    check_workdir(folder)
    if dataset is None:
        check_same_configuration(config)
        dataset = load_split(config.data, "eval")
        check_same_data({"data.eval": dataset})
    check_evaluation(config, dataset)
    collectives.run_on_main(lambda: _clear(folder))
    compiled = tta.compile_detect if config.eval.augmented else detector.compile_detect
    detect = compiled(config.model, variables, _devices(config, devices))
    with tempfile.TemporaryFile() as records:
        share = _Share(config, dataset, folder, records)
        share.see_all(detect, check, profiling.profile_steps(folder / profiling.FOLDER, "evaluate", recorded=profile))
        shares = collectives.gather_bytes(share.packed())
    return dict(json.loads(collectives.run_on_main(lambda: _score(config, dataset, folder, shares, report, quiet))))


class _Share:
    """What one process finds in its images."""

    def __init__(self, config: Config, dataset: Dataset, folder: epath.Path, records: IO[bytes]):
        self._config, self._dataset, self._folder = config, dataset, folder
        # A line for each image, its index and its result records as JSON: in a file, so that memory stays flat.
        self._records = records
        pictured = np.linspace(0, len(dataset) - 1, min(config.eval.overlays, len(dataset)), dtype=int)
        self._pictured = set(pictured.tolist())
        self._truncated: list[int] = []  # indices of images
        self._full: list[int] = []  # of those with as many detections as there may be
        self._pictures: dict[str, str] = {}  # by name, PNG in base64: what the main process has yet to write

    def packed(self) -> bytes:
        """What was found, in lines: indices of truncated and of full images and pictures as JSON, then each image's
        records."""
        self._records.seek(0)
        return json.dumps([self._truncated, self._full, self._pictures]).encode() + b"\n" + self._records.read()

    def see_all(self, detect: detector.Detect, check: Callable[[], None], profile: profiling.StepProfiler) -> None:
        """Detect in all images of the share. Only the main process says how far it is."""
        index, count = jax.process_index(), jax.process_count()
        words = "images evaluated" if count == 1 else f"images evaluated by process {index} of {count}"
        opened, images = _open(self._dataset, self._config)
        with opened as batches, profile:
            found = detector.run(detect, _checked(batches, check), self._finish, profile)
            with contextlib.closing(found):
                for index, records in track(found, images, words) if collectives.is_main() else found:
                    self._records.write(b"%d %s\n" % (index, records))

    def _finish(self, index: int, detections: Detections, network_size: Any) -> tuple[int, bytes]:
        """Index of an image, and the JSON of its result records without its brackets; called on worker threads."""
        if detections.truncated:
            self._truncated.append(index)
        height, width = self._dataset.sizes[index].tolist()
        prediction = postprocess(detections, network_size, (height, width), self._config.model)
        if prediction.full:
            self._full.append(index)
        if index in self._pictured:
            self._draw(index, prediction)
        records = json.dumps(prediction.to_coco(self._dataset.ids[index]), separators=(",", ":"))
        return index, records[1:-1].encode()

    def _draw(self, index: int, prediction: Prediction) -> None:
        """Keep a picture of an image; where that fails, its id is logged, for the metrics do not depend on it."""
        try:
            self._keep(f"{self._dataset.ids[index]}.png", self._picture(index, prediction))
        except Exception as error:
            log.warning("image %s has no overlay: %s", self._dataset.ids[index], described(error))

    def _picture(self, index: int, prediction: Prediction) -> bytes:
        """What is annotated in an image and what was found, side by side, as PNG."""
        from mrcnn_jax import visualize  # here: it needs the packages of the extra `viz`

        image, true = ground_truth.read(self._dataset, index, self._config.model)
        return cv2.imencode(".png", visualize.compare(image, true, prediction)[:, :, ::-1])[1].tobytes()

    def _keep(self, name: str, picture: bytes) -> None:
        if collectives.is_main():
            _write_picture(self._folder / OVERLAYS / name, picture)
        else:
            self._pictures[name] = base64.b64encode(picture).decode()


def _write_picture(path: epath.Path, picture: bytes) -> None:
    """Write an overlay; where that fails, it is logged, for the metrics do not depend on it."""
    try:
        path.write_bytes(picture)
    except OSError as error:
        log.warning("overlay %s is not written: %s", path.name, described(error))


def _clear(folder: epath.Path) -> bytes:
    """Make the folder, without pictures of an earlier evaluation."""
    (folder / OVERLAYS).mkdir(parents=True, exist_ok=True)
    for outdated in (folder / OVERLAYS).glob("*.png"):
        outdated.unlink()
    return b""


def _score(
    config: Config,
    dataset: Dataset,
    folder: epath.Path,
    shares: list[bytes],
    report: Callable[[coco_metrics.Scores, Path], None] | None,
    quiet: bool,
) -> bytes:
    """Put the shares of the processes together (they are let go), write and score them: the metrics as JSON."""
    full = _join(config, dataset, folder, shares)
    scores = coco_metrics.score(
        dataset.annotations_path,
        json.loads((folder / RESULTS).read_bytes()),
        iou_types=tables(config, dataset),
        image_ids=dataset.ids.tolist(),
        category_names=config.data.categories,
        keypoint_sigmas=config.eval.keypoint_sigmas,
        images=dataset.images_path,
        quiet=quiet,
    )
    limit = notes.most_of_model(scores.truth, full, config.model.box.max_detections)
    for note in limit:
        log.warning("%s", note)
    (folder / "metrics.json").write_text(json.dumps(scores.metrics, indent=2) + "\n")
    class_scores.write(scores, folder / class_scores.FILE)
    if report is not None:
        report(dataclasses.replace(scores, notes=(*limit, *scores.notes)), dataset.images_path)
    return json.dumps(scores.metrics).encode()


def _join(config: Config, dataset: Dataset, folder: epath.Path, shares: list[bytes]) -> int:
    """Write results and pictures of all shares, and empty the list of shares; how many images are full."""
    truncated: list[int] = []
    full = 0
    images: list[tuple[int, bytes]] = []
    while shares:
        head, *lines = shares.pop().splitlines()
        cut, filled, pictures = json.loads(head)
        truncated += cut
        full += len(filled)
        for name, picture in pictures.items():
            _write_picture(folder / OVERLAYS / name, base64.b64decode(picture))
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
    """Those that share this process's part of a batch, which may be one image."""
    images = 1 if config.eval.single_image else config.eval.batch_size // jax.process_count()
    return largest_divisor(jax.local_devices() if devices is None else devices, images)


def _open(dataset: Dataset, config: Config) -> tuple[AbstractContextManager[Iterator[Any]], int]:
    """This process's batches as `config.eval` says, in the buckets or each image alone; how many images."""
    index, count = jax.process_index(), jax.process_count()
    if not config.eval.single_image:
        batches = eval_batches(dataset, config, process_index=index, process_count=count)
        return batches, batches.images()
    make = tta.prepare if config.eval.augmented else single_image.prepare
    singles = single_image.batches(dataset, config, make, process_index=index, process_count=count)
    return contextlib.closing(singles), len(range(index, len(dataset), count))


def _checked(batches: Iterator[Any], check: Callable[[], None]) -> Iterator[Any]:
    for batch in batches:
        check()
        yield batch
