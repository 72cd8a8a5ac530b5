"""COCO average precision of boxes and masks, computed and printed by pycocotools itself."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mrcnn_jax.config import ConfigError, ModelConfig
from mrcnn_jax.data.annotations import read
from mrcnn_jax.evaluation.postprocess import categories

# The order of COCOeval.stats for boxes and masks.
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
_HEADINGS = {"bbox": "Boxes", "segm": "Masks"}


def evaluate(
    annotations: Path,
    results: Sequence[dict[str, Any]],
    *,
    iou_types: Sequence[str] = ("bbox", "segm"),
    image_ids: Sequence[int] = (),
) -> dict[str, float]:
    """Score COCO result records against a COCO annotation file; print pycocotools' table for each of `iou_types`.

    `image_ids` restricts the evaluation to some images (empty: all of the file). Returns the twelve numbers of each
    table as `{"bbox/AP": ..., "segm/AP50": ...}`; -1 stands for "no such ground truth", as in pycocotools.
    Raises DataError for a file that cannot be used, ValueError for results of other images or without masks.
    """
    truth = ground_truth(annotations, image_ids)
    _check_results(truth, results, iou_types)
    metrics = {}
    for iou_type in iou_types:
        with _silent():
            evaluation = COCOeval(truth, _detections(truth, results, iou_type), iou_type)
            evaluation.evaluate()
            evaluation.accumulate()
        print(f"\n{_HEADINGS[iou_type]} ({iou_type}), {len(truth.imgs)} images, {len(results)} detections", flush=True)
        evaluation.summarize()
        stats = zip(METRICS, evaluation.stats, strict=True)
        metrics.update({f"{iou_type}/{name}": float(value) for name, value in stats})
    return metrics


def ground_truth(path: Path, image_ids: Sequence[int] = ()) -> COCO:
    """A COCO annotation file as pycocotools wants it, without the annotations that training leaves out either.

    `iscrowd` and `area` may be missing. Annotations are numbered anew: to pycocotools a match with annotation 0 is
    no match.
    """
    content = read(path, image_ids)
    truth = COCO()
    truth.dataset = {
        "images": [
            {"id": i.id, "file_name": i.file_name, "height": i.height, "width": i.width} for i in content.images
        ],
        "categories": [
            {"id": i, "name": name} for i, name in zip(content.categories.ids, content.categories.names, strict=True)
        ],
        "annotations": [],
    }
    for image in content.images:
        for annotation in image.annotations:
            number = len(truth.dataset["annotations"]) + 1
            truth.dataset["annotations"].append({"iscrowd": 0, **annotation, "id": number})
    with _silent():
        truth.createIndex()
    for annotation in truth.dataset["annotations"]:
        if "area" not in annotation:
            annotation["area"] = _area(truth, annotation)
    return truth


def _area(truth: COCO, annotation: dict[str, Any]) -> float:
    """Pixels of the mask, or of the box where there is no mask."""
    if annotation.get("segmentation"):
        return float(coco_mask.area(truth.annToRLE(annotation)))
    return float(annotation["bbox"][2] * annotation["bbox"][3])


def _check_results(truth: COCO, results: Sequence[dict[str, Any]], iou_types: Sequence[str]) -> None:
    strangers = sorted({record["image_id"] for record in results} - truth.imgs.keys())
    if strangers:
        raise ValueError(f"results for images that the annotations do not have: ids {strangers[:20]}")
    if "segm" in iou_types and any("segmentation" not in record for record in results):
        raise ValueError("results without masks cannot be scored as masks: leave 'segm' out of iou_types")


def check_categories(model: ModelConfig, ids: Sequence[int], names: Sequence[str]) -> None:
    """Raise ConfigError unless the model and the data agree on category ids and names; their order may differ."""
    ours, theirs = dict(zip(*categories(model), strict=True)), dict(zip(ids, names, strict=True))
    if ours == theirs:
        return
    differing = sorted(i for i in ours.keys() | theirs.keys() if ours.get(i) != theirs.get(i))
    lines = [f"  id {i}: model {ours.get(i, 'none')!r}, data {theirs.get(i, 'none')!r}" for i in differing[:10]]
    more = [f"  and {len(differing) - 10} more"] if len(differing) > 10 else []
    what = "the model's categories differ from those of the data, so its scores would mean nothing:"
    raise ConfigError("\n".join([what, *lines, *more]))


def _detections(truth: COCO, results: Sequence[dict[str, Any]], iou_type: str) -> COCO:
    """Result records as a COCO object; pycocotools' own `loadRes` fails on an empty list."""
    if not results:
        empty = COCO()
        empty.dataset = {**truth.dataset, "annotations": []}
        with _silent():
            empty.createIndex()
        return empty
    # With both in a record, loadRes takes a mask's area from the box, and the tables by size come out wrong.
    other = "bbox" if iou_type == "segm" else "segmentation"
    with _silent():
        return truth.loadRes([{key: value for key, value in record.items() if key != other} for record in results])


def _silent() -> contextlib.AbstractContextManager[Any]:
    """pycocotools tells of each of its steps; only its tables are worth printing."""
    return contextlib.redirect_stdout(io.StringIO())
