"""An image twice, side by side: with what was predicted in it, and with what is annotated; one photograph for both."""

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
from mrcnn_jax.errors import described
from mrcnn_jax.evaluation.analysis import ImageResult, Instance
from mrcnn_jax.tools.pages.drawing import SIDE, Box, jpeg, names, rectangle, skeleton, thinned
from mrcnn_jax.tools.pages.html import Html, join, tag
from mrcnn_jax.tools.pages.outline import path, trace
from mrcnn_jax.tools.report.labels import OUTCOMES

log = logging.getLogger(__name__)

LAYERS = ("masks", "boxes", "skeletons", "names")
_STEPS = 4  # parts of a unit that outlines are written in
_TEXT = 22  # height of a name in units, as in report.css: these pictures are half as wide as others
_TOLERANCE = 0.8  # units that an outline may lie beside the pixels it is made of
_PIXEL = 0.5  # COCO's keypoints name pixels, whose middle lies 1/2 further


class Legend(NamedTuple):
    """What categories are called, and how their keypoints hang together."""

    names: Mapping[int, str]  # by category id
    places: Mapping[int, int]  # of each category id on the page, from 0
    bones: Mapping[int, Sequence[tuple[int, int]]]  # pairs of keypoints, from 0


class _Side(NamedTuple):
    """One half of a picture."""

    layers: list[Html]
    left_out: int


def figure(
    group: str,
    anchor: str,
    result: ImageResult,
    folder: Path,
    legend: Legend,
    room: int,
    value_range: Range | None = None,
) -> Html:
    """The two pictures of an image and what there is to say of it, in about `room` bytes.

    The file's name and why, where it cannot be drawn.
    """
    try:
        return _figure(group, anchor, result, folder, legend, room, value_range)
    except Exception as error:
        log.warning("image %s (%s) cannot be drawn: %s", result.image_id, result.file_name, described(error))
        why = tag("p", "it cannot be drawn", class_="finding")
        return tag("figure", tag("figcaption", _caption(result), why), id=anchor, data_group=group)


def _figure(
    group: str,
    anchor: str,
    result: ImageResult,
    folder: Path,
    legend: Legend,
    room: int,
    value_range: Range | None,
) -> Html:
    scale = SIDE / max(result.width, result.height)
    sides = [
        _side([one for one in result.instances if one.predicted == predicted], result, legend, scale, room // 3)
        for predicted in (True, False)
    ]
    size = {"width": f"{result.width * scale:g}", "height": f"{result.height * scale:g}"}
    left = room - sum(len(layer) for side in sides for layer in side.layers)
    ground, missing = _photograph(folder / result.file_name, left, value_range)
    # The photograph is in the page once; the right half shows it again.
    photograph = tag("g", tag("image", href=ground, preserveAspectRatio="none", **size), id=f"{anchor}-photograph")
    grounds = [photograph, tag("use", href=f"#{anchor}-photograph")] if ground else ["", ""]
    drawn = []
    for words, side, below in zip(("predicted", "annotated"), sides, grounds, strict=True):
        view = {"viewBox": f"0 0 {size['width']} {size['height']}", "role": "img"}
        svg = tag("svg", below, side.layers, aria_label=f"{result.file_name}, {words}", **view)
        drawn.append(tag("div", tag("span", words), svg, class_=f"side {words}"))
    left_out = sum(side.left_out for side in sides)
    notes = ["the file cannot be read"] * missing + [f"{left_out:,} small ones not drawn"] * bool(left_out)
    return tag(
        "figure",
        tag("a", drawn, href=f"#{anchor}", class_="pair", aria_label=f"enlarge {result.file_name}"),
        tag("figcaption", _caption(result), tag("p", ", ".join(notes), class_="finding") if notes else ()),
        id=anchor,
        data_group=group,
        style=f"--r:{max(0.4, result.width / result.height):.3f}",
    )


def _caption(result: ImageResult) -> list[Html]:
    counts = f" F1 {result.quality:.2f}: {result.correct} right, {result.wrong} wrong, {result.missed} missed"
    back = tag("a", "smaller", href="#pictures", class_="smaller")
    return [join(tag("b", result.file_name), counts, tag("span", f", id {result.image_id} "), back)]


def _side(instances: Sequence[Instance], result: ImageResult, legend: Legend, scale: float, room: int) -> _Side:
    """The layers of one half; the small ones last, above the others, and left out first.

    The k-th element of each layer is of the same instance: the script hides and shows them by that.
    """
    ordered = sorted(instances, key=lambda one: -float(np.prod(one.box[2:] - one.box[:2])))
    drawn = []
    for one in ordered:
        parts = (_mask(one, scale), _box(one, scale, legend), _skeleton(one, scale, legend))
        room -= sum(map(len, parts))
        if room < 0:
            break
        drawn.append(parts)
    masks, boxes, skeletons = ([parts[k] for parts in drawn] for k in range(3))
    labels = [(_place(one.box, scale), _label(one, legend), f"o-{one.outcome}") for one in ordered[: len(drawn)]]
    texts = [text or tag("text") for text in names(labels, result.width * scale, _TEXT)]
    content = [tag("g", masks, transform=f"scale({1 / _STEPS:g})"), boxes, skeletons, texts]
    layers = [tag("g", part, class_=layer) for layer, part in zip(LAYERS, content, strict=True)]
    return _Side(layers, len(ordered) - len(drawn))


def _label(one: Instance, legend: Legend) -> str:
    name = legend.names[one.category_id]
    return f"{name} {one.score:.2f}" if one.predicted else name


def _place(box: np.ndarray, scale: float) -> Box:
    x0, y0, x1, y1 = (np.asarray(box) * scale).tolist()
    return x0, y0, x1, y1


def _mask(one: Instance, scale: float) -> Html:
    """Its outline, smoothed to what can be seen; an empty path where there is no mask."""
    if one.segmentation is None:
        return tag("path")
    shrunk, factor = thinned(coco_mask.decode(one.segmentation), scale)
    polygons = [_smooth(corners * factor * scale) for corners in trace(shrunk)]
    return tag("path", d=path(polygons, _STEPS), class_=f"o-{one.outcome}")


def _smooth(polygon: np.ndarray) -> np.ndarray:
    """A polygon of fewer corners, which lies within the tolerance of the given one."""
    smooth = cv2.approxPolyDP(polygon.astype(np.float32)[:, None], _TOLERANCE, True)[:, 0]
    return smooth if len(smooth) > 2 else polygon


def _box(one: Instance, scale: float, legend: Legend) -> Html:
    """The box, with what the script goes by."""
    title = f"{_label(one, legend)}: {OUTCOMES[one.outcome].name}"
    drawn = rectangle(_place(one.box, scale), title, f"o-{one.outcome}")
    known = {"data_class": legend.places[one.category_id], "data_outcome": one.outcome}
    return tag("g", drawn, data_score=f"{one.score:.4f}" if one.predicted else None, **known)


def _skeleton(one: Instance, scale: float, legend: Legend) -> Html:
    """Its keypoints; of predicted ones all are shown, of annotated ones those that are labeled."""
    if one.keypoints is None:
        return tag("g")
    points, third = (one.keypoints[:, :2] + _PIXEL) * scale, one.keypoints[:, 2]
    labeled = np.ones(len(points), bool) if one.predicted else third > 0
    hidden = ~labeled if one.predicted else third == 1
    return tag("g", skeleton(points, labeled, hidden, legend.bones.get(one.category_id, ())), class_=f"o-{one.outcome}")


def _photograph(file: Path, room: int, value_range: Range | None) -> tuple[str, bool]:
    """As a data URL, empty if it cannot be read; and whether that is so."""
    try:
        pixels = image_files.decode(file.read_bytes(), value_range=value_range)
    except OSError:
        pixels = None
    return ("", True) if pixels is None else (jpeg(pixels, room), False)
