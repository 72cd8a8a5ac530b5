"""Detections from box head outputs: scores, class-wise NMS, top D (Girshick 2015, section 3)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mrcnn_jax.config import BoxHeadConfig
from mrcnn_jax.ops import boxes as box_ops
from mrcnn_jax.ops.nms import batched_nms, nms_sorted
from mrcnn_jax.structures import Proposals


def detect(
    class_logits: jax.Array,
    deltas: jax.Array,
    proposals: Proposals,
    image_size: jax.Array,
    config: BoxHeadConfig,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]:
    """Detections of one image, best first.

    Candidates are pairs of a proposal and a class whose softmax probability is > `config.score_threshold` and whose
    clipped box is large enough; non-finite ones are dropped. The best `config.nms_candidates` enter NMS within their
    class, and the best `config.max_detections` of the rest remain, in as many slots D; slots without a detection are
    zero.

    Args:
        class_logits: (P, C + 1), background first.
        deltas: (P, C, 4), or (P, 1, 4) from a class-agnostic head.
        proposals: P slots.
        image_size: (2,) height and width of the image inside the padding.
        config: weights of the box coder, limits and thresholds.

    Returns:
        boxes (D, 4), scores (D,), classes (D,) int32, valid (D,) bool, and truncated () bool: True if the limit
        `nms_candidates` may have removed a detection, because there were more candidates and fewer than D survived.
    """
    nms_candidates, max_detections = config.nms_candidates, config.max_detections
    boxes, scores = _candidates(class_logits, deltas, proposals, image_size, config)
    num_proposals, num_classes = scores.shape
    scores = jnp.where(scores > config.score_threshold, scores, -jnp.inf).reshape(-1)
    num_candidates = jnp.sum(jnp.isfinite(scores), dtype=jnp.int32)
    scores, indices = jax.lax.top_k(scores, min(nms_candidates, num_proposals * num_classes))
    rows, columns = indices // num_classes, indices % num_classes
    boxes = boxes[rows, jnp.minimum(columns, boxes.shape[1] - 1)]
    (keep,) = nms_sorted([(boxes, columns, jnp.isfinite(scores))], iou_threshold=config.nms_iou)
    num_kept = jnp.sum(keep, dtype=jnp.int32)
    best = _best(boxes, jnp.where(keep, scores, -jnp.inf), columns + 1, max_detections)
    return *best, (num_candidates > nms_candidates) & (num_kept < max_detections)


def merge(
    boxes: jax.Array, scores: jax.Array, classes: jax.Array, valid: jax.Array, config: BoxHeadConfig
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Merge several sets of detections of one image: class-wise NMS, then the best `config.max_detections`.

    boxes: (N, 4); scores: (N,); classes: (N,) in 1..C; valid: (N,) bool. Returns the same with D = max_detections
    slots, best first; slots without a detection are zero.
    """
    keep = batched_nms(boxes, scores, classes, valid, iou_threshold=config.nms_iou)
    return _best(boxes, jnp.where(keep, scores, -jnp.inf), classes, config.max_detections)


def _candidates(
    class_logits: jax.Array, deltas: jax.Array, proposals: Proposals, image_size: jax.Array, config: BoxHeadConfig
) -> tuple[jax.Array, jax.Array]:
    """Clipped boxes (P, C or 1, 4) and probabilities (P, C), -inf for pairs that are no candidates."""
    scores = jax.nn.softmax(class_logits.astype(jnp.float32), axis=-1)[:, 1:]
    boxes = box_ops.decode(deltas.astype(jnp.float32), proposals.boxes[:, None], weights=config.delta_weights)
    boxes = box_ops.clip(boxes, image_size)
    # Drops NaN as well, and boxes at infinity, which clipping has made empty.
    large = box_ops.large_enough(boxes, config.min_box_size) & proposals.valid[:, None]
    return boxes, jnp.where(large, scores, -jnp.inf)


def _best(
    boxes: jax.Array, scores: jax.Array, classes: jax.Array, count: int
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """The `count` boxes of highest score, padded with zeros; boxes with a score of -inf are left out."""
    scores, indices = jax.lax.top_k(scores, min(count, scores.shape[0]))
    missing = count - scores.shape[0]
    valid = jnp.pad(jnp.isfinite(scores), (0, missing))
    boxes = jnp.pad(boxes[indices], ((0, missing), (0, 0)))
    scores, classes = jnp.pad(scores, (0, missing)), jnp.pad(classes[indices], (0, missing))
    return jnp.where(valid[:, None], boxes, 0.0), jnp.where(valid, scores, 0.0), jnp.where(valid, classes, 0), valid
