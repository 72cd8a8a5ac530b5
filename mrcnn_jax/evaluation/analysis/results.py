"""What an analysis says of result records: tables, errors, and every image with its instances. NumPy and plain Python.

Letters: C categories, in the order of `Analysis.categories`; T thresholds of IoU (keypoints: of OKS); K keypoints.
Scores and average precisions are in 0..1; -1 stands for "no such ground truth", as in pycocotools.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# The kinds of error of TIDE (Bolya et al. 2020, "TIDE: A General Toolbox for Identifying Object Detection Errors").
# Of a detection the first five, of a true instance the last.
ERRORS = ("classification", "localization", "both", "duplicate", "background", "missed")
SPECIAL_ERRORS = ("false_positives", "false_negatives")


@dataclass(frozen=True)
class Category:
    """One class of the annotations."""

    id: int
    name: str
    instances: int  # annotated, without crowds


@dataclass(frozen=True)
class ClassScores:
    """The scores of one class in one table. Keypoints have no APs."""

    category_id: int
    name: str
    instances: int  # annotated, without crowds and what else the table ignores
    AP: float
    AP50: float
    AP75: float
    APs: float
    APm: float
    APl: float
    AR: float  # of all areas, with the most detections


@dataclass(frozen=True)
class TideErrors:
    """TIDE's errors at IoU 0.5, with 0.1 as the least IoU of something that is not background."""

    ap: float  # AP50 as it is, the mean over the classes
    gains: dict[str, float]  # what AP50 would gain if errors of one kind were mended: ERRORS and SPECIAL_ERRORS
    counts: dict[str, int]  # how many there are: ERRORS


@dataclass(frozen=True)
class MetricTable:
    """The scores by one measure of overlap."""

    iou_type: str  # "bbox", "segm", "keypoints"
    metrics: dict[str, float]  # by the names in config/metrics.py, without the iou_type before them
    left_out: str  # a line about the instances that do not count in it; empty where all count
    classes: tuple[ClassScores, ...]  # C
    precision: NDArray[np.float64]  # (T, 101, C), at recalls 0, 0.01, ..., 1; all areas, most detections
    thresholds: NDArray[np.float64]  # (T,)
    errors: TideErrors | None  # None for keypoints
    # Rows: truth, the last is background. Columns: predicted, the last is missed. Detections from the threshold on,
    # best score first, each with the true instance that it overlaps most, of whatever class, by at least 0.5.
    confusion: NDArray[np.int64]  # (C + 1, C + 1)
    histogram: NDArray[np.int64]  # (2, 20): detections by score in twentieths of 0..1; true and false at 0.5


@dataclass(frozen=True)
class Instance:
    """Something annotated or predicted in one image."""

    category_id: int
    predicted: bool
    score: float  # of what is annotated: 1
    box: NDArray[np.float64]  # (4,), x0 y0 x1 y1 in pixels
    segmentation: dict[str, Any] | None  # COCO's compressed run lengths
    keypoints: NDArray[np.float64] | None  # (K, 3): x, y, and visibility (predicted: score)
    # Of a prediction: "correct" or one of the first five ERRORS; "crowd" where it lies in one, and counts as nothing.
    # Of the truth: "found", "missed", "crowd".
    outcome: str


@dataclass(frozen=True)
class ImageResult:
    """One image: what is true and what was predicted with at least the threshold as score."""

    image_id: int
    file_name: str
    height: int
    width: int
    category_ids: frozenset[int]  # of its instances
    quality: float  # F1 of the predictions at IoU 0.5: 1 where there are neither instances nor predictions
    correct: int
    wrong: int
    missed: int
    instances: tuple[Instance, ...]  # the truth, then the predictions, best first


@dataclass(frozen=True)
class Analysis:
    """Everything that a report shows."""

    tables: tuple[MetricTable, ...]
    images: tuple[ImageResult, ...]  # in the order of the annotation file
    categories: tuple[Category, ...]  # C
    threshold: float  # least score of what images, confusion and qualities count
    notes: tuple[str, ...] = ()  # see `coco.Scores`
