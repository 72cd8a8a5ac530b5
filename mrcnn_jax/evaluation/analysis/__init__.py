"""Analysis of result records, and its data classes: metric tables, errors, and images with their instances.

Letters: C categories, in the order of `Analysis.categories`; T thresholds of IoU (keypoints: of OKS); K keypoints.
Scores and average precisions are in 0..1; -1 means that there is no such ground truth, as in pycocotools.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# The kinds of error of TIDE (Bolya et al. 2020, "TIDE: A General Toolbox for Identifying Object Detection Errors").
# The first five are of detections, the last is of annotated instances.
ERRORS = ("classification", "localization", "both", "duplicate", "background", "missed")
SPECIAL_ERRORS = ("false_positives", "false_negatives")


@dataclass(frozen=True)
class Category:
    """A category of the annotations."""

    id: int
    name: str
    instances: int  # annotated, without crowds


@dataclass(frozen=True)
class ClassScores:
    """The scores of one class in one table. Keypoints have no APs."""

    category_id: int
    name: str
    instances: int  # annotated, without those that the table ignores
    AP: float
    AP50: float
    AP75: float
    APs: float
    APm: float
    APl: float
    AR: float  # of all areas, with the most detections


@dataclass(frozen=True)
class TideErrors:
    """TIDE's errors, with IoU thresholds of 0.5 (foreground) and 0.1 (background)."""

    ap: float  # AP50, the mean over the classes
    gains: dict[str, float]  # gain of AP50 if errors of one kind were fixed: ERRORS and SPECIAL_ERRORS
    counts: dict[str, int]  # number of errors: ERRORS


@dataclass(frozen=True)
class MetricTable:
    """The scores of one iou_type."""

    iou_type: str  # "bbox", "segm", "keypoints"
    metrics: dict[str, float]  # by the names in config/metric_names.py, without the prefix iou_type
    classes: tuple[ClassScores, ...]  # C
    precision: NDArray[np.float64]  # (T, 101, C), at recalls 0, 0.01, ..., 1; all areas, most detections
    thresholds: NDArray[np.float64]  # (T,)
    errors: TideErrors | None  # None for keypoints
    # Rows: annotated class, the last is background. Columns: predicted class, the last is missed. Detections with a
    # score of at least the threshold match, best first, the instance of any class with the largest IoU, at least 0.5.
    confusion: NDArray[np.int64]  # (C + 1, C + 1)
    histogram: NDArray[np.int64]  # (2, 20): true and false positives at IoU 0.5, by score in 20 bins of 0..1


@dataclass(frozen=True)
class Instance:
    """An annotated or predicted instance of one image."""

    category_id: int
    predicted: bool
    score: float  # 1 if annotated
    box: NDArray[np.float64]  # (4,), x0 y0 x1 y1 in pixels
    segmentation: dict[str, Any] | None  # COCO's compressed run lengths
    keypoints: NDArray[np.float64] | None  # (K, 3): x, y, and visibility (predicted: score)
    # Predicted: "correct", one of the first five ERRORS, or "crowd" if it is inside one and ignored.
    # Annotated: "found", "missed", "crowd".
    outcome: str


@dataclass(frozen=True)
class ImageResult:
    """The annotated instances of one image, and the predicted ones with a score of at least the threshold."""

    image_id: int
    file_name: str
    height: int
    width: int
    category_ids: frozenset[int]  # of its instances
    quality: float  # F1 of the predictions at IoU 0.5; 1 without instances and predictions
    correct: int
    wrong: int
    missed: int
    instances: tuple[Instance, ...]  # annotated, then predicted, best score first


@dataclass(frozen=True)
class Analysis:
    """The content of a report."""

    tables: tuple[MetricTable, ...]
    images: tuple[ImageResult, ...]  # in the order of the annotation file
    categories: tuple[Category, ...]  # C
    threshold: float  # least score in images, confusion matrix and quality
    notes: tuple[str, ...] = ()  # see `coco_metrics.Scores`
