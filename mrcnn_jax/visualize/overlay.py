"""Predictions drawn on pictures, with the supervision library."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import supervision as sv
from numpy.typing import NDArray

from mrcnn_jax.inference.postprocess import Prediction
from mrcnn_jax.visualize.color_indices import ColorIndices

# Scores from which keypoints are drawn: the defaults of Detectron2's visualizer and of Detectron's.
_SEEN = {"probability": 0.05, "logit": 2.0}
_READABLE = 512  # pixels of the longer side below which a picture is enlarged
_TITLE = 256  # pixels that a title is wide at least


def draw(
    image: NDArray[np.uint8],
    prediction: Prediction,
    *,
    threshold: float = 0.5,
    colors: Sequence[int] | None = None,
    scores: bool = True,
) -> NDArray[np.uint8]:
    """Masks, boxes, skeletons, names and, unless `scores` is False, scores of the instances from `threshold` on.

    Each instance has one color: `colors` are their numbers in supervision's palette, which starts again at its end;
    by default 0, 1, ... Keypoints that score less than a fixed value of their kind are left out.
    image: (height, width, 3) uint8 RGB, the one that was predicted on. Returns a new picture, uint8 RGB; one whose
    longer side is below 512 pixels is enlarged by a whole factor, since the text would cover it otherwise.
    Raises ValueError when the prediction belongs to an image of another size.
    """
    if image.shape[:2] != prediction.image_size:
        raise ValueError(f"the prediction is for {prediction.image_size} pixels, the image has {image.shape[:2]}")
    strong = np.flatnonzero(prediction.scores >= threshold)
    shown = prediction[strong]
    numbers = list(range(len(shown))) if colors is None else [colors[i] for i in strong.tolist()]
    factor = max(1, -(-_READABLE // max(image.shape[:2])))
    enlarged = dataclasses.replace(
        shown,
        image_size=(image.shape[0] * factor, image.shape[1] * factor),
        boxes=shown.boxes * np.float32(factor),
        keypoints=None if shown.keypoints is None else shown.keypoints * np.array([factor, factor, 1], np.float32),
    )
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)  # what supervision paints on
    canvas = np.asarray(cv2.resize(bgr, enlarged.image_size[::-1], interpolation=cv2.INTER_CUBIC), dtype=np.uint8)
    _paint_masks(canvas, enlarged, numbers)
    _paint_boxes(canvas, enlarged, numbers)
    _paint_skeletons(canvas, enlarged, numbers)
    _paint_labels(canvas, enlarged, numbers, scores)
    return np.asarray(cv2.cvtColor(canvas, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def compare(
    image: NDArray[np.uint8], truth: Prediction, found: Prediction, *, threshold: float = 0.5
) -> NDArray[np.uint8]:
    """Two pictures side by side: what is there, as `evaluation.truth` reads it, and what was found there.

    What scores at least `threshold` has the color of the true instance of its class that it overlaps most, if any; the
    rest has colors that the left side lacks. Returns uint8 RGB; each side is as `draw` makes it, plus a title.
    """
    found = found[found.scores >= threshold]
    colors = ColorIndices()
    left = draw(image, truth, threshold=0, colors=colors.of(truth), scores=False)
    right = draw(image, found, threshold=0, colors=colors.of(found))
    sides = [_titled(left, "ground truth"), _titled(right, f"found, score {threshold:g} or more")]
    gap = np.full((len(sides[0]), max(4, left.shape[1] // 100), 3), 255, np.uint8)
    return np.concatenate([sides[0], gap, sides[1]], axis=1)


def _titled(picture: NDArray[np.uint8], title: str) -> NDArray[np.uint8]:
    """A picture below a strip of white with its title in black; a narrow one has white on its right, too."""
    beside = max(0, _TITLE - picture.shape[1])
    picture = np.pad(picture, ((0, 0), (0, beside), (0, 0)), constant_values=255)
    width = picture.shape[1]
    strip = np.full((width // 20, width, 3), 255, np.uint8)
    place, scale = (width // 60, width // 28), width / 900
    cv2.putText(strip, title, place, cv2.FONT_HERSHEY_SIMPLEX, scale, (0, 0, 0), max(1, round(scale)), cv2.LINE_AA)
    return np.concatenate([strip, picture])


def _detections(boxes: Any, colors: Sequence[int], mask: Any = None) -> sv.Detections:
    """supervision's record of some instances, whose colors it takes from the class."""
    return sv.Detections(xyxy=np.asarray(boxes, dtype=np.float32), mask=mask, class_id=np.asarray(colors, dtype=int))


def _paint_masks(canvas: NDArray[np.uint8], prediction: Prediction, colors: Sequence[int]) -> None:
    """Large masks first, each on its own part of the picture only."""
    annotator = sv.MaskAnnotator(opacity=0.45)
    regions = prediction.regions()
    for i in sorted(range(len(regions)), key=lambda i: -regions[i].pixels.size):
        pixels, top, left = regions[i]
        if pixels.any():
            part = canvas[top : top + pixels.shape[0], left : left + pixels.shape[1]]
            box = [[0, 0, pixels.shape[1], pixels.shape[0]]]
            part[:] = annotator.annotate(part.copy(), _detections(box, [colors[i]], np.ascontiguousarray(pixels)[None]))


def _paint_boxes(canvas: NDArray[np.uint8], prediction: Prediction, colors: Sequence[int]) -> None:
    last_pixel = np.array([canvas.shape[1], canvas.shape[0]] * 2) - 1
    boxes = np.minimum(prediction.boxes, last_pixel)
    sv.BoxAnnotator(thickness=_line(canvas)).annotate(canvas, _detections(boxes, colors))


def _paint_skeletons(canvas: NDArray[np.uint8], prediction: Prediction, colors: Sequence[int]) -> None:
    """Lines in the instance's color between its keypoints, and the keypoints, on white to stand out from its mask."""
    if prediction.keypoints is None:
        return
    extents = np.max(prediction.boxes[:, 2:] - prediction.boxes[:, :2], axis=1, initial=0)
    edges = [(a + 1, b + 1) for a, b in prediction.skeleton]  # supervision counts from 1
    for i, instance in enumerate(prediction.keypoints):
        seen = instance[:, 2:] >= _SEEN[prediction.keypoint_score]
        points = sv.KeyPoints(xy=np.where(seen, instance[:, :2], 0)[None])  # to supervision (0, 0) is no point
        line = int(np.clip(extents[i] / 100, 1, _line(canvas)))  # thin on a small person
        for paint, margin in ((sv.Color.WHITE, (line + 1) // 2), (sv.ColorPalette.DEFAULT.by_idx(colors[i]), 0)):
            if edges:
                sv.EdgeAnnotator(paint, line + 2 * margin, edges).annotate(canvas, points)
            sv.VertexAnnotator(paint, line + 1 + margin).annotate(canvas, points)


def _paint_labels(canvas: NDArray[np.uint8], prediction: Prediction, colors: Sequence[int], scores: bool) -> None:
    """Names and scores above the boxes, moved into the picture; where they would overlap, the better score is shown."""
    scale = max(0.4, max(canvas.shape[:2]) / 1600)
    thickness, padding = max(1, round(scale * 1.5)), max(2, round(scale * 6))
    labels = list(prediction.names)
    if scores:
        labels = [f"{name} {score:.2f}" for name, score in zip(labels, prediction.scores, strict=True)]
    shown: list[int] = []
    rectangles: list[tuple[int, int, int, int]] = []
    for i, label in enumerate(labels):
        (width, height), _ = cv2.getTextSize(label, cv2.FONT_HERSHEY_SIMPLEX, scale, thickness)
        width, height = width + 2 * padding, height + 2 * padding
        left = int(np.clip(prediction.boxes[i, 0], 0, max(canvas.shape[1] - width, 0)))
        bottom = int(np.clip(prediction.boxes[i, 1], height, canvas.shape[0]))
        rectangle = (left, bottom - height, left + width, bottom)
        if not any(_overlap(rectangle, other) for other in rectangles):
            shown.append(i)
            rectangles.append(rectangle)
    # An anchor is the lower left corner of a label.
    anchors = np.array([(r[0], r[3], r[2], r[3]) for r in rectangles]).reshape(-1, 4)
    annotator = sv.LabelAnnotator(text_scale=scale, text_thickness=thickness, text_padding=padding)
    annotator.annotate(canvas, _detections(anchors, [colors[i] for i in shown]), labels=[labels[i] for i in shown])


def _line(canvas: NDArray[np.uint8]) -> int:
    """Width of a line that is seen in a picture of any size."""
    return max(1, round(max(canvas.shape[:2]) / 400))


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
