"""Padded pytrees that the parts of the program exchange: batches, proposals, sampled RoIs, detections.

They are NamedTuples: pytrees for JAX, and `mrcnn_jax.data` can build them from NumPy arrays without importing JAX.
Shapes are those of one image; batches add a leading B to every field.

Letters: B images, H x W padded image, N ground-truth slots, P proposals, R sampled RoIs, D detections,
C foreground classes, K keypoints, M side of a cropped mask.

Every padded array comes with an explicit boolean `valid`. Values in the padding are undefined.
"""

from __future__ import annotations

from typing import Any, NamedTuple

Array = Any  # a numpy.ndarray on the host, a jax.Array on the device


class GroundTruth(NamedTuple):
    """Annotated instances of one image, padded to N slots.

    A mask is a small raster and the window of the image that it covers. In training the window is the box and the
    raster is M x M; parity tests pass the whole bitmap and the window (0, 0, W, H). An instance with an empty window
    has no mask: it trains the box head, but not the mask head.
    """

    boxes: Array  # (N, 4) float32, x0 y0 x1 y1 in pixels of the padded network image
    classes: Array  # (N,) int32, 1..C (0 in the padding)
    masks: Array  # (N, Mh, Mw) uint8, 0 or 1; (N, 0, 0) for data without masks
    mask_windows: Array  # (N, 4) float32, the part of the image that each raster covers
    keypoints: Array  # (N, K, 3) float32: x, y in pixels of the padded network image, visibility (0: not labeled)
    valid: Array  # (N,) bool


class Batch(NamedTuple):
    """Images of one bucket shape with their ground truth. All fields have a leading B."""

    images: Array  # (H, W, 3) uint8, RGB, resized, padded at the bottom and on the right
    image_sizes: Array  # (2,) int32, height and width of the image without padding
    indices: Array  # () int32, index of the image in its dataset; image ids stay on the host
    valid: Array  # () bool, False for a slot without an image
    ground_truth: GroundTruth


class Proposals(NamedTuple):
    """Regions proposed by the RPN for one image, in order of decreasing score."""

    boxes: Array  # (P, 4) float32
    scores: Array  # (P,) float32, objectness logits
    valid: Array  # (P,) bool


class SampledRoIs(NamedTuple):
    """RoIs sampled for training the heads on one image, positives first."""

    boxes: Array  # (R, 4) float32
    classes: Array  # (R,) int32, 0 for background
    matches: Array  # (R,) int32, index of the matched ground-truth slot (meaningful for positives)
    valid: Array  # (R,) bool


class Detections(NamedTuple):
    """Final detections of one image in pixels of the padded network image, in order of decreasing score."""

    boxes: Array  # (D, 4) float32
    scores: Array  # (D,) float32
    classes: Array  # (D,) int32, 1..C
    masks: Array  # (D, S, S) float32, mask probabilities of the detected class inside the box; (D, 0, 0) without masks
    keypoints: Array  # (D, K, 3) float32: x, y in pixels of the padded network image, score; (D, 0, 3) without
    valid: Array  # (D,) bool
    truncated: Array  # () bool, True if the limit on NMS candidates may have changed the result
