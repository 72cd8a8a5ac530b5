"""LVIS average precision, equal to that of https://github.com/lvis-dataset/lvis-api, computed by faster-coco-eval.

An image counts for the classes annotated in it and for those known to be absent. Detections of other classes are left
out, as are false positives of classes that are not annotated exhaustively. The 300 best detections of an image count.
There are also means over rare, common and frequent classes. pycocotools, which evaluates every class in every image,
would take hours for the 1203 classes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from pycocotools.coco import COCO

from mrcnn_jax.config.metric_names import LVIS_METRICS
from mrcnn_jax.data.lvis_labels import IMAGE_FIELDS

MAX_DETECTIONS = 300  # of an image
# Indices of LVIS_METRICS in `all_stats` of faster-coco-eval.
_STATS = (0, 1, 2, 3, 4, 5, 14, 15, 16, 6, 9, 10, 11)


def is_lvis(truth: COCO) -> bool:
    """Return whether the categories have a `frequency`, see `data.lvis_labels`."""
    return bool(truth.cats) and all("frequency" in category for category in truth.cats.values())


def filter_results(truth: COCO, results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the records that count, of the 300 best of each image."""
    by_image = defaultdict(list)
    for record in results:
        by_image[record["image_id"]].append(record)
    counted = []
    for image_id, records in by_image.items():
        verified = {annotation["category_id"] for annotation in truth.imgToAnns[image_id]}
        verified |= set(truth.imgs[image_id]["neg_category_ids"])
        best = sorted(records, key=lambda record: -record["score"])[:MAX_DETECTIONS]
        counted += [record for record in best if record["category_id"] in verified]
    return counted


def accumulate(truth: COCO, results: Sequence[dict[str, Any]], iou_type: str) -> Any:
    """Return the accumulated evaluation of boxes ("bbox") or masks ("segm"), with the fields of pycocotools'."""
    import faster_coco_eval  # here: only LVIS needs it

    ground_truth, results = _renumber(truth, results, iou_type)
    coco = faster_coco_eval.COCO(ground_truth)
    found, silent = coco.loadRes(results), lambda *_: None
    evaluation = faster_coco_eval.COCOeval_faster(coco, found, iou_type, lvis_style=True, print_function=silent)
    evaluation.params.maxDets = [MAX_DETECTIONS]
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.params.catIds = sorted(truth.cats)
    evaluation.cocoGt = evaluation.cocoDt = None  # free memory: only the accumulated numbers are used
    evaluation.gt_dataset.clean()
    evaluation.dt_dataset.clean()
    evaluation.ious = {}
    return evaluation


def summarize(evaluation: Any) -> dict[str, float]:
    """Print the table; returns its numbers by the names of LVIS_METRICS."""
    evaluation.print_function = print
    evaluation.summarize()
    return {name: float(evaluation.all_stats[index]) for name, index in zip(LVIS_METRICS, _STATS, strict=True)}


def _renumber(
    truth: COCO, results: Sequence[dict[str, Any]], iou_type: str
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return ground truth and results with image and category ids numbered from 1, in the same order.

    faster-coco-eval stores ids as floats, which cannot tell apart ids beyond 2**53.
    """
    image = {image_id: k for k, image_id in enumerate(sorted(truth.imgs), 1)}
    category = {category_id: k for k, category_id in enumerate(sorted(truth.cats), 1)}
    fields = ("image_id", "category_id", "score", "bbox" if iou_type == "bbox" else "segmentation")

    def renumbered(record: dict[str, Any]) -> dict[str, Any]:
        return {**record, "image_id": image[record["image_id"]], "category_id": category[record["category_id"]]}

    def renumbered_image(entry: dict[str, Any]) -> dict[str, Any]:
        lists = {name: [category[i] for i in entry[name] if i in category] for name in IMAGE_FIELDS}
        return {**entry, "id": image[entry["id"]], **lists}

    dataset = {
        "images": [renumbered_image(entry) for entry in truth.dataset["images"]],
        "categories": [{**entry, "id": category[entry["id"]]} for entry in truth.dataset["categories"]],
        "annotations": [renumbered(annotation) for annotation in truth.dataset["annotations"]],
    }
    return dataset, [renumbered({name: record[name] for name in fields}) for record in results]
