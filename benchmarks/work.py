"""What both sides of a comparison work on: the same weights, pictures, objects, boxes and maps. NumPy only.

The weights are those of `tests/golden/recipe.py`: they find a hundred objects in any picture, so all heads have their
full work.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden"
CLASSES = 90
CHANNELS = 256  # of the pyramid's maps
STRIDES = (4, 8, 16, 32, 64)
OBJECTS = 20  # in a picture
COPIES = 10  # of each object among the proposals
PROPOSALS = 1000  # that the box head looks at in inference
DETECTIONS = 100

Array = NDArray[np.float32]


class Case(NamedTuple):
    """A piece of work: the same for both sides."""

    task: str  # name of a function in `side_ours` and in `side_peer`
    images: int = 1
    height: int = 800
    width: int = 1088
    size: int = 0  # bins of ROIAlign in each direction, or number of boxes of NMS
    gradient: bool = False
    low_precision: bool = False  # bfloat16 convolutions and products

    @property
    def shape(self) -> tuple[int, int]:
        """Of the pictures."""
        return self.height, self.width

    def __str__(self) -> str:
        size = {"roi_align": f" {self.size}x{self.size}", "nms": f", {self.size} boxes"}.get(self.task, "")
        images = f", {self.images} image{'s'[: self.images - 1]}" if self.images > 1 or self.task in WHOLE else ""
        gradient = ", gradient" if self.gradient else ""
        where = f" {self.height}x{self.width}" if self.task not in WITHOUT_PICTURE else ""
        return f"{self.task.replace('_', ' ')}{size}{gradient}{images}{where}"


WHOLE = ("inference", "training")
WITHOUT_PICTURE = ("matrix_product", "copying", "nms")


def weights() -> dict[str, NDArray[np.generic]]:
    """torchvision's state dict of Mask R-CNN R50-FPN with 90 classes, generated."""
    spec = importlib.util.spec_from_file_location("recipe", GOLDEN / "recipe.py")
    assert spec is not None
    assert spec.loader is not None
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    return recipe.state(json.loads((GOLDEN / "tv_keys_maskrcnn.json").read_text()))


def pictures(case: Case) -> NDArray[np.uint8]:
    """(B, H, W, 3)."""
    return np.random.default_rng(0).integers(0, 256, (case.images, *case.shape, 3), dtype=np.uint8)


def objects(case: Case) -> Array:
    """(B, 20, 4): boxes of sides from a tenth to a half of the picture's."""
    rng = np.random.default_rng(2)
    extent = np.float32([case.width, case.height])
    sides = rng.uniform(0.1, 0.5, (case.images, OBJECTS, 2)) * extent
    corner = rng.uniform(0, 1, (case.images, OBJECTS, 2)) * (extent - sides)
    return np.concatenate([corner, corner + sides], axis=-1).astype(np.float32)


def copies(case: Case) -> Array:
    """(B, 200, 4): every object ten times, each corner moved by up to a twelfth of a side, so that all are positive.

    Random weights propose next to nothing that overlaps an object; trained ones propose it many times.
    """
    boxes = np.repeat(objects(case), COPIES, axis=1)
    sides = boxes[..., 2:] - boxes[..., :2]
    moves = np.random.default_rng(3).uniform(-1 / 12, 1 / 12, boxes.shape) * np.concatenate([sides, sides], axis=-1)
    return (boxes + moves).astype(np.float32)


def rois(case: Case, count: int) -> Array:
    """(B, count, 4): boxes whose sides are spread evenly in the logarithm, from a fiftieth of the height on."""
    rng = np.random.default_rng(4)
    side = np.exp(rng.uniform(np.log(0.02 * case.height), np.log(0.9 * case.height), (case.images, count)))
    ratio = np.exp(rng.uniform(np.log(0.4), np.log(2.5), side.shape) / 2)
    w, h = np.minimum(side * ratio, case.width - 1), np.minimum(side / ratio, case.height - 1)
    x, y = rng.uniform(size=side.shape) * (case.width - w), rng.uniform(size=side.shape) * (case.height - h)
    return np.stack([x, y, x + w, y + h], axis=-1).astype(np.float32)


def crowd(case: Case, groups: int) -> tuple[Array, Array, NDArray[np.int64]]:
    """`case.size` boxes (K, 4) that crowd around a hundred places, scores (K,), and groups (K,)."""
    rng = np.random.default_rng(5)
    centers = rois(case, 100)[0][rng.integers(0, 100, case.size)]
    boxes = centers + rng.normal(0, 0.1, centers.shape) * (centers[:, 2:] - centers[:, :2])[:, [0, 1, 0, 1]]
    return boxes.astype(np.float32), rng.random(case.size, dtype=np.float32), rng.integers(0, groups, case.size)


def maps(case: Case) -> list[Array]:
    """The pyramid's maps P2..P6, (B, h, w, 256) each."""
    rng = np.random.default_rng(6)
    sides = [(-(-case.height // stride), -(-case.width // stride)) for stride in STRIDES]
    return [rng.standard_normal((case.images, *side, CHANNELS), dtype=np.float32) for side in sides]


def objectness(case: Case) -> list[Array]:
    """Logits (A,) of each level, three anchors a cell."""
    rng = np.random.default_rng(7)
    return [rng.standard_normal(3 * level.shape[1] * level.shape[2], dtype=np.float32) for level in maps(case)]


def anchors(case: Case) -> Array:
    """(A, 4), about as many and as large as those of the network."""
    rng = np.random.default_rng(8)
    levels = []
    for stride in STRIDES:
        y, x = np.mgrid[0 : case.height : stride, 0 : case.width : stride]
        center = np.repeat(np.stack([x, y], axis=-1).reshape(-1, 2), 3, axis=0)
        half = 4 * stride * rng.uniform(0.7, 1.4, (len(center), 2))
        levels.append(np.concatenate([center - half, center + half], axis=-1))
    return np.concatenate(levels).astype(np.float32)


def masks(case: Case) -> tuple[Array, Array]:
    """Probabilities (100, 28, 28) and their boxes (100, 4)."""
    return np.random.default_rng(9).random((DETECTIONS, 28, 28), dtype=np.float32), rois(case, DETECTIONS)[0]
