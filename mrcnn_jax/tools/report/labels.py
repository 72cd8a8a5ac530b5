"""Names and descriptions of tables, metrics, outcomes and groups of images on the page."""

from __future__ import annotations

from typing import NamedTuple

from mrcnn_jax.evaluation.analysis import Analysis, MetricTable

HEADINGS = {"bbox": "Boxes", "segm": "Masks", "keypoints": "Keypoints"}

# In the order of the page. Some are defined for keypoints or LVIS only.
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
    "AR1": "recall with 1 detection per image",
    "AR10": "recall with 10 detections per image",
    "AR100": "recall with 100 detections per image",
    "AR300": "recall with 300 detections per image",
    "AR": "recall, mean over overlaps",
    "AR50": "recall at an overlap of 0.50",
    "AR75": "recall at an overlap of 0.75",
    "ARs": "recall of small objects",
    "ARm": "recall of medium objects",
    "ARl": "recall of large objects",
}


class OutcomeLabel(NamedTuple):
    """Name and description of an outcome of a prediction or a ground-truth instance, or of several outcomes."""

    name: str
    description: str


OUTCOMES = {
    "correct": OutcomeLabel("correct", "the class is right and the overlap at least 0.5"),
    "classification": OutcomeLabel("wrong class", "it overlaps an instance of another class by 0.5 or more"),
    "localization": OutcomeLabel("poor localization", "the class is right, the overlap between 0.1 and 0.5"),
    "both": OutcomeLabel("wrong class, poor localization", "another class, and an overlap between 0.1 and 0.5"),
    "duplicate": OutcomeLabel("duplicate", "another prediction of the same instance has a higher score"),
    "background": OutcomeLabel("background", "it overlaps no instance by 0.1 or more"),
    "missed": OutcomeLabel("missed", "an annotated instance without a matching prediction"),
    "found": OutcomeLabel("detected", "an annotated instance with a correct prediction"),
    "crowd": OutcomeLabel("crowd", "a region of many instances; predictions in it are ignored"),
    "false_positives": OutcomeLabel("all false positives", "without any prediction that is not correct"),
    "false_negatives": OutcomeLabel("all false negatives", "with a correct prediction of every instance"),
}
PREDICTED = ("correct", "classification", "localization", "both", "duplicate", "background")
ANNOTATED = ("found", "missed", "crowd")
GROUPS = {"worst": "Worst", "best": "Best", "random": "At random", "classes": "More classes"}  # of images


def overlap_measure(iou_type: str) -> str:
    return "OKS" if iou_type == "keypoints" else "IoU"


def primary_table(analysis: Analysis) -> MetricTable:
    """Return the table whose outcomes the images show: of masks if there is one, else of boxes, else of keypoints."""
    order = ("segm", "bbox", "keypoints")
    return min(analysis.tables, key=lambda table: order.index(table.iou_type))
