"""An image with its annotations as SVG: photograph, masks, boxes, skeletons and names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from mrcnn_jax.data.annotations import ImageEntry
from mrcnn_jax.data.categories import Categories
from mrcnn_jax.data.mask_crops import Masks, Raster
from mrcnn_jax.data.sample import Annotation, Sample, make_sample
from mrcnn_jax.tools.check.select_images import Window
from mrcnn_jax.tools.pages import drawing
from mrcnn_jax.tools.pages.drawing import Shape
from mrcnn_jax.tools.pages.rendering import macros

NUM_COLORS = 12  # of instances, as in base.css
_STEPS = (10, 2)  # per unit, of outlines; the second if not all annotations fit with the first


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


def draw(
    image: np.ndarray, entry: ImageEntry, categories: Categories, window: Window, byte_budget: int
) -> tuple[Markup, int]:
    """Return the SVG of an image, and the number of annotations that are not drawn, the smallest ones.

    image: (h, w, 3) uint8 RGB. byte_budget: approximate size. Outlines become coarser before any annotation is left
    out. The photograph is compressed into the rest. The annotations are those that training reads, and crowds, at the
    coordinates of the JSON.
    """
    view = _View(window, drawing.LONGER_SIDE / max(window[2] - window[0], window[3] - window[1]))
    class_of = categories.class_of()
    annotations = [a for a in entry.annotations if a["category_id"] in class_of]
    sample = make_sample(
        image,
        [{**a, "iscrowd": 0, "segmentation": a.get("segmentation") or []} for a in annotations],
        class_of,
        (entry.height, entry.width),
        num_keypoints=len(categories.keypoint_schema.names),
    )
    shapes = _shapes(view, sample, annotations, categories)
    drawn = drawing.draw(shapes, view.size[0], byte_budget * 3 // 4, _STEPS)
    photograph = _photograph(image, window, byte_budget - drawn.num_bytes)
    label = f"{entry.file_name} with {len(shapes)} annotations"
    markup = macros("check/figure.html.jinja").picture(label, view.size, photograph, drawn)
    return markup, len(shapes) - len(drawn.shapes)


def _shapes(view: _View, sample: Sample, annotations: Sequence[Annotation], categories: Categories) -> list[Shape]:
    """Return the annotations inside the window."""
    boxes = view.to_svg(sample.boxes.reshape(-1, 2, 2)).reshape(-1, 4)
    visible = np.all((boxes[:, :2] < view.size) & (boxes[:, 2:] > 0), axis=1)
    assert sample.masks is not None
    outlines = _outlines(sample.masks, view)
    edges = categories.keypoint_schema.skeleton
    points, visibility = view.to_svg(sample.keypoints[..., :2]), sample.keypoints[..., 2]
    shapes = []
    for i in np.flatnonzero(visible).tolist():
        crowd, name = bool(annotations[i].get("iscrowd")), categories.names[sample.classes[i] - 1]
        shape = Shape(
            box=tuple(boxes[i].tolist()),
            style="crowd" if crowd else f"c{i % NUM_COLORS}",
            name=name,
            title=f"{name}, annotation {annotations[i]['id']}{', crowd' if crowd else ''}",
            outline=outlines.get(i, ()),
            skeleton=drawing.skeleton(points[i], visibility[i] > 0, visibility[i] == 1, edges),
        )
        shapes.append(shape)
    return shapes


def _outlines(masks: Masks, view: _View) -> dict[int, list[np.ndarray]]:
    """Return the outlines of each instance that has a mask, by row, in units of the SVG."""
    polygons: dict[int, list[np.ndarray]] = {}
    for row, mask in enumerate(masks):
        if isinstance(mask, Raster):
            traced = drawing.trace(mask.bitmap, view.scale)
            polygons[row] = [view.to_svg(mask.window[:2] + polygon) for polygon in traced]
        else:
            polygons[row] = [view.to_svg(polygon) for polygon in mask]
    return {row: outlines for row, outlines in polygons.items() if outlines}


def _photograph(image: np.ndarray, window: Window, byte_budget: int) -> str:
    """Return the window of the image as a data URL, black outside of the image."""
    x0, y0, x1, y1 = (round(edge) for edge in window)
    inside = image[y0:y1, x0:x1]
    height, width = inside.shape[:2]  # the file may be smaller than the JSON says
    part = np.pad(inside, ((0, y1 - y0 - height), (0, x1 - x0 - width), (0, 0)))
    return drawing.jpeg_url(part, byte_budget)
