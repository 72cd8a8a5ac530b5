"""From scores to their analysis: every image seen once by every table."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from mrcnn_jax.evaluation.analysis.class_tables import count_instances, metric_table
from mrcnn_jax.evaluation.analysis.image_overlaps import Record, image_overlaps
from mrcnn_jax.evaluation.analysis.image_results import image_result
from mrcnn_jax.evaluation.analysis.match_detections import match_detections
from mrcnn_jax.evaluation.analysis.results import Analysis, Category
from mrcnn_jax.evaluation.coco_metrics import Scores, counts_in_table, with_field
from mrcnn_jax.runtime.progress import track

_TELLING = ("segm", "bbox", "keypoints")  # whose outcomes images show: the first that was scored


def analyze(scores: Scores, *, threshold: float = 0.5) -> Analysis:
    """The tables of `scores`, and each image with its instances and the detections of at least `threshold` as score.

    Of the detections of each image and category the best ones are examined, as many as pycocotools counts in the table
    (`maxDets`): the tables, the errors and the images are made of the same detections.
    """
    iou_types = list(scores.evaluations)
    telling = next(iou_type for iou_type in _TELLING if iou_type in iou_types)
    class_of = {category_id: place for place, category_id in enumerate(sorted(scores.truth.cats))}
    found = {iou_type: _by_image(scores, iou_type) for iou_type in iou_types}
    scenes: dict[str, list[Any]] = {iou_type: [] for iou_type in iou_types}
    images = []
    for image in track(scores.truth.dataset["images"], len(scores.truth.imgs), "images analyzed"):
        truths = [_with_runs(scores, annotation) for annotation in scores.truth.imgToAnns[image["id"]]]
        partial = frozenset(image.get("not_exhaustive_category_ids", ()))
        for iou_type in iou_types:
            counted = [truth for truth in truths if counts_in_table(truth, iou_type)]
            best = found[iou_type][image["id"]]
            seen = image_overlaps(iou_type, counted, best, class_of, scores.keypoint_sigmas, partial)
            matches = match_detections(seen)
            if iou_type == telling:
                images.append(image_result(image, seen, matches, threshold))
            scenes[iou_type].append((seen._replace(found=[], truths=[], ignored=[]), matches))
    return Analysis(
        tables=tuple(metric_table(scores, iou_type, scenes[iou_type], threshold) for iou_type in iou_types),
        images=tuple(images),
        categories=tuple(
            Category(category_id, scores.truth.cats[category_id]["name"], count)
            for category_id, count in count_instances(scores.truth, telling).items()
        ),
        threshold=threshold,
        notes=scores.notes,
    )


def _by_image(scores: Scores, iou_type: str) -> dict[int, list[Record]]:
    """Result records of each image that the table counts, best first."""
    most = scores.evaluations[iou_type].params.maxDets[-1]
    found: dict[int, list[Record]] = defaultdict(list)
    counts_in_table: dict[tuple[int, int], int] = defaultdict(int)
    for record in sorted(with_field(scores.results, iou_type), key=lambda record: -record["score"]):
        place = record["image_id"], record["category_id"]
        counts_in_table[place] += 1
        if counts_in_table[place] <= most:
            found[record["image_id"]].append(record)
    return found


def _with_runs(scores: Scores, annotation: Record) -> Record:
    """An annotation whose mask, if it has one, is run lengths."""
    if not annotation.get("segmentation"):
        return annotation
    return {**annotation, "segmentation": scores.truth.annToRLE(annotation)}
