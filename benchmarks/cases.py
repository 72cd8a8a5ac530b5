"""Inputs of the comparisons, the same for both implementations: weights, images, boxes and feature maps. NumPy only.

With the weights of `tests/golden/recipe.py`, the network detects a hundred objects in any image, so that all heads have
their full load.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden"
NUM_CLASSES = 90
CHANNELS = 256  # of the FPN
STRIDES = (4, 8, 16, 32, 64)
NUM_OBJECTS = 20  # per image
NUM_COPIES = 10  # of each object among the proposals
NUM_PROPOSALS = 1000  # per image in inference
NUM_DETECTIONS = 100

Array = NDArray[np.float32]


class Case(NamedTuple):
    """Parameters of a task."""

    task: str  # name of a function in `bench_ours` and `bench_torchvision`
    images: int = 1
    height: int = 800
    width: int = 1088
    size: int = 0  # bins of ROIAlign in each direction, or number of boxes of NMS
    gradient: bool = False
    low_precision: bool = False  # bfloat16 convolutions and matrix products

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the images."""
        return self.height, self.width

    def __str__(self) -> str:
        size = {"roi_align": f" {self.size}x{self.size}", "nms": f", {self.size} boxes"}.get(self.task, "")
        images = (
            f", {self.images} image{'s'[: self.images - 1]}" if self.images > 1 or self.task in NETWORK_TASKS else ""
        )
        gradient = ", gradient" if self.gradient else ""
        shape = f" {self.height}x{self.width}" if self.task not in TASKS_WITHOUT_IMAGE else ""
        return f"{self.task.replace('_', ' ')}{size}{gradient}{images}{shape}"


NETWORK_TASKS = ("inference", "training")
TASKS_WITH_BACKBONE = ("backbone", *NETWORK_TASKS)
TASKS_WITHOUT_IMAGE = ("matrix_product", "copying", "nms")


def weights() -> dict[str, NDArray[np.generic]]:
    """Return generated weights of Mask R-CNN R50-FPN with 90 classes, as a torchvision state dict."""
    spec = importlib.util.spec_from_file_location("recipe", GOLDEN / "recipe.py")
    assert spec is not None
    assert spec.loader is not None
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    return recipe.state(json.loads((GOLDEN / "tv_keys_maskrcnn.json").read_text()))


def random_images(case: Case) -> NDArray[np.uint8]:
    """Return noise (B, H, W, 3)."""
    return np.random.default_rng(0).integers(0, 256, (case.images, *case.shape, 3), dtype=np.uint8)


def object_boxes(case: Case) -> Array:
    """Return boxes (B, 20, 4) with sides from a tenth to a half of those of the image."""
    rng = np.random.default_rng(2)
    extent = np.float32([case.width, case.height])
    sides = rng.uniform(0.1, 0.5, (case.images, NUM_OBJECTS, 2)) * extent
    corner = rng.uniform(0, 1, (case.images, NUM_OBJECTS, 2)) * (extent - sides)
    return np.concatenate([corner, corner + sides], axis=-1).astype(np.float32)


def jittered_copies(case: Case) -> Array:
    """Return ten copies of every object (B, 200, 4), with corners moved by up to a twelfth of a side: all are positive.

    Random weights propose almost nothing that overlaps an object; trained ones propose it many times.
    """
    boxes = np.repeat(object_boxes(case), NUM_COPIES, axis=1)
    sides = boxes[..., 2:] - boxes[..., :2]
    offsets = np.random.default_rng(3).uniform(-1 / 12, 1 / 12, boxes.shape) * np.concatenate([sides, sides], axis=-1)
    return (boxes + offsets).astype(np.float32)


def rois(case: Case, count: int) -> Array:
    """Return boxes (B, count, 4) with log-uniform sides of 0.02 to 0.9 image heights."""
    rng = np.random.default_rng(4)
    side = np.exp(rng.uniform(np.log(0.02 * case.height), np.log(0.9 * case.height), (case.images, count)))
    ratio = np.exp(rng.uniform(np.log(0.4), np.log(2.5), side.shape) / 2)
    w, h = np.minimum(side * ratio, case.width - 1), np.minimum(side / ratio, case.height - 1)
    x, y = rng.uniform(size=side.shape) * (case.width - w), rng.uniform(size=side.shape) * (case.height - h)
    return np.stack([x, y, x + w, y + h], axis=-1).astype(np.float32)


def nms_inputs(case: Case, groups: int) -> tuple[Array, Array, NDArray[np.int64]]:
    """Return `case.size` boxes (K, 4) clustered around a hundred centers, scores (K,), and groups (K,)."""
    rng = np.random.default_rng(5)
    centers = rois(case, 100)[0][rng.integers(0, 100, case.size)]
    boxes = centers + rng.normal(0, 0.1, centers.shape) * (centers[:, 2:] - centers[:, :2])[:, [0, 1, 0, 1]]
    return boxes.astype(np.float32), rng.random(case.size, dtype=np.float32), rng.integers(0, groups, case.size)


def feature_maps(case: Case) -> list[Array]:
    """Return the FPN levels P2..P6, (B, h, w, 256) each."""
    rng = np.random.default_rng(6)
    sides = [(-(-case.height // stride), -(-case.width // stride)) for stride in STRIDES]
    return [rng.standard_normal((case.images, *side, CHANNELS), dtype=np.float32) for side in sides]


def objectness_logits(case: Case) -> list[Array]:
    """Return logits (A,) of each level, three anchors per cell."""
    rng = np.random.default_rng(7)
    return [rng.standard_normal(3 * level.shape[1] * level.shape[2], dtype=np.float32) for level in feature_maps(case)]


def anchors(case: Case) -> Array:
    """Return boxes (A, 4) similar in number and size to the anchors of the network."""
    rng = np.random.default_rng(8)
    levels = []
    for stride in STRIDES:
        y, x = np.mgrid[0 : case.height : stride, 0 : case.width : stride]
        center = np.repeat(np.stack([x, y], axis=-1).reshape(-1, 2), 3, axis=0)
        half = 4 * stride * rng.uniform(0.7, 1.4, (len(center), 2))
        levels.append(np.concatenate([center - half, center + half], axis=-1))
    return np.concatenate(levels).astype(np.float32)


def mask_probabilities(case: Case) -> tuple[Array, Array]:
    """Return mask probabilities (100, 28, 28) and their boxes (100, 4)."""
    return np.random.default_rng(9).random((NUM_DETECTIONS, 28, 28), dtype=np.float32), rois(case, NUM_DETECTIONS)[0]
