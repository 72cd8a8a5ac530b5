"""Overlays: predictions drawn on images with the supervision library, and the colors of their instances."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import supervision as sv
from numpy.typing import NDArray

from mrcnn_jax.inference.postprocess import Prediction

# Least score of a keypoint that is drawn: the defaults of Detectron2's visualizer and of Detectron's.
_MIN_KEYPOINT_SCORE = {"probability": 0.05, "logit": 2.0}
_MIN_LONGER_SIDE = 512  # pixels; smaller images are enlarged
_MIN_TITLE_WIDTH = 256  # pixels
_MIN_IOU = 0.3  # of boxes in consecutive images, to be the same instance


def draw(
    image: NDArray[np.uint8],
    prediction: Prediction,
    *,
    threshold: float = 0.5,
    colors: Sequence[int] | None = None,
    scores: bool = True,
) -> NDArray[np.uint8]:
    """Draw masks, boxes, skeletons and labels of the instances with a score of at least `threshold`.

    image: (height, width, 3) uint8 RGB, the image of the prediction.
    colors: a color index for each instance, into supervision's palette modulo its length; by default 0, 1, ...
    scores: whether labels have scores, besides names.
    Returns a new uint8 RGB image. If its longer side is below 512 pixels it is enlarged by an integer factor, so that
    labels do not cover it. Keypoints below a fixed score are left out.
    Raises ValueError if the prediction is of an image of another size.
    """
    if image.shape[:2] != prediction.image_size:
        raise ValueError(f"the prediction is for {prediction.image_size} pixels, the image has {image.shape[:2]}")
    selected = np.flatnonzero(prediction.scores >= threshold)
    shown = prediction[selected]
    indices = list(range(len(shown))) if colors is None else [colors[i] for i in selected.tolist()]
    factor = max(1, -(-_MIN_LONGER_SIDE // max(image.shape[:2])))
    enlarged = dataclasses.replace(
        shown,
        image_size=(image.shape[0] * factor, image.shape[1] * factor),
        boxes=shown.boxes * np.float32(factor),
        keypoints=None if shown.keypoints is None else shown.keypoints * np.array([factor, factor, 1], np.float32),
    )
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)  # supervision draws in BGR
    canvas = np.asarray(cv2.resize(bgr, enlarged.image_size[::-1], interpolation=cv2.INTER_CUBIC), dtype=np.uint8)
    _draw_masks(canvas, enlarged, indices)
    _draw_boxes(canvas, enlarged, indices)
    _draw_skeletons(canvas, enlarged, indices)
    _draw_labels(canvas, enlarged, indices, scores)
    return np.asarray(cv2.cvtColor(canvas, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def compare(
    image: NDArray[np.uint8], ground_truth: Prediction, prediction: Prediction, *, threshold: float = 0.5
) -> NDArray[np.uint8]:
    """Draw ground truth (`evaluation.ground_truth.read`) and prediction side by side, each with a title.

    Predicted instances with a score of at least `threshold` have the color of the ground-truth instance of their class
    with the largest overlap; the others have colors not used on the left. Returns uint8 RGB, see `draw`.
    """
    prediction = prediction[prediction.scores >= threshold]
    colors = ColorIndices()
    left = draw(image, ground_truth, threshold=0, colors=colors.assign(ground_truth), scores=False)
    right = draw(image, prediction, threshold=0, colors=colors.assign(prediction))
    sides = [_add_title(left, "ground truth"), _add_title(right, f"prediction, score >= {threshold:g}")]
    gap = np.full((len(sides[0]), max(4, left.shape[1] // 100), 3), 255, np.uint8)
    return np.concatenate([sides[0], gap, sides[1]], axis=1)


class ColorIndices:
    """Assigns color indices to the instances of consecutive images: video frames, or ground truth and prediction.

    An instance takes the index of the box of its class with the largest overlap in the previous image; instances with
    better scores choose first. A new instance takes the smallest index used in neither image. This is not a tracker.
    """

    def __init__(self) -> None:
        self._boxes = np.zeros((0, 4), np.float32)
        self._labels = np.zeros(0, np.int32)
        self._indices: list[int] = []

    def assign(self, prediction: Prediction) -> list[int]:
        """Return an index for each instance of the next image."""
        overlaps = sv.box_iou_batch(prediction.boxes, self._boxes) * (prediction.labels[:, None] == self._labels)
        indices: list[int] = []
        for row in overlaps:
            previous = int(row.argmax()) if row.size else -1
            if previous >= 0 and row[previous] >= _MIN_IOU:
                indices.append(self._indices[previous])
                overlaps[:, previous] = 0
            else:
                indices.append(-1)
        used = {*indices, *self._indices}
        unused = (index for index in itertools.count() if index not in used)
        indices = [next(unused) if index < 0 else index for index in indices]
        self._boxes, self._labels, self._indices = prediction.boxes, prediction.labels, indices
        return indices


def _add_title(image: NDArray[np.uint8], title: str) -> NDArray[np.uint8]:
    """Put a title in a white strip above an image; narrow images are padded with white on the right."""
    padding = max(0, _MIN_TITLE_WIDTH - image.shape[1])
    image = np.pad(image, ((0, 0), (0, padding), (0, 0)), constant_values=255)
    width = image.shape[1]
    strip = np.full((width // 20, width, 3), 255, np.uint8)
    origin, scale = (width // 60, width // 28), width / 900
    cv2.putText(strip, title, origin, cv2.FONT_HERSHEY_SIMPLEX, scale, (0, 0, 0), max(1, round(scale)), cv2.LINE_AA)
    return np.concatenate([strip, image])


def _detections(boxes: Any, colors: Sequence[int], mask: Any = None) -> sv.Detections:
    """Return `sv.Detections`, whose class ids select the colors."""
    return sv.Detections(xyxy=np.asarray(boxes, dtype=np.float32), mask=mask, class_id=np.asarray(colors, dtype=int))


def _draw_masks(canvas: NDArray[np.uint8], prediction: Prediction, colors: Sequence[int]) -> None:
    """Draw each mask on its region of the canvas only, large masks first."""
    annotator = sv.MaskAnnotator(opacity=0.45)
    regions = prediction.regions()
    for i in sorted(range(len(regions)), key=lambda i: -regions[i].pixels.size):
        pixels, top, left = regions[i]
        if pixels.any():
            part = canvas[top : top + pixels.shape[0], left : left + pixels.shape[1]]
            box = [[0, 0, pixels.shape[1], pixels.shape[0]]]
            part[:] = annotator.annotate(part.copy(), _detections(box, [colors[i]], np.ascontiguousarray(pixels)[None]))


def _draw_boxes(canvas: NDArray[np.uint8], prediction: Prediction, colors: Sequence[int]) -> None:
    last_pixel = np.array([canvas.shape[1], canvas.shape[0]] * 2) - 1
    boxes = np.minimum(prediction.boxes, last_pixel)
    sv.BoxAnnotator(thickness=_line_width(canvas)).annotate(canvas, _detections(boxes, colors))


def _draw_skeletons(canvas: NDArray[np.uint8], prediction: Prediction, colors: Sequence[int]) -> None:
    """Draw keypoints and the edges between them in the instance's color, outlined in white."""
    if prediction.keypoints is None:
        return
    extents = np.max(prediction.boxes[:, 2:] - prediction.boxes[:, :2], axis=1, initial=0)
    edges = [(a + 1, b + 1) for a, b in prediction.skeleton]  # supervision counts from 1
    for i, instance in enumerate(prediction.keypoints):
        visible = instance[:, 2:] >= _MIN_KEYPOINT_SCORE[prediction.keypoint_score]
        points = sv.KeyPoints(xy=np.where(visible, instance[:, :2], 0)[None])  # supervision skips points at (0, 0)
        line = int(np.clip(extents[i] / 100, 1, _line_width(canvas)))  # thin on small instances
        for color, margin in ((sv.Color.WHITE, (line + 1) // 2), (sv.ColorPalette.DEFAULT.by_idx(colors[i]), 0)):
            if edges:
                sv.EdgeAnnotator(color, line + 2 * margin, edges).annotate(canvas, points)
            sv.VertexAnnotator(color, line + 1 + margin).annotate(canvas, points)


def _draw_labels(canvas: NDArray[np.uint8], prediction: Prediction, colors: Sequence[int], scores: bool) -> None:
    """Draw names and scores above the boxes, inside the image; of overlapping labels the best score is drawn."""
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
    # supervision anchors a label at its lower left corner.
    anchors = np.array([(r[0], r[3], r[2], r[3]) for r in rectangles]).reshape(-1, 4)
    annotator = sv.LabelAnnotator(text_scale=scale, text_thickness=thickness, text_padding=padding)
    annotator.annotate(canvas, _detections(anchors, [colors[i] for i in shown]), labels=[labels[i] for i in shown])


def _line_width(canvas: NDArray[np.uint8]) -> int:
    """Return a line width in proportion to the image."""
    return max(1, round(max(canvas.shape[:2]) / 400))


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
