"""From scores to their analysis: every image seen once by every table."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from mrcnn_jax.evaluation.analysis.images import image_result
from mrcnn_jax.evaluation.analysis.matching import match
from mrcnn_jax.evaluation.analysis.results import Analysis, Category
from mrcnn_jax.evaluation.analysis.scene import Record, scene
from mrcnn_jax.evaluation.analysis.tables import annotated, table
from mrcnn_jax.evaluation.coco import Scores, counts
from mrcnn_jax.progress import track

_TELLING = ("segm", "bbox", "keypoints")  # whose outcomes images show: the first that was scored


def analyse(scores: Scores, *, threshold: float = 0.5) -> Analysis:
    """The tables of `scores`, and each image with its instances and the detections of at least `threshold` as score.

    As many detections of an image as the tables count, its best ones, are examined.
    """
    iou_types = list(scores.evaluations)
    telling = next(iou_type for iou_type in _TELLING if iou_type in iou_types)
    class_of = {category_id: place for place, category_id in enumerate(sorted(scores.truth.cats))}
    found = _by_image(scores)
    scenes: dict[str, list[Any]] = {iou_type: [] for iou_type in iou_types}
    images = []
    for image in track(scores.truth.dataset["images"], len(scores.truth.imgs), "images analysed"):
        truths = [_with_runs(scores, annotation) for annotation in scores.truth.imgToAnns[image["id"]]]
        partial = frozenset(image.get("not_exhaustive_category_ids", ()))
        for iou_type in iou_types:
            most = scores.evaluations[iou_type].params.maxDets[-1]
            counted = [truth for truth in truths if counts(truth, iou_type)]
            seen = scene(iou_type, counted, found[image["id"]][:most], class_of, scores.keypoint_sigmas, partial)
            matches = match(seen)
            if iou_type == telling:
                images.append(image_result(image, seen, matches, threshold))
            scenes[iou_type].append((seen._replace(found=[], truths=[], ignored=[]), matches))
    return Analysis(
        tables=tuple(table(scores, iou_type, scenes[iou_type], threshold) for iou_type in iou_types),
        images=tuple(images),
        categories=tuple(
            Category(category_id, scores.truth.cats[category_id]["name"], count)
            for category_id, count in annotated(scores.truth, telling).items()
        ),
        threshold=threshold,
    )


def _by_image(scores: Scores) -> dict[int, list[Record]]:
    """Result records of each image, best first."""
    found = defaultdict(list)
    for record in scores.results:
        found[record["image_id"]].append(record)
    for records in found.values():
        records.sort(key=lambda record: -record["score"])
    return found


def _with_runs(scores: Scores, annotation: Record) -> Record:
    """An annotation whose mask, if it has one, is run lengths."""
    if not annotation.get("segmentation"):
        return annotation
    return {**annotation, "segmentation": scores.truth.annToRLE(annotation)}
