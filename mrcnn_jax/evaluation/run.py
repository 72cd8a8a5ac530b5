"""Evaluation of a model on the evaluation split: detect, post-process, write results and pictures, score."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from etils import epath

from mrcnn_jax.config import Config
from mrcnn_jax.data import transforms
from mrcnn_jax.data.coco import Dataset, load_split
from mrcnn_jax.data.pipeline import eval_batches
from mrcnn_jax.evaluation import coco, inference
from mrcnn_jax.evaluation.postprocess import Prediction, postprocess
from mrcnn_jax.progress import track
from mrcnn_jax.structures import Detections

FOLDER = "evaluation"  # in the workdir


def evaluate_model(config: Config, variables: Any, workdir: epath.PathLike) -> dict[str, float]:
    """Evaluate `variables` on the split `config.data.eval`; prints the COCO tables, boxes first, then masks.

    Writes `results.json` (COCO result records), `metrics.json` and `overlays/<image id>.png` (`config.eval.overlays`
    of them, spread over the split) to `workdir/evaluation`. Returns the metrics, see `coco.evaluate`. Raises
    ConfigError when the model's categories are not those of the data.
    """
    dataset = load_split(config.data, "eval")
    coco.check_categories(config.model, dataset.categories.ids, dataset.categories.names)
    folder = Path(workdir) / FOLDER
    overlays = folder / "overlays"
    overlays.mkdir(parents=True, exist_ok=True)
    pictured = set(np.linspace(0, len(dataset) - 1, min(config.eval.overlays, len(dataset)), dtype=int).tolist())

    def see(index: int, prediction: Prediction) -> None:
        if index in pictured:
            write_overlay(overlays / f"{dataset.ids[index]}.png", dataset.record(index)[0], prediction)

    detect = inference.compile_detect(config.model, variables)
    results = list(track(predict_dataset(detect, config, dataset, see), len(dataset), "images evaluated"))
    records = [record for image in results for record in image]
    (folder / "results.json").write_text(json.dumps(records))
    masks = config.model.mask is not None and dataset.has_masks
    metrics = coco.evaluate(
        dataset.annotations_path,
        records,
        iou_types=("bbox", "segm") if masks else ("bbox",),
        image_ids=dataset.ids.tolist(),
    )
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    return metrics


def predict_dataset(
    detect: inference.Detect, config: Config, dataset: Dataset, see: Callable[[int, Prediction], None]
) -> Iterator[list[dict[str, Any]]]:
    """COCO result records of each image of `dataset`; `see(index, prediction)` is called on a worker thread."""

    def finish(index: int, detections: Detections, network_size: Any) -> list[dict[str, Any]]:
        height, width = dataset.sizes[index].tolist()
        prediction = postprocess(detections, network_size, (height, width), config.model)
        see(index, prediction)
        return prediction.to_coco(dataset.ids[index])

    with eval_batches(dataset, config) as batches:
        yield from inference.run(detect, batches, finish)


def write_overlay(path: Path, content: bytes, prediction: Prediction) -> None:
    """Draw a prediction on its image (an encoded file) and write the picture."""
    from mrcnn_jax import visualize  # here: it needs the packages of the extra `viz`

    image = transforms.decode(content)
    assert image is not None, "an image that was predicted on can be decoded"
    drawn = visualize.draw(np.ascontiguousarray(image[:, :, ::-1]), prediction)
    cv2.imwrite(str(path), drawn[:, :, ::-1])
