"""An image with what is annotated in it, as an SVG: the photograph below, outlines, boxes and names above."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from mrcnn_jax.data.annotations import ImageEntry
from mrcnn_jax.data.categories import Categories
from mrcnn_jax.data.sample import Annotation, Masks, Sample, make_sample
from mrcnn_jax.tools.check.select_images import Window
from mrcnn_jax.tools.pages.drawing import SIDE, Box, fitting, jpeg, names, rectangle, skeleton, thinned
from mrcnn_jax.tools.pages.html import Html, join, tag
from mrcnn_jax.tools.pages.outline import path, trace

COLORS = 12  # of instances; pages/base.css names them
_STEPS = (10, 2)  # parts of a unit that outlines are written in; the second where the first takes too much room


class _View(NamedTuple):
    """The part of an image that is shown, and its size on the page."""

    window: Window
    scale: float  # units a pixel

    def place(self, points: np.ndarray) -> np.ndarray:
        """Pixels of the image (..., 2) -> units of the page."""
        return (points - self.window[:2]) * self.scale

    @property
    def size(self) -> tuple[float, float]:
        x0, y0, x1, y1 = self.window
        return (x1 - x0) * self.scale, (y1 - y0) * self.scale


class _Item(NamedTuple):
    """One annotation on the page."""

    row: int  # of the sample
    box: Box
    style: str
    name: str
    title: str  # shown by a browser over it


def draw(image: np.ndarray, entry: ImageEntry, categories: Categories, window: Window, room: int) -> tuple[Html, int]:
    """The picture, and how many annotations are not drawn in full for want of room, the smallest ones.

    image: (h, w, 3) uint8 RGB. `room`: bytes that the picture may have, about. Masks, boxes and skeletons have a share
    of it each; outlines get coarser before any is left out. The photograph gets coarser to fit into the rest. What is
    drawn is what training reads (and crowds), at the coordinates of the JSON.
    """
    view = _View(window, SIDE / max(window[2] - window[0], window[3] - window[1]))
    class_of = categories.class_of()
    annotations = [a for a in entry.annotations if a["category_id"] in class_of]
    sample = make_sample(
        image,
        [{**a, "iscrowd": 0, "segmentation": a.get("segmentation") or []} for a in annotations],
        class_of,
        (entry.height, entry.width),
        num_keypoints=len(categories.keypoint_schema.names),
    )
    items = _items(view, sample, annotations, categories.names)
    masks, steps = _masks(sample, view, items, room * 3 // 8)
    boxes = fitting((rectangle(item.box, item.title, item.style) for item in items), room // 4)
    skeletons = fitting(_skeletons(items, view, sample, categories.keypoint_schema.skeleton), room // 8)
    named = names([(item.box, item.name, item.style) for item in items[: len(boxes)]], view.size[0])
    layers = [
        tag("g", tag("g", masks, transform=f"scale({1 / steps:g})"), class_="masks"),
        tag("g", boxes, class_="boxes"),
        tag("g", skeletons, class_="skeletons"),
        tag("g", filter(None, named), class_="names"),
    ]
    left_out = len(items) - min(len(masks), len(boxes), len(skeletons))
    width, height = (f"{side:g}" for side in view.size)
    photograph = _photograph(image, window, room - sum(map(len, layers)))
    ground = tag("image", href=photograph, width=width, height=height, preserveAspectRatio="none")
    label = f"{entry.file_name} with {len(items)} annotations"
    return tag("svg", ground, *layers, viewBox=f"0 0 {width} {height}", role="img", aria_label=label), left_out


def _items(view: _View, sample: Sample, annotations: Sequence[Annotation], names: Sequence[str]) -> list[_Item]:
    """What lies in the part that is shown, small ones last: they are drawn above the others."""
    boxes = view.place(sample.boxes.reshape(-1, 2, 2)).reshape(-1, 4)
    seen = np.all((boxes[:, :2] < view.size) & (boxes[:, 2:] > 0), axis=1)
    items = []
    for i in np.argsort(-(boxes[:, 2:] - boxes[:, :2]).prod(axis=1), kind="stable").tolist():
        if seen[i]:
            crowd, name = bool(annotations[i].get("iscrowd")), names[sample.classes[i] - 1]
            title = f"{name}, annotation {annotations[i]['id']}{', crowd' if crowd else ''}"
            items.append(_Item(i, tuple(boxes[i].tolist()), "crowd" if crowd else f"c{i % COLORS}", name, title))
    return items


def _masks(sample: Sample, view: _View, items: Sequence[_Item], room: int) -> tuple[list[Html], int]:
    """A path for each item, empty where it has no mask, as far as there is room; and the steps they are written in."""
    assert sample.masks is not None  # they were asked for
    shapes = _polygons(sample.masks, view)
    for steps in _STEPS:
        paths = (
            tag("path", d=path(shapes[item.row], steps), class_=item.style) if item.row in shapes else join()
            for item in items
        )
        drawn = fitting(paths, room)
        if len(drawn) == len(items):
            break
    return drawn, steps


def _polygons(masks: Masks, view: _View) -> dict[int, list[np.ndarray]]:
    """Outlines of each instance that has a mask, in units of the page."""
    shapes: dict[int, list[np.ndarray]] = {}
    corners = np.split(view.place(masks.points), np.cumsum(masks.lengths)[:-1]) if len(masks.lengths) else []
    for owner, polygon in zip(masks.instances.tolist(), corners, strict=True):
        shapes.setdefault(owner, []).append(polygon)
    for raster in masks.rasters:
        shrunk, factor = thinned(raster.bitmap, view.scale)
        shapes[raster.instance] = [view.place(raster.window[:2] + p * factor) for p in trace(shrunk)]
    return {owner: polygons for owner, polygons in shapes.items() if polygons}


def _skeletons(items: Sequence[_Item], view: _View, sample: Sample, bones: Sequence[tuple[int, int]]) -> Iterator[Html]:
    for item in items:
        keypoints = sample.keypoints[item.row]
        points, visibility = view.place(keypoints[:, :2]), keypoints[:, 2]
        yield tag("g", skeleton(points, visibility > 0, visibility == 1, bones), class_=item.style)


def _photograph(image: np.ndarray, window: Window, room: int) -> str:
    """The part of the image as a data URL."""
    height, width = image.shape[:2]
    x0, y0, x1, y1 = (round(edge) for edge in window)
    part = np.zeros((y1 - y0, x1 - x0, 3), np.uint8)  # a file of another size than the JSON says is shown with it
    found = image[y0 : min(y1, height), x0 : min(x1, width)]
    part[: found.shape[0], : found.shape[1]] = found
    return jpeg(part, room)
