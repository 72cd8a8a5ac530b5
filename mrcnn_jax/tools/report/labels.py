"""What tables, metrics and outcomes are called on the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from mrcnn_jax.evaluation.analysis import Analysis, MetricTable

HEADINGS = {"bbox": "Boxes", "segm": "Masks", "keypoints": "Keypoints"}
NONE = "\N{EN DASH}"  # no such ground truth

# In the order of the page. Some belong to keypoints or to LVIS alone.
METRICS = {
    "AP": "mean over overlaps of 0.50 to 0.95",
    "AP50": "at an overlap of 0.50",
    "AP75": "at an overlap of 0.75",
    "APs": "of small objects, below 32² pixels",
    "APm": "of medium objects, below 96² pixels",
    "APl": "of large objects",
    "APr": "of rare classes, in at most 10 images",
    "APc": "of common classes, in at most 100 images",
    "APf": "of frequent classes",
    "AR1": "recall of one detection an image",
    "AR10": "recall of 10 detections an image",
    "AR100": "recall of 100 detections an image",
    "AR300": "recall of 300 detections an image",
    "AR": "recall, mean over overlaps",
    "AR50": "recall at an overlap of 0.50",
    "AR75": "recall at an overlap of 0.75",
    "ARs": "recall of small objects",
    "ARm": "recall of medium objects",
    "ARl": "recall of large objects",
}


class Kind(NamedTuple):
    """What may be said of a prediction or of a true instance."""

    name: str
    meaning: str


OUTCOMES = {
    "correct": Kind("right", "class and place are right"),
    "classification": Kind("wrong class", "it overlaps an instance of another class by 0.5 or more"),
    "localization": Kind("badly placed", "the class is right, the overlap between 0.1 and 0.5"),
    "both": Kind("wrong class, badly placed", "another class, and an overlap between 0.1 and 0.5"),
    "duplicate": Kind("duplicate", "a better prediction has found the same instance"),
    "background": Kind("nothing there", "it overlaps nothing by 0.1 or more"),
    "missed": Kind("missed", "an annotated instance that no prediction comes near"),
    "found": Kind("found", "an annotated instance that was predicted"),
    "crowd": Kind("crowd", "a region of many instances; what lies in it does not count"),
}
SPECIAL = {
    "false_positives": Kind("all that is wrong", "every prediction that is not right, left out"),
    "false_negatives": Kind("all that is not found", "every instance without a right prediction, found"),
}


def score(value: float) -> str:
    """An average precision or recall, as pycocotools writes it."""
    return NONE if value < 0 else f"{value:.3f}"


def overlap(iou_type: str) -> str:
    return "OKS" if iou_type == "keypoints" else "IoU"


def primary_table(analysis: Analysis) -> MetricTable:
    """The table that outcomes in the pictures go by: of masks, or of boxes, or what there is."""
    tables: Mapping[str, MetricTable] = {table.iou_type: table for table in analysis.tables}
    return next(tables[name] for name in ("segm", "bbox", "keypoints") if name in tables)
