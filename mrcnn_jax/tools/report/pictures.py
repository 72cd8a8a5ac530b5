"""An image drawn twice, side by side: with its predictions and with its annotations."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from markupsafe import Markup
from pycocotools import mask as coco_mask

from mrcnn_jax.data.value_range import Range
from mrcnn_jax.errors import format_error
from mrcnn_jax.evaluation.analysis import ImageResult, Instance
from mrcnn_jax.tools.pages import drawing
from mrcnn_jax.tools.pages.drawing import Shape, Skeleton
from mrcnn_jax.tools.pages.rendering import counted, macros
from mrcnn_jax.tools.report.labels import OUTCOMES

log = logging.getLogger(__name__)

_STEPS = 4  # per unit, of outlines
_TEXT_HEIGHT = 22  # of a name in units, as in report.css: these images are half as wide as those of `mrcnn check`
_TOLERANCE = 0.8  # of smoothed outlines, in units
_PIXEL_CENTER = 0.5  # COCO's keypoints are indices of pixels


class Legend(NamedTuple):
    """Names and skeletons of the categories."""

    names: Mapping[int, str]  # by category id
    indices: Mapping[int, int]  # class index in report.js, from 0, by category id
    skeletons: Mapping[int, Sequence[tuple[int, int]]]  # pairs of keypoint indices from 0, by category id


def figure(
    group: str,
    anchor: str,
    result: ImageResult,
    folder: Path,
    legend: Legend,
    byte_budget: int,
    value_range: Range | None = None,
) -> Markup:
    """Return the figure of an image with its caption, of about `byte_budget` bytes.

    If the image cannot be drawn, logs the error and returns the caption only.
    """
    try:
        content = _draw(result, folder, legend, byte_budget, value_range)
    except Exception as error:
        log.warning("image %s (%s) cannot be drawn: %s", result.image_id, result.file_name, format_error(error))
        content = {"sides": {}, "notes": ["it cannot be drawn"]}
    return macros("report/figure.html.jinja").figure(result, group, anchor, **content)


def _draw(
    result: ImageResult, folder: Path, legend: Legend, byte_budget: int, value_range: Range | None
) -> dict[str, Any]:
    """Return the drawings of both sides, the photograph as a data URL, and notes about what is missing."""
    scale = drawing.LONGER_SIDE / max(result.width, result.height)
    sides = {}
    for name, predicted in (("predicted", True), ("annotated", False)):
        shapes = [_shape(instance, legend, scale) for instance in result.instances if instance.predicted == predicted]
        sides[name] = drawing.draw(shapes, result.width * scale, byte_budget // 3, [_STEPS], _TEXT_HEIGHT)
    remaining = byte_budget - sum(side.num_bytes for side in sides.values())
    image = drawing.read_image(folder / result.file_name, value_range)
    photograph = "" if image is None else drawing.jpeg_url(image, remaining)
    notes = [] if photograph else ["the file cannot be read"]
    if num_left_out := len(result.instances) - sum(len(side.shapes) for side in sides.values()):
        notes.append(f"{counted(num_left_out, 'small instance')} not drawn")
    size = (result.width * scale, result.height * scale)
    return {"sides": sides, "notes": notes, "photograph": photograph, "size": size}


def _shape(instance: Instance, legend: Legend, scale: float) -> Shape:
    name = legend.names[instance.category_id]
    label = f"{name} {instance.score:.2f}" if instance.predicted else name
    return Shape(
        box=tuple((instance.box * scale).tolist()),
        style=f"o-{instance.outcome}",
        name=label,
        title=f"{label}: {OUTCOMES[instance.outcome].name}",
        outline=_outline(instance, scale),
        skeleton=_skeleton(instance, legend, scale),
        data={
            "data-score": f"{instance.score:.4f}" if instance.predicted else None,
            "data-class": legend.indices[instance.category_id],
            "data-outcome": instance.outcome,
        },
    )


def _outline(instance: Instance, scale: float) -> list[np.ndarray]:
    """Return the outline of a mask with fewer corners, within the tolerance; empty if there is no mask."""
    if instance.segmentation is None:
        return []
    polygons = [polygon * scale for polygon in drawing.trace(coco_mask.decode(instance.segmentation), scale)]
    smooth = [cv2.approxPolyDP(polygon.astype(np.float32)[:, None], _TOLERANCE, True)[:, 0] for polygon in polygons]
    return [new if len(new) > 2 else old for new, old in zip(smooth, polygons, strict=True)]


def _skeleton(instance: Instance, legend: Legend, scale: float) -> Skeleton:
    """Return all keypoints of a prediction, or the labeled ones of an annotation."""
    if instance.keypoints is None:
        return drawing.NO_SKELETON
    points, visibility = (instance.keypoints[:, :2] + _PIXEL_CENTER) * scale, instance.keypoints[:, 2]
    labeled = (visibility > 0) | instance.predicted
    hidden = (visibility == 1) & (not instance.predicted)
    return drawing.skeleton(points, labeled, hidden, legend.skeletons.get(instance.category_id, ()))
