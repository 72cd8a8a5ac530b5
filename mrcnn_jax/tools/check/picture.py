"""An image with its annotations as SVG: photograph, masks, boxes, skeletons and names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from mrcnn_jax.data.annotations import ImageEntry
from mrcnn_jax.data.categories import Categories
from mrcnn_jax.data.mask_crops import Masks, Raster
from mrcnn_jax.data.sample import Annotation, Sample, make_sample
from mrcnn_jax.tools.check.select_images import Window
from mrcnn_jax.tools.pages.drawing import (
    LONGER_SIDE,
    Box,
    downsample,
    jpeg_url,
    place_names,
    rectangle,
    skeleton,
    within_budget,
)
from mrcnn_jax.tools.pages.html import Html, join, tag
from mrcnn_jax.tools.pages.outline import svg_path, trace

NUM_COLORS = 12  # of instances, as in base.css
_STEPS = (10, 2)  # per unit, of outlines; the second if the first exceeds the byte budget


class _View(NamedTuple):
    """The part of an image that is shown, and its scale."""

    window: Window
    scale: float  # units of the SVG per pixel

    def to_svg(self, points: np.ndarray) -> np.ndarray:
        """Convert points (..., 2) from pixels of the image to units of the SVG."""
        return (points - self.window[:2]) * self.scale

    @property
    def size(self) -> tuple[float, float]:
        x0, y0, x1, y1 = self.window
        return (x1 - x0) * self.scale, (y1 - y0) * self.scale


class _Item(NamedTuple):
    """An annotation to draw."""

    row: int  # in the sample
    box: Box
    style: str
    name: str
    title: str  # tooltip of the box


def draw(
    image: np.ndarray, entry: ImageEntry, categories: Categories, window: Window, byte_budget: int
) -> tuple[Html, int]:
    """Return the SVG of an image, and the number of annotations that are not drawn completely, the smallest ones.

    image: (h, w, 3) uint8 RGB. byte_budget: approximate size. Masks, boxes and skeletons have a share of it each, and
    outlines become coarser before any is left out. The photograph is compressed into the rest. The annotations are
    those that training reads, and crowds, at the coordinates of the JSON.
    """
    view = _View(window, LONGER_SIDE / max(window[2] - window[0], window[3] - window[1]))
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
    masks, steps = _masks(sample, view, items, byte_budget * 3 // 8)
    boxes = within_budget((rectangle(item.box, item.title, item.style) for item in items), byte_budget // 4)
    skeletons = within_budget(_skeletons(items, view, sample, categories.keypoint_schema.skeleton), byte_budget // 8)
    names = place_names([(item.box, item.name, item.style) for item in items[: len(boxes)]], view.size[0])
    layers = [
        tag("g", tag("g", masks, transform=f"scale({1 / steps:g})"), class_="masks"),
        tag("g", boxes, class_="boxes"),
        tag("g", skeletons, class_="skeletons"),
        tag("g", filter(None, names), class_="names"),
    ]
    num_incomplete = len(items) - min(len(masks), len(boxes), len(skeletons))
    width, height = (f"{side:g}" for side in view.size)
    photograph = _photograph(image, window, byte_budget - sum(map(len, layers)))
    background = tag("image", href=photograph, width=width, height=height, preserveAspectRatio="none")
    label = f"{entry.file_name} with {len(items)} annotations"
    view_box = f"0 0 {width} {height}"
    return tag("svg", background, *layers, viewBox=view_box, role="img", aria_label=label), num_incomplete


def _items(view: _View, sample: Sample, annotations: Sequence[Annotation], names: Sequence[str]) -> list[_Item]:
    """Return the annotations inside the window in descending size, so that small ones are drawn above large ones."""
    boxes = view.to_svg(sample.boxes.reshape(-1, 2, 2)).reshape(-1, 4)
    visible = np.all((boxes[:, :2] < view.size) & (boxes[:, 2:] > 0), axis=1)
    items = []
    for i in np.argsort(-(boxes[:, 2:] - boxes[:, :2]).prod(axis=1), kind="stable").tolist():
        if visible[i]:
            crowd, name = bool(annotations[i].get("iscrowd")), names[sample.classes[i] - 1]
            title = f"{name}, annotation {annotations[i]['id']}{', crowd' if crowd else ''}"
            items.append(_Item(i, tuple(boxes[i].tolist()), "crowd" if crowd else f"c{i % NUM_COLORS}", name, title))
    return items


def _masks(sample: Sample, view: _View, items: Sequence[_Item], byte_budget: int) -> tuple[list[Html], int]:
    """Return the path of each item within the budget, empty for one without mask, and the steps per unit of paths."""
    assert sample.masks is not None
    polygons = _polygons(sample.masks, view)
    for steps in _STEPS:
        paths = (
            tag("path", d=svg_path(polygons[item.row], steps), class_=item.style) if item.row in polygons else join()
            for item in items
        )
        drawn = within_budget(paths, byte_budget)
        if len(drawn) == len(items):
            break
    return drawn, steps


def _polygons(masks: Masks, view: _View) -> dict[int, list[np.ndarray]]:
    """Return the outlines of each instance that has a mask, by row, in units of the SVG."""
    polygons: dict[int, list[np.ndarray]] = {}
    for row, mask in enumerate(masks):
        if isinstance(mask, Raster):
            small, pixel_size = downsample(mask.bitmap, view.scale)
            polygons[row] = [view.to_svg(mask.window[:2] + p * pixel_size) for p in trace(small)]
        else:
            polygons[row] = [view.to_svg(polygon) for polygon in mask]
    return {row: outlines for row, outlines in polygons.items() if outlines}


def _skeletons(items: Sequence[_Item], view: _View, sample: Sample, edges: Sequence[tuple[int, int]]) -> Iterator[Html]:
    for item in items:
        keypoints = sample.keypoints[item.row]
        points, visibility = view.to_svg(keypoints[:, :2]), keypoints[:, 2]
        yield tag("g", skeleton(points, visibility > 0, visibility == 1, edges), class_=item.style)


def _photograph(image: np.ndarray, window: Window, byte_budget: int) -> str:
    """Return the window of the image as a data URL, black outside of the image."""
    height, width = image.shape[:2]
    x0, y0, x1, y1 = (round(edge) for edge in window)
    part = np.zeros((y1 - y0, x1 - x0, 3), np.uint8)  # the file may be smaller than the JSON says
    inside = image[y0 : min(y1, height), x0 : min(x1, width)]
    part[: inside.shape[0], : inside.shape[1]] = inside
    return jpeg_url(part, byte_budget)
