"""The forward pass of training: from a batch to its losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mrcnn_jax import losses, targets
from mrcnn_jax.config import ModelConfig
from mrcnn_jax.models.mask_rcnn import MaskRCNN, Variables, level_anchors, pool_rois, propose
from mrcnn_jax.structures import Batch, GroundTruth, Proposals, SampledRoIs

Metrics = dict[str, jax.Array]


def forward_losses(
    model: MaskRCNN,
    config: ModelConfig,
    variables: Variables,
    batch: Batch,
    keys: jax.Array,
    rois: SampledRoIs | None = None,
) -> tuple[dict[str, losses.Loss], tuple[dict[str, Any], Metrics]]:
    """Each loss of a batch as (sum, count), then the new running statistics and some counts.

    keys: (B,) PRNG keys, one for each image. rois: those of `draw_rois`, which are drawn again without them.
    """
    forward = StatefulApply(model, variables)
    features = forward(model.features, batch.images, batch.image_sizes, batch.valid)
    parts, counts = losses_from_features(forward, config, features, batch, keys, rois)
    return parts, (forward.statistics(), counts)


def draw_rois(
    model: MaskRCNN, config: ModelConfig, variables: Variables, batch: Batch, keys: jax.Array
) -> tuple[SampledRoIs, Metrics]:
    """The RoIs that `forward_losses` looks at, and what it would count for each loss.

    No count depends on what the heads say, so the heads are dead code here, which JAX removes.
    """
    forward = StatefulApply(model, variables)
    features = forward(model.features, batch.images, batch.image_sizes, batch.valid)
    parts, rois = two_stage_losses(forward, config, features, batch, keys, None)
    return rois, {name: count for name, (_, count) in parts.items()}


class StatefulApply:
    """Calls a model's methods, each with the running statistics that the one before left.

    With `train=False` batch norms use the running statistics, and leave them as they are.
    """

    def __init__(self, model: MaskRCNN, variables: Variables, *, train: bool = True):
        self.model, self.variables, self.train = model, variables, train

    def __call__(self, method: Callable[..., Any], *args: Any) -> Any:
        result, statistics = self.model.apply(
            self.variables, *args, train=self.train, method=method, mutable=list(self.statistics())
        )
        self.variables = {**self.variables, **statistics}
        return result

    def statistics(self) -> dict[str, Any]:
        """The collections of running statistics as they are now."""
        return {name: tree for name, tree in self.variables.items() if name not in ("params", "frozen")}


def losses_from_features(
    forward: StatefulApply,
    config: ModelConfig,
    features: tuple[jax.Array, ...],
    batch: Batch,
    keys: jax.Array,
    rois: SampledRoIs | None = None,
) -> tuple[dict[str, losses.Loss], Metrics]:
    """Everything after the features: RPN, proposals, targets, heads, losses. Of the images only their shape is used."""
    parts, rois = two_stage_losses(forward, config, features, batch, keys, rois)
    return parts, {"num_rois": jnp.sum(rois.valid), "num_positive_rois": jnp.sum(rois.classes > 0)}


def two_stage_losses(
    forward: StatefulApply,
    config: ModelConfig,
    features: tuple[jax.Array, ...],
    batch: Batch,
    keys: jax.Array,
    rois: SampledRoIs | None,
) -> tuple[dict[str, losses.Loss], SampledRoIs]:
    """The losses of RPN and heads, and the RoIs between them."""
    truth = batch.ground_truth._replace(valid=batch.ground_truth.valid & batch.valid[:, None])
    logits, deltas = forward.model.apply(forward.variables, features, method=forward.model.rpn)
    anchors = level_anchors(config, batch.images.shape[1:3], [level.shape[1:3] for level in features])
    rpn_keys, roi_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)

    all_anchors = jnp.concatenate([jnp.asarray(level) for level in anchors])
    parts = _rpn_losses(config, rpn_keys, all_anchors, truth, batch.valid, logits, deltas)
    if rois is None:
        proposals = propose(config, logits, deltas, anchors, batch.image_sizes, train=True)
        proposals = proposals._replace(valid=proposals.valid & batch.valid[:, None])
        rois = _sample_rois(config, roi_keys, proposals, truth)
    parts |= _head_losses(forward, config, features, rois, truth, batch.valid)
    return parts, rois


def _rpn_losses(
    config: ModelConfig,
    keys: jax.Array,
    anchors: jax.Array,
    truth: GroundTruth,
    valid: jax.Array,
    logits: tuple[jax.Array, ...],
    deltas: tuple[jax.Array, ...],
) -> dict[str, losses.Loss]:
    with jax.named_scope("targets"):
        drawn = jax.vmap(lambda key, truth: targets.rpn_targets(key, anchors, truth, config.rpn))(keys, truth)
        drawn = drawn._replace(positive=drawn.positive & valid[:, None], negative=drawn.negative & valid[:, None])
    with jax.named_scope("losses"):
        objectness = losses.rpn_class_loss(jnp.concatenate(logits, axis=1), drawn)
        boxes = losses.rpn_box_loss(jnp.concatenate(deltas, axis=1), drawn, beta=config.rpn.smooth_l1_beta)
    if config.rpn.normalizer == "batch_size":
        count = config.rpn.batch_size * jnp.sum(valid)
        objectness, boxes = (objectness[0], count), (boxes[0], count)
    return {"loss_rpn_class": objectness, "loss_rpn_box": boxes}


@jax.named_scope("targets")
def _sample_rois(config: ModelConfig, keys: jax.Array, proposals: Proposals, truth: GroundTruth) -> SampledRoIs:
    rois = jax.vmap(lambda key, p, t: targets.sample_rois(key, p, t, config.roi))(keys, proposals, truth)
    return jax.lax.stop_gradient(rois)


def _head_losses(
    forward: StatefulApply,
    config: ModelConfig,
    features: tuple[jax.Array, ...],
    rois: SampledRoIs,
    truth: GroundTruth,
    valid: jax.Array,
) -> dict[str, losses.Loss]:
    """Losses of the box head on all sampled RoIs, of the other heads on the positive ones."""
    pooled = pool_rois(config, features, rois.boxes, config.box.pool_size)
    pooled = forward(forward.model.roi_features, pooled, _join(rois.valid))
    parts = _box_losses(forward, config, pooled, rois, truth)
    # Positives come first, and there are never more of them than the fraction allows: the rest need no masks.
    count = rois.valid.shape[1]
    limit = min(count, int(config.roi.batch_size * config.roi.positive_fraction))
    positives = jax.tree.map(lambda field: field[:, :limit], rois)

    def look_at(size: int) -> jax.Array:
        if config.features == "c4":  # the heads share res5, and what it made of these RoIs
            return _join(pooled.reshape(-1, count, *pooled.shape[1:])[:, :limit])
        return pool_rois(config, features, positives.boxes, size)

    if config.mask is not None:
        parts |= _mask_losses(forward, config, look_at(config.mask.pool_size), positives, truth)
    if config.keypoint is not None:
        parts |= _keypoint_losses(forward, config, look_at(config.keypoint.pool_size), positives, truth, valid)
    return parts


def _box_losses(
    forward: StatefulApply, config: ModelConfig, x: jax.Array, rois: SampledRoIs, truth: GroundTruth
) -> dict[str, losses.Loss]:
    class_logits, deltas = forward(forward.model.box, x, _join(rois.valid))
    shape = rois.valid.shape
    class_logits, deltas = class_logits.reshape(*shape, -1), deltas.reshape(*shape, -1, 4)
    with jax.named_scope("targets"):
        goals = jax.vmap(lambda r, t: targets.box_targets(r, t, config.box))(rois, truth)
    with jax.named_scope("losses"):
        return {
            "loss_class": losses.class_loss(class_logits, rois),
            "loss_box": losses.box_loss(deltas, goals, rois, beta=config.box.smooth_l1_beta),
        }


def _mask_losses(
    forward: StatefulApply, config: ModelConfig, x: jax.Array, rois: SampledRoIs, truth: GroundTruth
) -> dict[str, losses.Loss]:
    mask_config = config.mask
    assert mask_config is not None
    # Masks that compete are all needed; of the others, the RoI's own class only.
    competing = mask_config.activation == "softmax"
    classes = None if competing else _join(rois.classes)
    logits = forward(forward.model.mask, x, classes, _join(rois.valid & (rois.classes > 0)))
    with jax.named_scope("targets"):
        goals = jax.vmap(lambda r, t: targets.mask_targets(r, t, mask_config, config.mask_size))(rois, truth)
        taught = jax.vmap(targets.with_masks)(rois, truth)
    with jax.named_scope("losses"):
        loss = losses.softmax_mask_loss if competing else losses.mask_loss
        return {"loss_mask": loss(logits, *jax.tree.map(_join, (goals, taught)))}


def _keypoint_losses(
    forward: StatefulApply, config: ModelConfig, x: jax.Array, rois: SampledRoIs, truth: GroundTruth, valid: jax.Array
) -> dict[str, losses.Loss]:
    keypoint_config = config.keypoint
    assert keypoint_config is not None
    logits = forward.model.apply(forward.variables, x, method=forward.model.keypoints)
    with jax.named_scope("targets"):
        goals = jax.vmap(lambda r, t: targets.keypoint_targets(r, t, keypoint_config))(rois, truth)
    with jax.named_scope("losses"):
        total, count = losses.keypoint_loss(logits, jax.tree.map(_join, goals))
    if keypoint_config.normalizer == "fixed":
        rois_per_image = config.roi.batch_size * config.roi.positive_fraction
        count = keypoint_config.num_keypoints * rois_per_image * jnp.sum(valid)
    return {"loss_keypoint": (total, count)}


def _join(x: jax.Array) -> jax.Array:
    """(B, R, ...) -> (B * R, ...)."""
    return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])
