"""Results of one image: its annotated and detected instances with their outcomes."""

from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from mrcnn_jax.evaluation.analysis.image_overlaps import ImageOverlaps, Record
from mrcnn_jax.evaluation.analysis.match_detections import CORRECT, Matches, outcomes
from mrcnn_jax.evaluation.analysis.results import ImageResult, Instance


def image_result(image: dict[str, Any], overlaps: ImageOverlaps, matches: Matches, threshold: float) -> ImageResult:
    """Return the result of an image (an entry of `images` in COCO's JSON) for scores of at least `threshold`."""
    count = int(np.sum(overlaps.scores >= threshold))  # detections are sorted by score
    kinds = matches.kinds[:count]
    matched = set(matches.targets[:count][kinds == CORRECT].tolist())
    correct, missed = len(matched), len(overlaps.instances) - len(matched)
    results = outcomes(overlaps, matches)[:count]
    wrong = sum(outcome not in ("correct", "crowd") for outcome in results)
    instances = [
        *(_instance(entry, "found" if row in matched else "missed") for row, entry in enumerate(overlaps.instances)),
        *(_instance(entry, "crowd") for entry in overlaps.ignored),
        *(_instance(record, outcome) for record, outcome in zip(overlaps.detections, results, strict=False)),
    ]
    return ImageResult(
        image_id=image["id"],
        file_name=image["file_name"],
        height=image["height"],
        width=image["width"],
        category_ids=frozenset(instance.category_id for instance in instances),
        quality=2 * correct / (2 * correct + wrong + missed) if correct + wrong + missed else 1.0,
        correct=correct,
        wrong=wrong,
        missed=missed,
        instances=tuple(instances),
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
