"""Evaluation of a model on the evaluation split: detect, post-process, write results and pictures, score."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import cv2
import numpy as np
from etils import epath

from mrcnn_jax.config import Config
from mrcnn_jax.data import image_files
from mrcnn_jax.data.coco import Dataset, load_split
from mrcnn_jax.data.pipeline import eval_batches
from mrcnn_jax.evaluation import coco, exact, inference
from mrcnn_jax.evaluation.postprocess import Prediction, postprocess
from mrcnn_jax.progress import track
from mrcnn_jax.structures import Detections

log = logging.getLogger(__name__)

FOLDER = "evaluation"  # in the workdir


def evaluate_model(config: Config, variables: Any, workdir: epath.PathLike) -> dict[str, float]:
    """Evaluate `variables` on the split `config.data.eval`; prints the COCO tables: boxes, masks, keypoints.

    Writes `results.json` (COCO result records), `metrics.json` and `overlays/<image id>.png` (`config.eval.overlays`
    of them, spread over the split) to `workdir/evaluation`. Returns the metrics, see `coco.evaluate`. Raises
    ConfigError when the model does not know the data's categories, or has other keypoints.
    """
    dataset = load_split(config.data, "eval")
    pose = dataset.categories.pose
    coco.check_categories(config.model, dataset.categories.ids, dataset.categories.names)
    coco.check_keypoints(config.model, pose.names)
    folder = epath.Path(workdir) / FOLDER
    (folder / "overlays").mkdir(parents=True, exist_ok=True)
    for outdated in (folder / "overlays").glob("*.png"):
        outdated.unlink()
    pictured = set(np.linspace(0, len(dataset) - 1, min(config.eval.overlays, len(dataset)), dtype=int).tolist())

    def see(index: int, prediction: Prediction) -> None:
        if index in pictured:
            picture = overlay(dataset.record(index)[0], prediction)
            (folder / "overlays" / f"{dataset.ids[index]}.png").write_bytes(picture)

    detect = inference.compile_detect(config.model, variables)
    results = list(track(predict_dataset(detect, config, dataset, see), len(dataset), "images evaluated"))
    records = [record for image in results for record in image]
    (folder / "results.json").write_text(json.dumps(records))
    wanted = {
        "bbox": True,
        "segm": config.model.mask is not None and dataset.has_masks,
        "keypoints": config.model.keypoint is not None and bool(pose.names),
    }
    metrics = coco.evaluate(
        dataset.annotations_path,
        records,
        iou_types=[name for name in wanted if wanted[name]],
        image_ids=dataset.ids.tolist(),
        category_names=config.data.categories,
        keypoint_sigmas=config.eval.keypoint_sigmas,
    )
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    return metrics


def predict_dataset(
    detect: inference.Detect, config: Config, dataset: Dataset, see: Callable[[int, Prediction], None]
) -> Iterator[list[dict[str, Any]]]:
    """COCO result records of each image of `dataset`; `see(index, prediction)` is called on a worker thread."""

    truncated: list[int] = []

    def finish(index: int, detections: Detections, network_size: Any) -> list[dict[str, Any]]:
        if detections.truncated:
            truncated.append(index)
        height, width = dataset.sizes[index].tolist()
        prediction = postprocess(detections, network_size, (height, width), config.model)
        see(index, prediction)
        return prediction.to_coco(dataset.ids[index])

    with _batches(dataset, config) as batches:
        yield from inference.run(detect, batches, finish)
    if truncated:
        log.warning(
            "%d images had more candidates than model.box.nms_candidates=%d and may lack detections: image ids %s",
            len(truncated),
            config.model.box.nms_candidates,
            ", ".join(str(dataset.ids[index]) for index in sorted(truncated)[:20]),
        )


def _batches(dataset: Dataset, config: Config) -> AbstractContextManager[Iterator[Any]]:
    """Every image once, as `config.eval.resize` says: in the buckets, or each alone."""
    if config.eval.resize == "bucket":
        return eval_batches(dataset, config)
    return contextlib.closing(exact.batches(dataset, config))


def overlay(content: bytes, prediction: Prediction) -> bytes:
    """A prediction drawn on its image (an encoded file), as PNG."""
    from mrcnn_jax import visualize  # here: it needs the packages of the extra `viz`

    image = image_files.decode(content)
    assert image is not None, "an image that was predicted on can be decoded"
    drawn = visualize.draw(image, prediction)
    return cv2.imencode(".png", drawn[:, :, ::-1])[1].tobytes()
