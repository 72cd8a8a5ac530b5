"""An image drawn twice, side by side: with its predictions and with its annotations."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from mrcnn_jax.data import image_files
from mrcnn_jax.data.value_range import Range
from mrcnn_jax.errors import format_error
from mrcnn_jax.evaluation.analysis import ImageResult, Instance
from mrcnn_jax.tools.pages.drawing import LONGER_SIDE, Box, downsample, jpeg_url, place_names, rectangle, skeleton
from mrcnn_jax.tools.pages.html import Html, join, tag
from mrcnn_jax.tools.pages.outline import svg_path, trace
from mrcnn_jax.tools.report.labels import OUTCOMES

log = logging.getLogger(__name__)

LAYERS = ("masks", "boxes", "skeletons", "names")
_STEPS = 4  # per unit, of outlines
_TEXT_HEIGHT = 22  # of a name in units, as in report.css: these images are half as wide as those of `mrcnn check`
_TOLERANCE = 0.8  # of smoothed outlines, in units
_PIXEL_CENTER = 0.5  # COCO's keypoints are indices of pixels


class Legend(NamedTuple):
    """Names and skeletons of the categories."""

    names: Mapping[int, str]  # by category id
    indices: Mapping[int, int]  # class index in report.js, from 0, by category id
    skeletons: Mapping[int, Sequence[tuple[int, int]]]  # pairs of keypoint indices from 0, by category id


class _Side(NamedTuple):
    """The drawing of the predictions or of the annotations."""

    layers: list[Html]
    num_left_out: int


def figure(
    group: str,
    anchor: str,
    result: ImageResult,
    folder: Path,
    legend: Legend,
    byte_budget: int,
    value_range: Range | None = None,
) -> Html:
    """Return the figure of an image with its caption, of about `byte_budget` bytes.

    If the image cannot be drawn, logs the error and returns the caption only.
    """
    try:
        return _figure(group, anchor, result, folder, legend, byte_budget, value_range)
    except Exception as error:
        log.warning("image %s (%s) cannot be drawn: %s", result.image_id, result.file_name, format_error(error))
        note = tag("p", "it cannot be drawn", class_="finding")
        return tag("figure", tag("figcaption", _caption(result), note), id=anchor, data_group=group)


def _figure(
    group: str,
    anchor: str,
    result: ImageResult,
    folder: Path,
    legend: Legend,
    byte_budget: int,
    value_range: Range | None,
) -> Html:
    scale = LONGER_SIDE / max(result.width, result.height)
    sides = [
        _side([i for i in result.instances if i.predicted == predicted], result, legend, scale, byte_budget // 3)
        for predicted in (True, False)
    ]
    size = {"width": f"{result.width * scale:g}", "height": f"{result.height * scale:g}"}
    remaining = byte_budget - sum(len(layer) for side in sides for layer in side.layers)
    url = _photograph(folder / result.file_name, remaining, value_range)
    # The photograph is stored once and used by both drawings.
    photograph = tag("g", tag("image", href=url, preserveAspectRatio="none", **size), id=f"{anchor}-photograph")
    backgrounds = [photograph, tag("use", href=f"#{anchor}-photograph")] if url else ["", ""]
    drawn = []
    for name, side, background in zip(("predicted", "annotated"), sides, backgrounds, strict=True):
        view = {"viewBox": f"0 0 {size['width']} {size['height']}", "role": "img"}
        svg = tag("svg", background, side.layers, aria_label=f"{result.file_name}, {name}", **view)
        drawn.append(tag("div", tag("span", name), svg, class_=f"side {name}"))
    num_left_out = sum(side.num_left_out for side in sides)
    notes = [] if url else ["the file cannot be read"]
    if num_left_out:
        notes.append(f"{num_left_out:,} small instance{'' if num_left_out == 1 else 's'} not drawn")
    return tag(
        "figure",
        tag("a", drawn, href=f"#{anchor}", class_="pair", aria_label=f"enlarge {result.file_name}"),
        tag("figcaption", _caption(result), tag("p", ", ".join(notes), class_="finding") if notes else ()),
        id=anchor,
        data_group=group,
        style=f"--r:{max(0.4, result.width / result.height):.3f}",
    )


def _caption(result: ImageResult) -> list[Html]:
    counts = f" F1 {result.quality:.2f}: {result.correct} correct, {result.wrong} wrong, {result.missed} missed"
    close = tag("a", "close", href="#images", class_="close")
    return [join(tag("b", result.file_name), counts, tag("span", f", id {result.image_id} "), close)]


def _side(instances: Sequence[Instance], result: ImageResult, legend: Legend, scale: float, byte_budget: int) -> _Side:
    """Return the layers of a drawing in descending size, without the smallest instances if over the byte budget.

    The k-th element of each layer belongs to the same instance, which report.js relies on.
    """
    ordered = sorted(instances, key=lambda instance: -float(np.prod(instance.box[2:] - instance.box[:2])))
    drawn = []
    for instance in ordered:
        parts = (_mask(instance, scale), _box(instance, scale, legend), _skeleton(instance, scale, legend))
        byte_budget -= sum(map(len, parts))
        if byte_budget < 0:
            break
        drawn.append(parts)
    masks, boxes, skeletons = ([parts[k] for parts in drawn] for k in range(3))
    labels = [(_scaled(i.box, scale), _label(i, legend), f"o-{i.outcome}") for i in ordered[: len(drawn)]]
    texts = [text or tag("text") for text in place_names(labels, result.width * scale, _TEXT_HEIGHT)]
    content = [tag("g", masks, transform=f"scale({1 / _STEPS:g})"), boxes, skeletons, texts]
    layers = [tag("g", part, class_=layer) for layer, part in zip(LAYERS, content, strict=True)]
    return _Side(layers, len(ordered) - len(drawn))


def _label(instance: Instance, legend: Legend) -> str:
    name = legend.names[instance.category_id]
    return f"{name} {instance.score:.2f}" if instance.predicted else name


def _scaled(box: np.ndarray, scale: float) -> Box:
    x0, y0, x1, y1 = (np.asarray(box) * scale).tolist()
    return x0, y0, x1, y1


def _mask(instance: Instance, scale: float) -> Html:
    """Return the smoothed outline of a mask; an empty path if there is no mask."""
    if instance.segmentation is None:
        return tag("path")
    small, pixel_size = downsample(coco_mask.decode(instance.segmentation), scale)
    polygons = [_smooth(corners * pixel_size * scale) for corners in trace(small)]
    return tag("path", d=svg_path(polygons, _STEPS), class_=f"o-{instance.outcome}")


def _smooth(polygon: np.ndarray) -> np.ndarray:
    """Return a polygon of fewer corners within the tolerance of the given one."""
    smooth = cv2.approxPolyDP(polygon.astype(np.float32)[:, None], _TOLERANCE, True)[:, 0]
    return smooth if len(smooth) > 2 else polygon


def _box(instance: Instance, scale: float, legend: Legend) -> Html:
    """Return the box, with data attributes for report.js."""
    title = f"{_label(instance, legend)}: {OUTCOMES[instance.outcome].name}"
    box = rectangle(_scaled(instance.box, scale), title, f"o-{instance.outcome}")
    data = {"data_class": legend.indices[instance.category_id], "data_outcome": instance.outcome}
    return tag("g", box, data_score=f"{instance.score:.4f}" if instance.predicted else None, **data)


def _skeleton(instance: Instance, scale: float, legend: Legend) -> Html:
    """Return all keypoints of a prediction, or the labeled ones of an annotation."""
    if instance.keypoints is None:
        return tag("g")
    points, visibility = (instance.keypoints[:, :2] + _PIXEL_CENTER) * scale, instance.keypoints[:, 2]
    labeled = np.ones(len(points), bool) if instance.predicted else visibility > 0
    hidden = ~labeled if instance.predicted else visibility == 1
    edges = legend.skeletons.get(instance.category_id, ())
    return tag("g", skeleton(points, labeled, hidden, edges), class_=f"o-{instance.outcome}")


def _photograph(file: Path, byte_budget: int, value_range: Range | None) -> str:
    """Return the image as a data URL; empty if it cannot be read."""
    try:
        pixels = image_files.decode(file.read_bytes(), value_range=value_range)
    except OSError:
        pixels = None
    return "" if pixels is None else jpeg_url(pixels, byte_budget)
