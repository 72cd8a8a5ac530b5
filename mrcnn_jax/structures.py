"""The padded pytrees that travel between the parts of the system.

They are `NamedTuple`s: JAX sees pytrees, and `mrcnn_jax.data` can build them from NumPy arrays without importing JAX.
Shapes are given for one image; a batch puts B in front of every field.

Letters: B images, H x W padded image, N ground-truth slots, P proposals, R sampled RoIs, D detections,
C foreground classes, K keypoints, M side of a cropped mask.

Every padded array comes with an explicit boolean `valid`; nothing may be inferred from the values in the padding.
"""

from __future__ import annotations

from typing import Any, NamedTuple

Array = Any  # a numpy.ndarray on the host, a jax.Array on the device


class GroundTruth(NamedTuple):
    """The annotated instances of one image, padded to N slots.

    A mask is a small raster together with the window of the image that it covers. For training the window is the box
    itself and the raster is M x M; parity tests hand the whole bitmap and the window (0, 0, W, H). An instance without
    a mask has an empty window: its box is learned, and its mask is not.
    """

    boxes: Array  # (N, 4) float32, x0 y0 x1 y1 in pixels of the padded network image
    classes: Array  # (N,) int32, 1..C (0 in the padding)
    masks: Array  # (N, Mh, Mw) uint8, 0 or 1; (N, 0, 0) when the data has no masks
    mask_windows: Array  # (N, 4) float32, the part of the image that each raster covers
    keypoints: Array  # (N, K, 3) float32: x, y in pixels of the padded network image, visibility (0: not labeled)
    valid: Array  # (N,) bool


class Batch(NamedTuple):
    """Images of one bucket shape with their ground truth. All fields have a leading B."""

    images: Array  # (H, W, 3) uint8, RGB, resized, padded at the bottom and on the right
    image_sizes: Array  # (2,) int32, height and width of the picture inside the padded image
    indices: Array  # () int32, position of the image in its data set; ids stay on the host
    valid: Array  # () bool, False for a slot that holds no image
    ground_truth: GroundTruth


class Proposals(NamedTuple):
    """Regions proposed by the RPN for one image, best first."""

    boxes: Array  # (P, 4) float32
    scores: Array  # (P,) float32, objectness logits
    valid: Array  # (P,) bool


class SampledRoIs(NamedTuple):
    """RoIs drawn for training the heads of one image; positives come first."""

    boxes: Array  # (R, 4) float32
    classes: Array  # (R,) int32, 0 for background
    matches: Array  # (R,) int32, index of the matched ground-truth slot (meaningful for positives)
    valid: Array  # (R,) bool


class Detections(NamedTuple):
    """Final detections of one image in pixels of the padded network image, best first."""

    boxes: Array  # (D, 4) float32
    scores: Array  # (D,) float32
    classes: Array  # (D,) int32, 1..C
    masks: Array  # (D, S, S) float32, mask probabilities of the detected class inside the box; (D, 0, 0) without masks
    keypoints: Array  # (D, K, 3) float32: x, y in pixels of the padded network image, score; (D, 0, 3) without
    valid: Array  # (D,) bool
    truncated: Array  # () bool, True if the cap on NMS candidates may have changed the result
