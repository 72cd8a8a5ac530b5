"""Test-time augmentation: transforms between the views of an image, and the merging of their detections.

Boxes and masks follow Detectron2 (modeling/test_time_augmentation.py, `GeneralizedRCNNWithTTA`): class-wise NMS over
the detections of all views, then the mean of the views' mask probabilities at the remaining boxes. Keypoints follow
Detectron (core/test.py, `im_detect_keypoints_aug` with `HM_AVG`): the mean of the views' heatmaps, decoded once; in a
flipped view left and right keypoints are exchanged (`flip_map`).

Merged boxes are in pixels of a reference view: the image, not flipped, at any one size.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mrcnn_jax.config import ModelConfig
from mrcnn_jax.inference import detect
from mrcnn_jax.models.mask_rcnn import MaskRCNN, Variables
from mrcnn_jax.ops import boxes as box_ops
from mrcnn_jax.ops import detections as detection_ops
from mrcnn_jax.structures import Detections

Heads = tuple[jax.Array, jax.Array]  # mask probabilities (1, D, S, S), heatmaps (1, D, S, S, K)


class ViewTransform(NamedTuple):
    """Scale and horizontal flip from the reference view to a view."""

    reference_size: Any  # (2,) height and width of the image in the reference view
    size: Any  # (2,) height and width of the image in this view
    flipped: Any  # () bool


def detect_boxes(
    model: MaskRCNN, variables: Variables, image: jax.Array, transform: ViewTransform
) -> tuple[tuple[jax.Array, ...], Detections]:
    """Return the features of a view (1, H, W, 3), and its detections without masks and keypoints.

    Boxes are in pixels of the reference view.
    """
    features, detections = detect.detect_boxes(model, variables, image, transform.size[None])
    boxes = _flip(detections.boxes, transform) * _box_scale(transform.reference_size / transform.size)
    return features, detections._replace(boxes=boxes)


def merge(config: ModelConfig, views: Sequence[Detections], reference_size: jax.Array) -> Detections:
    """Merge the detections of all views of one image (B = 1) with class-wise NMS."""
    boxes, scores, classes, valid = (
        jnp.concatenate([getattr(view, name)[0] for view in views]) for name in ("boxes", "scores", "classes", "valid")
    )
    boxes = box_ops.clip(boxes, reference_size)  # rounding may move a box clipped in its view beyond the edge
    best = detection_ops.merge(boxes, scores, classes, valid, config.box)
    truncated = functools.reduce(jnp.logical_or, [view.truncated for view in views])
    boxes, scores, classes, valid = (field[None] for field in best)
    return Detections(boxes, scores, classes, views[0].masks, views[0].keypoints, valid, truncated)


def run_heads(
    model: MaskRCNN,
    variables: Variables,
    features: Sequence[jax.Array],
    merged: Detections,
    transform: ViewTransform,
) -> Heads:
    """Return mask probabilities and heatmaps of a view at the merged boxes, flipped back to the reference view."""
    boxes = _flip(merged.boxes * _box_scale(transform.size / transform.reference_size), transform)
    masks = detect.mask_probabilities(model, variables, features, boxes, merged.classes)
    heatmaps = detect.keypoint_heatmaps(model, variables, features, boxes)
    flip_map = model.config.keypoint.flip_map if model.config.keypoint is not None else ()
    return (
        jnp.where(transform.flipped, masks[..., ::-1], masks),
        jnp.where(transform.flipped, heatmaps[..., ::-1, :][..., jnp.array(flip_map, jnp.int32)], heatmaps),
    )


def finish(config: ModelConfig, merged: Detections, total: Heads, views: int) -> Detections:
    """Return the merged detections with masks and keypoints from `total`, the sum of the head outputs of all views."""
    masks, heatmaps = (outputs / views for outputs in total)
    keypoints = detect.decode_keypoints(config, heatmaps, merged.boxes, merged.valid)
    return merged._replace(masks=masks, keypoints=keypoints)


def _flip(boxes: jax.Array, transform: ViewTransform) -> jax.Array:
    """Flip boxes in pixels of the view if the view is flipped; its own inverse."""
    return jnp.where(transform.flipped, box_ops.mirror(boxes, transform.size[1]), boxes)


def _box_scale(ratio: jax.Array) -> jax.Array:
    """Return ratios (2,) of heights and widths as factors (1, 1, 4) of boxes."""
    return jnp.tile(ratio[::-1], 2)[None, None]
