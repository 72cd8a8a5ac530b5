"""Comparisons of whole networks with runs of the reference implementations, torchvision and Detectron2.

Weights, sizes and settings come from the directory of the reference arrays, so that the tests work with any directory
of the same format.

Tolerances are twice the noise, the largest difference between float32 and float64 runs of any of the networks: runs of
torchvision, ours with these and other weights and images, and Detectron2 in float32 against ours in float64. That is
2.9e-6 in features, 3.3e-6 in the RPN, 6.1e-6 in the box head, 3.2e-5 in scores of keypoints, 2.0e-5
of the side of a box (where the image cuts it), 3.3e-5 in scores, 3.6e-4 in pixels of masks, 5.1e-7 in losses (with
statistics of the batch 1.5e-6, between torchvision's float32 and ours), 1.5e-3 in the norm and 2.5e-2 in single entries
of a gradient. The largest ones are those of group norm and of batch statistics.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from mrcnn_jax.config import ModelConfig
from mrcnn_jax.inference.detect import detect
from mrcnn_jax.models.mask_rcnn import propose
from mrcnn_jax.structures import Batch, Detections, GroundTruth, Proposals
from mrcnn_jax.training.forward import StatefulApply, two_stage_losses

FEATURES, RPN, BOX_HEAD, LOGITS = 6e-6, 7e-6, 1.3e-5, 1e-4  # relative to the largest value of an array
BOXES = 4e-5  # relative to the longer side of a box
SCORES, PROBABILITIES = 6.5e-5, 7e-4  # of detections and of the pixels of their masks, absolute
LOSSES, BATCH_LOSSES = 1.1e-6, 3.1e-6  # relative; the latter with batch statistics in batch norm
# Of the gradient of a parameter: its norm, and its single entries relative to their root mean square.
GRADIENT_NORM, GRADIENT_ENTRY = 3e-3, 5e-2


class Network(NamedTuple):
    model: Any
    config: ModelConfig
    variables: Any


class Trace(NamedTuple):
    """Intermediate results of inference."""

    stem_and_stages: tuple[jax.Array, ...]
    features: tuple[jax.Array, ...]
    logits: jax.Array  # (B, A)
    deltas: jax.Array  # (B, A, 4)
    proposals: Proposals
    class_logits: jax.Array  # (B, P, C + 1), for the reference proposals
    box_deltas: jax.Array  # (B, P, C or 1, 4), of the same
    detections: Detections


def trace(network: Network, images: np.ndarray, sizes: np.ndarray, their_proposals: list[np.ndarray]) -> Trace:
    """Run inference on normalized, padded images (B, H, W, 3). `their_proposals`: those of the reference, (P, 4)."""
    model, config, variables = network
    boxes = np.zeros((len(images), max(map(len, their_proposals)), 4), np.float32)
    for own, theirs in zip(boxes, their_proposals, strict=True):
        own[: len(theirs)] = theirs

    def run(variables, x, sizes, boxes):
        stages = model.apply(variables, x, method=lambda m, x: m.backbone(x))
        features = model.apply(variables, x, sizes, method=model.features)
        outputs = model.apply(variables, features, x.shape[1:3], method=model.rpn)
        roi_features = model.apply(variables, features, boxes, config.box.pool_size, method=model.roi_features)
        class_logits, box_deltas = model.apply(variables, roi_features, method=model.box)
        shape = boxes.shape[:2]
        return Trace(
            stages,
            features,
            jnp.concatenate(outputs.logits, axis=1),
            jnp.concatenate(outputs.deltas, axis=1),
            propose(config, outputs, sizes, train=False),
            class_logits.reshape(*shape, -1),
            box_deltas.reshape(*shape, -1, 4),
            detect(model, variables, x, sizes),
        )

    return run_once(run, variables, images, sizes, boxes)


def run_once(function: Callable[..., Any], *arguments: Any) -> Any:
    """Compile and run a function without caching it, because a large network takes gigabytes; return NumPy arrays."""
    return jax.tree.map(np.asarray, jax.jit(function).lower(*arguments).compile()(*arguments))


def max_relative(ours, theirs) -> float:
    """Return the largest difference relative to the largest value."""
    return np.max(np.abs(np.asarray(ours) - theirs), initial=0) / max(np.max(np.abs(theirs), initial=0), 1e-30)


def assert_same_map(level: np.ndarray, theirs: dict[str, np.ndarray], name: str) -> None:
    """Compare a feature map with the shape, slice and channel means in the reference file."""
    level = level.transpose(0, 3, 1, 2)
    assert level.shape == tuple(theirs[f"{name}/shape"]), name
    part = level[:, :8, ::2, ::2] if level.shape[2] > 8 else level[:, :16]
    assert max_relative(part, theirs[f"{name}/slice"]) < FEATURES, name
    # In float64: a float32 mean over a strided view is summed sequentially, with a larger error than the tolerance.
    assert max_relative(level.mean((0, 2, 3), dtype=np.float64), theirs[f"{name}/chan_mean"]) < FEATURES, name


def same_boxes(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Return which of our boxes (n, 4) equal theirs (m, 4) up to rounding, (m, n) bool."""
    sides = (theirs[:, 2:] - theirs[:, :2]).max(axis=1, initial=0)
    # The error of a delta scales with the size of the box; a coordinate is rounded to its own precision.
    bounds = BOXES * sides + 4 * np.spacing(np.abs(theirs).max(axis=1, initial=0).astype(np.float32))
    return np.abs(theirs[:, None] - ours[None]).max(axis=-1) <= bounds[:, None]


def pair(same: np.ndarray) -> np.ndarray:
    """Match each row of `same` (n, n) to a column where it is True; return the columns.

    Nearest neighbors are not enough: two boxes of a set may be equal up to rounding.
    """
    columns = maximum_bipartite_matching(csr_array(same), perm_type="column")
    assert same.shape[0] == same.shape[1], f"{same.shape[1]}, not {same.shape[0]}"
    assert np.all(columns >= 0), f"unmatched: {np.flatnonzero(columns < 0)}"
    return columns


def assert_same_proposals(boxes, scores, their_boxes, their_scores, bound: float) -> None:
    """Compare the proposals of an image; the order may differ among scores within `bound`."""
    order = pair(same_boxes(boxes, their_boxes) & (np.abs(scores[None] - their_scores[:, None]) <= bound))
    assert np.all(np.abs(scores[order] - scores) <= bound), "the order"


def assert_same_box_head(run: Trace, i: int, class_logits, box_deltas) -> None:
    """Compare class logits (P, C + 1) and the first columns of the deltas (P, C or 1, 4) of image i."""
    count, columns = box_deltas.shape[:2]
    assert max_relative(run.class_logits[i][:count], class_logits) < BOX_HEAD
    assert max_relative(run.box_deltas[i][:count, :columns], box_deltas) < BOX_HEAD


def assert_same_detections(ours, theirs) -> np.ndarray:
    """Compare boxes, scores and labels; the order may differ among scores that are equal up to rounding.

    Returns the indices of our detections in the order of theirs.
    """
    (boxes, scores, labels), (their_boxes, their_scores, their_labels) = (
        map(np.asarray, side) for side in (ours, theirs)
    )
    close = np.abs(scores[None] - their_scores[:, None]) <= SCORES
    order = pair(same_boxes(boxes, their_boxes) & close & (labels[None] == their_labels[:, None]))
    assert np.all(np.abs(scores[order] - scores) <= SCORES), "the order"
    return order


def share_found(wide, narrow, above: float = 0.3, within: float = 1.0) -> tuple[int, int]:
    """Return how many detections of `wide` with a score above `above` are in `narrow`, and how many there are.

    A detection is in `narrow` if one of the same class has all coordinates `within` that many pixels. Both arguments:
    (boxes, scores, classes, valid).
    """
    found = count = 0
    for boxes, scores, classes, valid, *others in zip(*map(np.asarray, (*wide, *narrow)), strict=True):
        candidates, _, labels, exist = others
        for box, label in zip(boxes[valid & (scores > above)], classes[valid & (scores > above)], strict=True):
            close = np.abs(candidates - box).max(1) <= within
            found += bool(np.any(close & (labels == label) & exist))
            count += 1
    return found, count


def assert_same_pasted(masks: np.ndarray, packed: np.ndarray) -> None:
    """Compare pasted bool masks (n, h, w) with np.packbits of theirs: at most 0.1 % of the pixels of a mask differ."""
    count, height, width = masks.shape
    theirs = np.unpackbits(packed, axis=1)[:, : height * width].reshape(count, height, width).astype(bool)
    assert (masks != theirs).mean((1, 2)).max(initial=0) <= 0.001


def assert_same_keypoints(ours: np.ndarray, theirs: np.ndarray, scores_atol: float, cell: np.ndarray) -> None:
    """Compare keypoints (n, K, 3).

    Positions are equal up to rounding, except where two pixels of a heat map are equally high up to rounding.
    `cell` (n,): the largest side of a pixel of the resized heat map.
    """
    np.testing.assert_allclose(ours[..., 2], theirs[..., 2], atol=scores_atol)
    moved = np.abs(ours[..., :2] - theirs[..., :2]).max(-1) > 1e-2
    assert moved.mean() <= 0.005, f"{moved.sum()} of {moved.size} keypoints are elsewhere"
    assert np.all(np.abs(ours[..., :2] - theirs[..., :2]).max(-1) <= 1.5 * cell[:, None]), "not the neighboring pixel"


def losses_and_gradients(
    network: Network, images: np.ndarray, batch: Batch, *, positives: int, batch_statistics: bool = True
):
    """Return gradients of the sum of all losses, the losses, the sampled RoIs, and the new running statistics.

    All RoIs are sampled. positives: the largest number of positive RoIs in an image, for the mask and keypoint heads.
    batch_statistics: whether batch norm uses statistics of the batch or the running ones.
    """
    model, config, variables = network
    fraction = (positives + 0.5) / config.roi.batch_size
    model = model.clone(config=replace(config, roi=replace(config.roi, positive_fraction=fraction)))
    keys = jax.random.split(jax.random.key(0), len(images))

    def loss(params, variables, images):
        apply = StatefulApply(model, {**variables, "params": params}, train=batch_statistics)
        parts, rois = two_stage_losses(apply, batch._replace(images=images), keys)
        parts = {name: total / jnp.maximum(count, 1) for name, (total, count) in parts.items()}
        return sum(parts.values()), (parts, rois, apply.statistics())

    gradients, others = run_once(jax.grad(loss, has_aux=True), variables["params"], variables, images)
    return gradients, *others


def assert_same_gradients(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray], noise: float = 1e-7) -> None:
    """Compare norms, sums and first entries of the gradient of every parameter; `ours` under the reference names.

    Gradients that are zero in exact arithmetic are rounding noise, at most of size `noise`.
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
        np.testing.assert_allclose(np.linalg.norm(ours[name]), norm, rtol=GRADIENT_NORM, atol=noise, err_msg=name)
        entry = GRADIENT_ENTRY * norm / np.sqrt(ours[name].size)
        np.testing.assert_allclose(ours[name].ravel()[:8], first[: ours[name].size], atol=entry, err_msg=name)
        # Errors are correlated where inputs are positive, so the sum is compared relative to the norm (noise up to 0.11
        # with batch statistics) and, where it is much larger, relative to itself.
        np.testing.assert_allclose(ours[name].sum(dtype=np.float64), total, atol=0.15 * norm, rtol=1e-2, err_msg=name)


def padded_truth(boxes, classes, keypoints, slots: int, masks=None, shape=(0, 0)) -> GroundTruth:
    """Pad the ground truth of one image to `slots` slots; `masks` are bitmaps of the padded image, of `shape`."""
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
    """A batch with images of zeros, for losses that are computed from features."""
    return Batch(
        images=np.zeros((len(sizes), *shape, 3), np.uint8),
        image_sizes=sizes.astype(np.int32),
        indices=np.arange(len(sizes), dtype=np.int32),
        valid=np.ones(len(sizes), bool),
        ground_truth=jax.tree.map(lambda *fields: np.stack(fields), *truths),
    )
