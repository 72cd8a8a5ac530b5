"""Whole networks against the peers' own runs: what the tests of both peers share.

Weights come from the recipe beside the arrays, sizes and settings from the arrays and the files beside them.
Tolerances: the peers' own float32 runs differ from float64 by 2e-6 in features, 3e-5 in class logits and mask
probabilities, 5e-7 in losses, and 6e-4 in the worst gradient norm (`tv_f32_vs_f64_*.json`, relative to the largest
value); two float32 programs may differ by twice that, or a little more where networks are deeper.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mrcnn_jax.config import ModelConfig
from mrcnn_jax.models import rcnn
from mrcnn_jax.structures import Batch, Detections, GroundTruth, Proposals
from mrcnn_jax.training.forward import Forward, losses_from_features

FEATURES, LOGITS = 6e-6, 1e-4  # of the largest value
# Of the box head's class logits and deltas at the peer's own proposals. At ours, which lie up to 5e-4 px away, they
# would differ by 1e-4 where a box is a few pixels wide.
BOX_HEAD = 2e-5
# Of masks. Logits reach 10: 1e-4 of that moves a probability by a quarter as much, 2.5e-4; and the mask of a box 10 px
# wide, pooled from corners 1e-3 px away, is shifted by 3e-3 of a cell, where it may change by a tenth to the next one.
PROBABILITIES = 5e-4


class Network(NamedTuple):
    model: Any
    config: ModelConfig
    variables: Any


class Trace(NamedTuple):
    """What inference computes on its way."""

    stem_and_stages: tuple[jax.Array, ...]
    features: tuple[jax.Array, ...]
    logits: jax.Array  # (B, A)
    deltas: jax.Array  # (B, A, 4)
    proposals: Proposals
    class_logits: jax.Array  # (B, P, C + 1), of the peer's proposals
    box_deltas: jax.Array  # (B, P, C or 1, 4), of the same
    detections: Detections


def trace(network: Network, images: np.ndarray, sizes: np.ndarray, their_proposals: list[np.ndarray]) -> Trace:
    """Inference on normalised, padded images (B, H, W, 3), in NumPy; `their_proposals` are the peer's, (P, 4) each."""
    model, config, variables = network
    boxes = np.zeros((len(images), max(map(len, their_proposals)), 4), np.float32)
    for own, theirs in zip(boxes, their_proposals, strict=True):
        own[: len(theirs)] = theirs

    @jax.jit
    def run(variables, x, sizes, boxes):
        stages = model.apply(variables, x, method=lambda m, x: m.backbone(x))
        features = model.apply(variables, x, method=model.feature_maps)
        logits, deltas = model.apply(variables, features, method=model.rpn)
        anchors = rcnn.level_anchors(config, x.shape[1:3], [level.shape[1:3] for level in features])
        proposals = rcnn.propose(config, logits, deltas, anchors, sizes, train=False)
        pooled = rcnn.pool_rois(config, features, boxes, config.box.pool_size)
        seen = model.apply(variables, pooled, method=model.roi_features)
        class_logits, box_deltas = model.apply(variables, seen, method=model.box)
        shape = boxes.shape[:2]
        return Trace(
            stages,
            features,
            jnp.concatenate(logits, axis=1),
            jnp.concatenate(deltas, axis=1),
            proposals,
            class_logits.reshape(*shape, -1),
            box_deltas.reshape(*shape, -1, 4),
            rcnn.detect(model, variables, x, sizes),
        )

    return jax.tree.map(np.asarray, run(variables, images, sizes, boxes))


def max_relative(ours, theirs) -> float:
    """Largest difference over the largest value: the measure of the float32-against-float64 tables."""
    return np.max(np.abs(np.asarray(ours) - theirs), initial=0) / max(np.max(np.abs(theirs), initial=0), 1e-30)


def assert_same_map(level: np.ndarray, theirs: dict[str, np.ndarray], name: str) -> None:
    """A feature map against the shape, slice and channel means that the peer's file keeps of its own."""
    level = level.transpose(0, 3, 1, 2)
    assert level.shape == tuple(theirs[f"{name}/shape"]), name
    part = level[:, :8, ::2, ::2] if level.shape[2] > 8 else level[:, :16]
    assert max_relative(part, theirs[f"{name}/slice"]) < FEATURES, name
    assert max_relative(level.mean((0, 2, 3)), theirs[f"{name}/chan_mean"]) < FEATURES, name


def assert_same_proposals(run: Trace, i: int, boxes, logits) -> None:
    """The same proposals of image i; the order is free among those whose logits differ by less than 1e-4."""
    ours, theirs = run.proposals, np.asarray(boxes)
    count = int(ours.valid[i].sum())
    assert count == len(theirs)
    own = ours.boxes[i][:count]
    order = np.abs(theirs[:, None] - own[None]).max(-1).argmin(1)
    assert len(set(order)) == count
    np.testing.assert_allclose(own[order], theirs, atol=2e-3)
    np.testing.assert_allclose(ours.scores[i][order], logits, atol=1e-4)
    assert np.all(np.abs(ours.scores[i][:count] - ours.scores[i][order]) < 1e-4), "the order"


def assert_same_box_head(run: Trace, i: int, class_logits, box_deltas) -> None:
    """The same class logits (P, C + 1) and deltas (P, C or 1, 4), or the first columns of them, for image i."""
    count, columns = box_deltas.shape[:2]
    assert max_relative(run.class_logits[i][:count], class_logits) < BOX_HEAD
    assert max_relative(run.box_deltas[i][:count, :columns], box_deltas) < BOX_HEAD


def assert_same_detections(ours, theirs, side, ratio: float = 1.0) -> list[int]:
    """The same set, in the same order except among scores that differ by less than 1e-4. Returns our matching order.

    `side`: the longer one of the network's image; `ratio`: how many times as large the image of the boxes is, for that
    enlarges the noise as well.
    """
    boxes, scores, labels = (np.asarray(field) for field in ours)
    assert len(scores) == len(theirs[1])
    tolerance = max(1e-3, 4e-6 * side) * max(1.0, ratio)
    order: list[int] = []
    for box, score, label in zip(*theirs, strict=True):
        same = (np.abs(boxes - box).max(1) <= tolerance) & (np.abs(scores - score) <= 1e-4) & (labels == label)
        candidates = [i for i in np.flatnonzero(same) if i not in order]
        assert candidates, f"no detection of class {label} at {box} with score {score}"
        order.append(candidates[0])
    assert np.all(np.abs(scores[order] - scores) <= 1e-4)
    return order


def share_found(wide, narrow, above: float = 0.3, within: float = 1.0) -> tuple[int, int]:
    """How many detections of `wide` score more than `above`, and for how many of these `narrow` has one of the same
    class whose coordinates all lie `within` so many pixels: the latter first. Both: boxes, scores, classes, valid."""
    found = count = 0
    for boxes, scores, classes, valid, *others in zip(*map(np.asarray, (*wide, *narrow)), strict=True):
        candidates, _, labels, exist = others
        for box, label in zip(boxes[valid & (scores > above)], classes[valid & (scores > above)], strict=True):
            close = np.abs(candidates - box).max(1) <= within
            found += bool(np.any(close & (labels == label) & exist))
            count += 1
    return found, count


def assert_same_pasted(masks: np.ndarray, packed: np.ndarray) -> None:
    """Pasted bool masks (n, h, w) against np.packbits of theirs: at most 0.1 % of the pixels of any differ."""
    count, height, width = masks.shape
    theirs = np.unpackbits(packed, axis=1)[:, : height * width].reshape(count, height, width).astype(bool)
    assert (masks != theirs).mean((1, 2)).max(initial=0) <= 0.001


def assert_same_keypoints(ours: np.ndarray, theirs: np.ndarray, scores_atol: float, cell: np.ndarray) -> None:
    """Keypoints (n, K, 3). A peak is a pixel, so a position is the same up to rounding, unless two pixels are as high
    to rounding: then the score tells. `cell` (n,): the largest side of a pixel of the resized heat map.
    """
    np.testing.assert_allclose(ours[..., 2], theirs[..., 2], atol=scores_atol)
    moved = np.abs(ours[..., :2] - theirs[..., :2]).max(-1) > 1e-2
    assert moved.mean() <= 0.005, f"{moved.sum()} of {moved.size} keypoints are elsewhere"
    assert np.all(np.abs(ours[..., :2] - theirs[..., :2]).max(-1) <= 1.5 * cell[:, None]), "not the neighbouring pixel"


def losses_and_gradients(
    network: Network, images: np.ndarray, batch: Batch, *, positives: int, batch_statistics: bool = True
):
    """Gradients of the sum of all losses, the losses, counts. `batch_statistics=False`: with running ones.

    All RoIs are taken. `positives`: the most that an image has; no more of them need go to the mask or keypoint head.
    """
    model, config, variables = network
    fraction = (positives + 0.5) / config.roi.batch_size
    config = replace(config, roi=replace(config.roi, positive_fraction=fraction))
    keys = jax.random.split(jax.random.key(0), len(images))

    def loss(params, variables, images):
        forward = Forward(model, {**variables, "params": params}, train=batch_statistics)
        features = forward(model.feature_maps, images)
        parts, counts = losses_from_features(forward, config, features, batch, keys)
        parts = {name: total / jnp.maximum(count, 1) for name, (total, count) in parts.items()}
        return sum(parts.values()), (parts, counts)

    gradients, (parts, counts) = jax.jit(jax.grad(loss, has_aux=True))(variables["params"], variables, images)
    return gradients, parts, counts


def assert_same_gradients(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray], noise: float = 1e-7) -> None:
    """Norms, sums and first entries of every parameter's gradient; `ours` under the peer's names.

    A gradient that is zero in exact arithmetic is rounding noise, of the size `noise` or less.
    """
    frozen = [name for name in theirs["no_grad_names"] if name]
    assert set(theirs["grad_names"]) | set(frozen) == set(ours)
    for name in frozen:
        assert not ours[name].any(), f"{name} is frozen"
    for name, norm, total, first in zip(
        *(theirs[key] for key in ("grad_names", "grad_norm", "grad_sum", "grad_first8")), strict=True
    ):
        if norm < 10 * noise:
            assert np.linalg.norm(ours[name]) < 20 * noise, name
            continue
        np.testing.assert_allclose(np.linalg.norm(ours[name]), norm, rtol=2e-3, atol=noise, err_msg=name)
        # Single entries are measured against their root mean square, whose noise is 2.5e-2 at worst (group norm; 2e-3
        # with frozen batch norm). Errors of neighbours are alike where inputs are positive, so the sum is measured
        # against the norm (noise 0.11 at worst, with batch statistics) and, where it is many norms, against itself.
        entry = norm / np.sqrt(ours[name].size)
        np.testing.assert_allclose(ours[name].ravel()[:8], first[: ours[name].size], atol=5e-2 * entry, err_msg=name)
        np.testing.assert_allclose(ours[name].sum(dtype=np.float64), total, atol=0.15 * norm, rtol=1e-2, err_msg=name)


def padded_truth(boxes, classes, keypoints, slots: int, masks=None, shape=(0, 0)) -> GroundTruth:
    """Ground truth of one image in `slots` slots; `masks` are whole bitmaps of the padded image, of `shape`."""
    empty = slots - len(classes)

    def pad(values, dtype):
        values = np.asarray(values, dtype)
        return np.pad(values, [(0, empty)] + [(0, 0)] * (values.ndim - 1))

    return GroundTruth(
        boxes=pad(boxes, np.float32),
        classes=pad(classes, np.int32),
        masks=pad(masks if masks is not None else np.zeros((len(classes), 0, 0)), np.uint8),
        mask_windows=np.tile(np.float32([0, 0, shape[1], shape[0]]), (slots, 1)),
        keypoints=pad(keypoints, np.float32),
        valid=np.arange(slots) < len(classes),
    )


def make_batch(shape: tuple[int, ...], sizes: np.ndarray, truths: list[GroundTruth]) -> Batch:
    """A batch without pixels: the losses are computed from features."""
    return Batch(
        images=np.zeros((len(sizes), *shape, 3), np.uint8),
        image_sizes=sizes.astype(np.int32),
        indices=np.arange(len(sizes), dtype=np.int32),
        valid=np.ones(len(sizes), bool),
        ground_truth=jax.tree.map(lambda *fields: np.stack(fields), *truths),
    )
