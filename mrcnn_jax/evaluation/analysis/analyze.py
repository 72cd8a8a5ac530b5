"""Analysis of scores: metric tables, errors, and the outcome of every detection in every image."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from mrcnn_jax.evaluation.analysis import Analysis, Category, ImageResult, Instance
from mrcnn_jax.evaluation.analysis.class_tables import count_instances, metric_table
from mrcnn_jax.evaluation.analysis.match_detections import CORRECT, Matches, Record, match_detections
from mrcnn_jax.evaluation.coco_ground_truth import counts_in_table, is_ignored
from mrcnn_jax.evaluation.coco_metrics import Scores, with_field
from mrcnn_jax.runtime.progress import track

_PRIMARY = ("segm", "bbox", "keypoints")  # by preference, whose outcomes are shown in images


def analyze(scores: Scores, *, threshold: float = 0.5) -> Analysis:
    """Return the tables of `scores`, and the outcome of each image's detections with a score of at least `threshold`.

    Of each image and category only the best detections are analyzed, as many as pycocotools counts in the table
    (`maxDets`), so that tables, errors and images are of the same detections.
    """
    iou_types = list(scores.evaluations)
    primary = next(iou_type for iou_type in _PRIMARY if iou_type in iou_types)
    matches, images = _match_images(scores, primary, threshold)
    return Analysis(
        tables=tuple(metric_table(scores, iou_type, matches[iou_type], threshold) for iou_type in iou_types),
        images=tuple(images),
        categories=tuple(
            Category(category_id, scores.ground_truth.cats[category_id]["name"], count)
            for category_id, count in count_instances(scores.ground_truth, primary).items()
        ),
        threshold=threshold,
        notes=scores.notes,
    )


def _match_images(scores: Scores, primary: str, threshold: float) -> tuple[dict[str, list[Matches]], list[ImageResult]]:
    """Match the detections of each image, by iou_type; returns also the image results of the primary table."""
    truth = scores.ground_truth
    class_of = {category_id: k for k, category_id in enumerate(sorted(truth.cats))}
    detections = {iou_type: _best_by_image(scores, iou_type) for iou_type in scores.evaluations}
    matched: dict[str, list[Matches]] = {iou_type: [] for iou_type in scores.evaluations}
    images = []
    for image in track(truth.dataset["images"], len(truth.imgs), "images analyzed"):
        annotations = [_with_rle(scores, annotation) for annotation in truth.imgToAnns[image["id"]]]
        partial = image.get("not_exhaustive_category_ids", ())
        for iou_type in scores.evaluations:
            counted = [annotation for annotation in annotations if counts_in_table(annotation, iou_type)]
            instances = [annotation for annotation in counted if not is_ignored(annotation, iou_type)]
            ignored = [annotation for annotation in counted if is_ignored(annotation, iou_type)]
            best = detections[iou_type][image["id"]]
            matches = match_detections(iou_type, best, instances, ignored, class_of, scores.keypoint_sigmas, partial)
            matched[iou_type].append(matches)
            if iou_type == primary:
                images.append(_image_result(image, best, instances, ignored, matches, threshold))
    return matched, images


def _best_by_image(scores: Scores, iou_type: str) -> dict[int, list[Record]]:
    """Return the result records of each image that the table counts, best score first."""
    limit = scores.evaluations[iou_type].params.maxDets[-1]
    best: dict[int, list[Record]] = defaultdict(list)
    counts: dict[tuple[int, int], int] = defaultdict(int)
    for record in sorted(with_field(scores.results, iou_type), key=lambda record: -record["score"]):
        group = record["image_id"], record["category_id"]
        counts[group] += 1
        if counts[group] <= limit:
            best[record["image_id"]].append(record)
    return best


def _with_rle(scores: Scores, annotation: Record) -> dict[str, Any]:
    """Return the annotation with its mask, if any, as run lengths."""
    if not annotation.get("segmentation"):
        return annotation
    return {**annotation, "segmentation": scores.ground_truth.annToRLE(annotation)}


def _image_result(
    image: dict[str, Any],
    detections: Sequence[Record],
    instances: Sequence[Record],
    ignored: Sequence[Record],
    matches: Matches,
    threshold: float,
) -> ImageResult:
    """Return the result of an image (an entry of `images` in COCO's JSON) for scores of at least `threshold`."""
    count = int(np.sum(matches.scores >= threshold))  # detections are sorted by score
    found = set(matches.targets[:count][matches.kinds[:count] == CORRECT].tolist())
    outcomes = matches.outcomes()[:count]
    correct, missed = len(found), len(instances) - len(found)
    wrong = sum(outcome not in ("correct", "crowd") for outcome in outcomes)
    shown = [
        *(_instance(entry, "found" if row in found else "missed") for row, entry in enumerate(instances)),
        *(_instance(entry, "crowd") for entry in ignored),
        *(_instance(record, outcome) for record, outcome in zip(detections, outcomes, strict=False)),
    ]
    return ImageResult(
        image_id=image["id"],
        file_name=image["file_name"],
        height=image["height"],
        width=image["width"],
        category_ids=frozenset(instance.category_id for instance in shown),
        quality=2 * correct / (2 * correct + wrong + missed) if correct + wrong + missed else 1.0,
        correct=correct,
        wrong=wrong,
        missed=missed,
        instances=tuple(shown),
    )


def _instance(record: Record, outcome: str) -> Instance:
    left, top, width, height = _box(record)
    keypoints = record.get("keypoints")
    return Instance(
        category_id=record["category_id"],
        predicted="score" in record,
        score=float(record.get("score", 1.0)),
        box=np.array([left, top, left + width, top + height], np.float64),
        segmentation=record.get("segmentation") or None,
        keypoints=np.array(keypoints, np.float64).reshape(-1, 3) if keypoints else None,
        outcome=outcome,
    )


def _box(record: Record) -> list[float]:
    """Return x, y, width, height; of the mask or the keypoints if a result has no box."""
    if "bbox" in record:
        return list(record["bbox"])
    if "segmentation" in record:
        return list(coco_mask.toBbox(record["segmentation"]))
    points = np.reshape(record["keypoints"], (-1, 3))[:, :2]
    return [*points.min(axis=0), *np.ptp(points, axis=0)]
