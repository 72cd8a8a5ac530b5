"""Analysis of scores: metric tables, errors, and the outcome of every detection in every image."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from mrcnn_jax.evaluation.analysis.class_tables import count_instances, metric_table
from mrcnn_jax.evaluation.analysis.image_overlaps import ImageOverlaps, Record, image_overlaps
from mrcnn_jax.evaluation.analysis.image_results import image_result
from mrcnn_jax.evaluation.analysis.match_detections import Matches, match_detections
from mrcnn_jax.evaluation.analysis.results import Analysis, Category, ImageResult
from mrcnn_jax.evaluation.coco_ground_truth import counts_in_table
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


def _match_images(
    scores: Scores, primary: str, threshold: float
) -> tuple[dict[str, list[tuple[ImageOverlaps, Matches]]], list[ImageResult]]:
    """Match the detections of each image, by iou_type; returns also the image results of the primary table."""
    truth = scores.ground_truth
    class_of = {category_id: k for k, category_id in enumerate(sorted(truth.cats))}
    detections = {iou_type: _best_by_image(scores, iou_type) for iou_type in scores.evaluations}
    matched: dict[str, list[tuple[ImageOverlaps, Matches]]] = {iou_type: [] for iou_type in scores.evaluations}
    images = []
    for image in track(truth.dataset["images"], len(truth.imgs), "images analyzed"):
        annotations = [_with_rle(scores, annotation) for annotation in truth.imgToAnns[image["id"]]]
        partial = frozenset(image.get("not_exhaustive_category_ids", ()))
        for iou_type in scores.evaluations:
            counted = [annotation for annotation in annotations if counts_in_table(annotation, iou_type)]
            best = detections[iou_type][image["id"]]
            overlaps = image_overlaps(iou_type, counted, best, class_of, scores.keypoint_sigmas, partial)
            matches = match_detections(overlaps)
            if iou_type == primary:
                images.append(image_result(image, overlaps, matches, threshold))
            arrays_only = overlaps._replace(detections=[], instances=[], ignored=[])  # to bound memory
            matched[iou_type].append((arrays_only, matches))
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
