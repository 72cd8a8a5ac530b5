"""An image in several views, resized and mirrored: what the network finds in each, put together.

Boxes and masks as in Detectron2 (modeling/test_time_augmentation.py, `GeneralizedRCNNWithTTA`): the detections of all
views are one list, which class-wise NMS thins out; then every view is asked for the masks of what is left, and their
probabilities are averaged. Keypoints as in Detectron (core/test.py, `im_detect_keypoints_aug` with its `HM_AVG`): the
views' heat maps are averaged, and read once. In a mirror image a left hand is a right hand (`flip_map`).

Boxes of all views are told in pixels of one of them, or of any other size of the picture: the frame.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mrcnn_jax.config import ModelConfig
from mrcnn_jax.models import mask_rcnn
from mrcnn_jax.ops import boxes as box_ops
from mrcnn_jax.ops import detections as detection_ops
from mrcnn_jax.structures import Detections

Heads = tuple[jax.Array, jax.Array]  # mask probabilities (1, D, S, S), heat maps (1, D, S, S, K)


class ViewTransform(NamedTuple):
    """Where a view shows what lies in the frame."""

    frame: Any  # (2,) height and width of the picture that the boxes are told in
    size: Any  # (2,) height and width of the picture in the view
    mirrored: Any  # () bool, left-right


def detect_boxes(
    model: mask_rcnn.MaskRCNN, variables: mask_rcnn.Variables, image: jax.Array, pose: ViewTransform
) -> tuple[tuple[jax.Array, ...], Detections]:
    """Features of a view (1, H, W, 3), and what is found in it without masks and keypoints; boxes in the frame."""
    features, found = mask_rcnn.detect_boxes(model, variables, image, pose.size[None])
    boxes = _mirrored(found.boxes, pose) * _stretch(pose.frame / pose.size)
    return features, found._replace(boxes=boxes)


def merge(config: ModelConfig, views: Sequence[Detections], frame: jax.Array) -> Detections:
    """The detections of all views of an image, each with a leading 1, as those of one."""
    boxes, scores, classes, valid = (
        jnp.concatenate([getattr(found, name)[0] for found in views])
        for name in ("boxes", "scores", "classes", "valid")
    )
    boxes = box_ops.clip(boxes, frame)  # what a view had cut at its edge may by rounding lie beyond that of the frame
    best = detection_ops.merge(
        boxes, scores, classes, valid, nms_iou=config.box.nms_iou, max_detections=config.box.max_detections
    )
    truncated = functools.reduce(jnp.logical_or, [found.truncated for found in views])
    boxes, scores, classes, valid = (field[None] for field in best)
    return Detections(boxes, scores, classes, views[0].masks, views[0].keypoints, valid, truncated)


def run_heads(
    model: mask_rcnn.MaskRCNN,
    variables: mask_rcnn.Variables,
    features: Sequence[jax.Array],
    merged: Detections,
    pose: ViewTransform,
) -> Heads:
    """What the heads say of a view's features at boxes in the frame: masks and heat maps as they lie in the frame."""
    boxes = _mirrored(merged.boxes * _stretch(pose.size / pose.frame), pose)
    masks = mask_rcnn.mask_probabilities(model, variables, features, boxes, merged.classes)
    heatmaps = mask_rcnn.keypoint_heatmaps(model, variables, features, boxes)
    flip_map = model.config.keypoint.flip_map if model.config.keypoint is not None else ()
    return (
        jnp.where(pose.mirrored, masks[..., ::-1], masks),
        jnp.where(pose.mirrored, heatmaps[..., ::-1, :][..., jnp.array(flip_map, jnp.int32)], heatmaps),
    )


def finish(config: ModelConfig, merged: Detections, total: Heads, views: int) -> Detections:
    """The detections with the mean of what the heads said of them, `total` being the sum over the views."""
    masks, heatmaps = (part / views for part in total)
    keypoints = mask_rcnn.decode_keypoints(config, heatmaps, merged.boxes, merged.valid)
    return merged._replace(masks=masks, keypoints=keypoints)


def _mirrored(boxes: jax.Array, pose: ViewTransform) -> jax.Array:
    """Boxes in pixels of the view as they lie there when it is mirrored, or from there back."""
    return jnp.where(pose.mirrored, box_ops.mirror(boxes, pose.size[1]), boxes)


def _stretch(ratio: jax.Array) -> jax.Array:
    """Ratios (2,) of heights and widths as factors of boxes (B, D, 4)."""
    return jnp.tile(ratio[::-1], 2)[None, None]
