"""Annotated images of limited size: photograph, masks, boxes, skeletons and names, in units of an SVG."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from mrcnn_jax.data import image_files
from mrcnn_jax.data.value_range import Range
from mrcnn_jax.tools.pages.rendering import count_within

LONGER_SIDE = 640  # units of the longer side of an image
TEXT_HEIGHT = 17  # of a name, in these units; as in base.css
_JPEG_SETTINGS = ((640, 80), (640, 60), (480, 60), (320, 60), (320, 30), (160, 30))  # longer side, quality
_MAX_NAME = 24  # characters
_INSTANCE_BYTES, _KEYPOINT_BYTES = 450, 70  # of the markup around an outline, a title and a name

Box = tuple[float, float, float, float]  # x0 y0 x1 y1


class Skeleton(NamedTuple):
    """Labeled keypoints and the lines between them."""

    lines: str  # an SVG path
    dots: Sequence[tuple[float, float, bool]]  # x, y, whether it is hidden


NO_SKELETON = Skeleton("", ())


class Shape(NamedTuple):
    """An instance to draw."""

    box: Box
    style: str  # class in the stylesheet
    name: str  # written above the box
    title: str  # displayed by browsers while the pointer is over the box
    outline: Sequence[np.ndarray] = ()  # of the mask: closed polygons (k, 2), filled by the even-odd rule
    skeleton: Skeleton = NO_SKELETON
    data: Mapping[str, object] = {}  # attributes for scripts


class Drawing(NamedTuple):
    """The instances of an image that fit in a byte budget; the k-th element of each list is of the same instance."""

    shapes: Sequence[Shape]  # in descending size
    outlines: Sequence[str]  # SVG paths in units of 1 / `steps`
    names: Sequence[tuple[str, float, float] | None]  # text, x, y; None if it would overlap an earlier one
    steps: int
    num_bytes: int  # about


def draw(
    shapes: Iterable[Shape], width: float, byte_budget: int, steps: Sequence[int], text_height: float = TEXT_HEIGHT
) -> Drawing:
    """Return the drawing of the largest shapes.

    Args:
      width: of the image.
      byte_budget: approximate size of the drawing.
      steps: per unit, to which outlines are rounded; the next value if not all shapes fit with the one before.
      text_height: of names.
    """
    ordered = sorted(shapes, key=lambda shape: -(shape.box[2] - shape.box[0]) * (shape.box[3] - shape.box[1]))
    skeletons = [len(shape.skeleton.lines) + _KEYPOINT_BYTES * len(shape.skeleton.dots) for shape in ordered]
    others = [_INSTANCE_BYTES + len(shape.title) + size for shape, size in zip(ordered, skeletons, strict=True)]
    for precision in steps:
        outlines = [svg_path(shape.outline, precision) for shape in ordered]
        sizes = [len(outline) + other for outline, other in zip(outlines, others, strict=True)]
        count = count_within(sizes, byte_budget)
        if count == len(ordered):
            break
    drawn = ordered[:count]
    return Drawing(drawn, outlines[:count], _place_names(drawn, width, text_height), precision, sum(sizes[:count]))


def skeleton(points: np.ndarray, labeled: np.ndarray, hidden: np.ndarray, edges: Iterable[tuple[int, int]]) -> Skeleton:
    """Return the labeled keypoints.

    points: (K, 2); labeled, hidden: (K,) bool; edges: pairs of keypoint indices.
    """
    ends = [(*points[a], *points[b]) for a, b in edges if labeled[a] and labeled[b]]
    lines = "".join("M{:.1f} {:.1f}L{:.1f} {:.1f}".format(*end) for end in ends)
    dots = zip(*points[labeled].T.tolist(), hidden[labeled].tolist(), strict=True)
    return Skeleton(lines, list(dots))


def _place_names(shapes: Iterable[Shape], width: float, height: float) -> list[tuple[str, float, float] | None]:
    """Return the names above their boxes; None for one that would overlap an earlier one."""
    occupied: list[tuple[float, float, float]] = []  # left, right, baseline
    placed: list[tuple[str, float, float] | None] = []
    for shape in shapes:
        text = shape.name if len(shape.name) <= _MAX_NAME else shape.name[: _MAX_NAME - 1] + "…"
        length = 0.6 * height * len(text)
        x, y = max(0.0, min(shape.box[0], width - length)), max(height, shape.box[1] - 3)
        free = all(x > right or x + length < left or abs(y - line) > height for left, right, line in occupied)
        placed.append((text, x, y) if free else None)
        if free:
            occupied.append((x, x + length, y))
    return placed


def svg_path(polygons: Iterable[np.ndarray], steps: int) -> str:
    """Return the `d` of a path of closed polygons (k, 2), rounded to 1 / `steps` of a unit."""
    parts = []
    for polygon in polygons:
        corners = np.rint(np.asarray(polygon) * steps).astype(np.int64)
        moves = np.diff(corners, axis=0)
        moves = moves[moves.any(axis=1)]  # corners that coincide after rounding are one
        numbers = " ".join(map(str, moves.ravel().tolist())).replace(" -", "-")  # as SVG allows
        # A polygon smaller than a step is a square of one step, so that it is visible.
        parts.append(f"M{corners[0, 0]} {corners[0, 1]}" + (f"l{numbers}z" if numbers else "h1v1h-1z"))
    return "".join(parts)


def trace(bitmap: np.ndarray, scale: float) -> list[np.ndarray]:
    """Return the outlines of a bitmap (h, w) along its pixel edges, as closed polygons (k, 2) of x y, in its pixels.

    scale: units of the SVG per pixel. The bitmap is sampled at one pixel per unit at most.
    """
    size = np.maximum(1, np.ceil(np.array(bitmap.shape) * min(scale, 1.0))).astype(int)
    steps = bitmap.shape / size
    rows, columns = (np.floor((np.arange(n) + 0.5) * step).astype(int) for n, step in zip(size, steps, strict=True))
    sampled = np.asarray(bitmap[np.ix_(rows, columns)], np.uint8)
    x, y, width, height = cv2.boundingRect(sampled)
    if not width:
        return []
    # OpenCV's contours are pixel centers: of pixels split in four, they tell on which side of a pixel an edge is.
    split = sampled[y : y + height, x : x + width].repeat(2, axis=0).repeat(2, axis=1)
    contours, _ = cv2.findContours(split, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE, offset=(2 * x, 2 * y))
    corners = [(contour[:, 0] + 1) // 2 for contour in contours]
    return [polygon[(polygon != np.roll(polygon, 1, axis=0)).any(axis=1)] * steps[::-1] for polygon in corners]


def read_image(file: Path, value_range: Range | None) -> np.ndarray | None:
    """Return an image as (h, w, 3) uint8 RGB; None if the file cannot be read."""
    try:
        return image_files.decode(file.read_bytes(), value_range=value_range)
    except OSError:
        return None


def jpeg_url(pixels: np.ndarray, byte_budget: int) -> str:
    """Return (h, w, 3) uint8 RGB as a data URL, of the best quality within `byte_budget`, else of the lowest."""
    for side, quality in _JPEG_SETTINGS:
        factor = min(1.0, side / max(pixels.shape[:2]))
        size = [max(1, round(n * factor)) for n in pixels.shape[1::-1]]
        resized = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA) if factor < 1 else pixels
        _, encoded = cv2.imencode(".jpg", cv2.cvtColor(resized, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
        url = "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode()
        if len(url) <= byte_budget:
            break
    return url
