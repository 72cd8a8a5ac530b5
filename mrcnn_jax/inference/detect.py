"""Detection in one batch of images, from the parts of the network.

Training calls the same parts in the same order, see `training.forward`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from mrcnn_jax.config import ModelConfig
from mrcnn_jax.models.mask_rcnn import MaskRCNN, Variables, propose
from mrcnn_jax.ops import detections as detection_ops
from mrcnn_jax.ops import keypoints as keypoint_ops
from mrcnn_jax.structures import Detections, Proposals


def detect(model: MaskRCNN, variables: Variables, images: jax.Array, image_sizes: jax.Array) -> Detections:
    """Detect objects in a batch of images of one shape.

    Masks and keypoints are computed for the final boxes only (He et al. 2017, section 3.1, "Inference").

    Args:
        model: the network.
        variables: its variables.
        images: (B, H, W, 3) uint8 RGB; or float32, already normalized, in the model's channel order, zero in the
            padding.
        image_sizes: (B, 2) height and width of each image inside the padding.

    Returns:
        Detections (B, D, ...), in pixels of the padded images.
    """
    features, detections = detect_boxes(model, variables, images, image_sizes)
    masks = mask_probabilities(model, variables, features, detections.boxes, detections.classes)
    heatmaps = keypoint_heatmaps(model, variables, features, detections.boxes)
    keypoints = decode_keypoints(model.config, heatmaps, detections.boxes, detections.valid)
    return detections._replace(masks=masks, keypoints=keypoints)


def detect_boxes(
    model: MaskRCNN, variables: Variables, images: jax.Array, image_sizes: jax.Array
) -> tuple[tuple[jax.Array, ...], Detections]:
    """Return the features of a batch, and its detections with empty masks (B, D, 0, 0) and keypoints (B, D, 0, 3)."""
    features = model.apply(variables, images, image_sizes, method=model.features)
    outputs = model.apply(variables, features, images.shape[1:3], method=model.rpn)
    proposals = propose(model.config, outputs, image_sizes, train=False)
    return features, boxes_of_proposals(model, variables, features, proposals, image_sizes)


def boxes_of_proposals(
    model: MaskRCNN, variables: Variables, features: Sequence[jax.Array], proposals: Proposals, image_sizes: jax.Array
) -> Detections:
    """Return the detections that the box head makes of proposals (B, P, ...), without masks and keypoints."""
    config, (batch, count) = model.config, proposals.valid.shape
    x = model.apply(variables, features, proposals.boxes, config.box.pool_size, method=model.roi_features)
    class_logits, deltas = model.apply(variables, x, method=model.box)
    class_logits, deltas = class_logits.reshape(batch, count, -1), deltas.reshape(batch, count, -1, 4)
    with jax.named_scope("detections"):
        select = jax.vmap(functools.partial(detection_ops.detect, config=config.box))
        boxes, scores, classes, valid, truncated = select(class_logits, deltas, proposals, image_sizes)
    masks, keypoints = jnp.zeros((*valid.shape, 0, 0)), jnp.zeros((*valid.shape, 0, 3))
    return Detections(boxes, scores, classes, masks, keypoints, valid, truncated)


def mask_probabilities(
    model: MaskRCNN, variables: Variables, features: Sequence[jax.Array], boxes: jax.Array, classes: jax.Array
) -> jax.Array:
    """Return masks (B, D, S, S) of boxes (B, D, 4) and classes (B, D); (B, D, 0, 0) without a mask head."""
    if model.config.mask is None:
        return jnp.zeros((*classes.shape, 0, 0))
    x = model.apply(variables, features, boxes, model.config.mask.pool_size, method=model.roi_features)
    masks = jax.nn.sigmoid(model.apply(variables, x, classes.reshape(-1), method=model.mask))
    return masks.reshape(*classes.shape, *masks.shape[1:])


def keypoint_heatmaps(
    model: MaskRCNN, variables: Variables, features: Sequence[jax.Array], boxes: jax.Array
) -> jax.Array:
    """Return heat map logits (B, D, S, S, K) of boxes (B, D, 4); (B, D, 0, 0, 0) without a keypoint head."""
    if model.config.keypoint is None:
        return jnp.zeros((*boxes.shape[:2], 0, 0, 0))
    x = model.apply(variables, features, boxes, model.config.keypoint.pool_size, method=model.roi_features)
    logits: jax.Array = model.apply(variables, x, method=model.keypoints)
    return logits.reshape(*boxes.shape[:2], *logits.shape[1:])


@jax.named_scope("keypoints")
def decode_keypoints(config: ModelConfig, heatmaps: jax.Array, boxes: jax.Array, valid: jax.Array) -> jax.Array:
    """Decode heat maps in boxes (B, D, 4) to keypoints (B, D, K, 3); (B, D, 0, 3) without a keypoint head."""
    if config.keypoint is None:
        return jnp.zeros((*valid.shape, 0, 3))
    logits = heatmaps.reshape(-1, *heatmaps.shape[2:])
    keypoints = keypoint_ops.decode(logits, boxes.reshape(-1, 4), valid.reshape(-1), score=config.keypoint.score)
    return keypoints.reshape(*valid.shape, *keypoints.shape[1:])
