"""From the box head's outputs to detections: scores, class-wise NMS, the best few (Girshick 2015, section 3)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mrcnn_jax.ops import boxes as box_ops
from mrcnn_jax.ops.nms import batched_nms, nms_sorted
from mrcnn_jax.structures import Proposals


def detect(
    class_logits: jax.Array,
    deltas: jax.Array,
    proposals: Proposals,
    image_size: jax.Array,
    *,
    delta_weights: tuple[float, float, float, float],
    score_threshold: float,
    nms_iou: float,
    max_detections: int,
    nms_candidates: int,
    min_box_size: float,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]:
    """Detections of one image, best first: boxes (D, 4), scores (D,), classes (D,) int32, valid (D,), truncated ().

    class_logits (P, C+1), background at 0; deltas (P, C, 4), or (P, 1, 4) for a class-agnostic head; image_size (2,)
    height and width of the picture. D = max_detections; slots without a detection hold zeros. A candidate is a pair
    of a proposal and a class with a softmax probability > score_threshold whose clipped box has sides >= min_box_size
    (0: not empty); what is not finite is dropped. The best `nms_candidates` enter NMS inside their class. `truncated`
    says that this cap may have cost a detection: there were more candidates, and fewer than D survived.
    """
    boxes, scores = _candidates(
        class_logits, deltas, proposals, image_size, delta_weights=delta_weights, min_box_size=min_box_size
    )
    number, classes = scores.shape
    flat = jnp.where(scores > score_threshold, scores, -jnp.inf).reshape(-1)
    candidates = jnp.sum(jnp.isfinite(flat), dtype=jnp.int32)
    flat, indices = jax.lax.top_k(flat, min(nms_candidates, number * classes))
    rows, columns = indices // classes, indices % classes
    boxes = boxes[rows, jnp.minimum(columns, boxes.shape[1] - 1)]
    (keep,) = nms_sorted([(boxes, columns, jnp.isfinite(flat))], iou_threshold=nms_iou)
    survivors = jnp.sum(keep, dtype=jnp.int32)
    best = _best(boxes, jnp.where(keep, flat, -jnp.inf), columns + 1, max_detections)
    return *best, (candidates > nms_candidates) & (survivors < max_detections)


def merge(
    boxes: jax.Array, scores: jax.Array, classes: jax.Array, valid: jax.Array, *, nms_iou: float, max_detections: int
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Detections of one image that were found apart, as one list, best first: boxes (D, 4), scores, classes, valid.

    boxes (N, 4), scores (N,), classes (N,) in 1..C, valid (N,). NMS inside each class, then the best D =
    max_detections; slots without a detection hold zeros.
    """
    keep = batched_nms(boxes, scores, classes, valid, iou_threshold=nms_iou)
    return _best(boxes, jnp.where(keep, scores, -jnp.inf), classes, max_detections)


def _candidates(
    class_logits: jax.Array,
    deltas: jax.Array,
    proposals: Proposals,
    image_size: jax.Array,
    *,
    delta_weights: tuple[float, float, float, float],
    min_box_size: float,
) -> tuple[jax.Array, jax.Array]:
    """Clipped boxes (P, C or 1, 4) and probabilities (P, C), -inf where the pair is not to be considered."""
    scores = jax.nn.softmax(class_logits.astype(jnp.float32), axis=-1)[:, 1:]
    boxes = box_ops.decode(deltas.astype(jnp.float32), proposals.boxes[:, None], weights=delta_weights)
    boxes = box_ops.clip(boxes, image_size)
    # A NaN is never large enough, and a box at infinity has been cut to an empty one.
    fit = box_ops.large_enough(boxes, min_box_size) & proposals.valid[:, None]
    return boxes, jnp.where(fit, scores, -jnp.inf)


def _best(
    boxes: jax.Array, scores: jax.Array, classes: jax.Array, count: int
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """The `count` best; a score of -inf marks a box that is out."""
    scores, indices = jax.lax.top_k(scores, min(count, scores.shape[0]))
    missing = count - scores.shape[0]
    valid = jnp.pad(jnp.isfinite(scores), (0, missing))
    boxes = jnp.pad(boxes[indices], ((0, missing), (0, 0)))
    scores, classes = jnp.pad(scores, (0, missing)), jnp.pad(classes[indices], (0, missing))
    return jnp.where(valid[:, None], boxes, 0.0), jnp.where(valid, scores, 0.0), jnp.where(valid, classes, 0), valid
