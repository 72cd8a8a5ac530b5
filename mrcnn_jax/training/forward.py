"""The forward pass of training: from a batch to its losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mrcnn_jax import losses, targets
from mrcnn_jax.config import ModelConfig
from mrcnn_jax.models.mask_rcnn import MaskRCNN, RPNOutputs, Variables, propose
from mrcnn_jax.structures import Batch, GroundTruth, Proposals, SampledRoIs

Metrics = dict[str, jax.Array]
LossDict = dict[str, losses.Loss]  # loss name -> (sum, count)


def forward_losses(
    model: MaskRCNN, variables: Variables, batch: Batch, keys: jax.Array, rois: SampledRoIs | None = None
) -> tuple[LossDict, tuple[dict[str, Any], Metrics]]:
    """Compute the losses of a batch.

    keys: (B,) PRNG keys, one per image. rois: result of `sample_batch_rois`; sampled here if None.
    Returns (loss_dict, (running statistics, counts of RoIs)).
    """
    apply = StatefulApply(model, variables)
    loss_dict, rois = two_stage_losses(apply, batch, keys, rois)
    counts = {"num_rois": jnp.sum(rois.valid), "num_positive_rois": jnp.sum(rois.classes > 0)}
    return loss_dict, (apply.statistics(), counts)


def sample_batch_rois(
    model: MaskRCNN, variables: Variables, batch: Batch, keys: jax.Array
) -> tuple[SampledRoIs, Metrics]:
    """Sample the RoIs that `forward_losses` would sample, and return them with the count of each loss.

    The counts do not depend on the outputs of the heads, so JAX removes the heads as dead code.
    """
    loss_dict, rois = two_stage_losses(StatefulApply(model, variables), batch, keys)
    return rois, {name: count for name, (_, count) in loss_dict.items()}


class StatefulApply:
    """Applies methods of a model, passing the updated running statistics from each call to the next.

    With `train=False`, batch norm uses the running statistics and does not update them.
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
        """Return the current collections of running statistics."""
        return {name: tree for name, tree in self.variables.items() if name not in ("params", "frozen")}


def two_stage_losses(
    apply: StatefulApply, batch: Batch, keys: jax.Array, rois: SampledRoIs | None = None
) -> tuple[LossDict, SampledRoIs]:
    """Compute the losses of the RPN and the RoI heads; return them with the RoIs, which are sampled if None."""
    config = apply.model.config
    truth = batch.ground_truth._replace(valid=batch.ground_truth.valid & batch.valid[:, None])
    features = apply(apply.model.features, batch.images, batch.image_sizes, batch.valid)
    outputs = apply.model.apply(apply.variables, features, batch.images.shape[1:3], method=apply.model.rpn)
    rpn_keys, roi_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)

    loss_dict = _rpn_losses(config, rpn_keys, outputs, truth, batch.valid)
    if rois is None:
        proposals = propose(config, outputs, batch.image_sizes, train=True)
        proposals = proposals._replace(valid=proposals.valid & batch.valid[:, None])
        rois = _sample_rois(config, roi_keys, proposals, truth)
    loss_dict |= _head_losses(apply, features, rois, truth, batch.valid)
    return loss_dict, rois


def _rpn_losses(
    config: ModelConfig, keys: jax.Array, outputs: RPNOutputs, truth: GroundTruth, valid: jax.Array
) -> LossDict:
    anchors = jnp.concatenate([jnp.asarray(level) for level in outputs.anchors])
    with jax.named_scope("targets"):
        sampled = jax.vmap(lambda key, truth: targets.rpn_targets(key, anchors, truth, config.rpn))(keys, truth)
        sampled = sampled._replace(
            positive=sampled.positive & valid[:, None], negative=sampled.negative & valid[:, None]
        )
    with jax.named_scope("losses"):
        class_loss = losses.rpn_class_loss(jnp.concatenate(outputs.logits, axis=1), sampled)
        box_loss = losses.rpn_box_loss(jnp.concatenate(outputs.deltas, axis=1), sampled, beta=config.rpn.smooth_l1_beta)
    if config.rpn.normalizer == "batch_size":
        count = config.rpn.batch_size * jnp.sum(valid)
        class_loss, box_loss = (class_loss[0], count), (box_loss[0], count)
    return {"loss_rpn_class": class_loss, "loss_rpn_box": box_loss}


@jax.named_scope("targets")
def _sample_rois(config: ModelConfig, keys: jax.Array, proposals: Proposals, truth: GroundTruth) -> SampledRoIs:
    rois = jax.vmap(lambda key, p, t: targets.sample_rois(key, p, t, config.roi))(keys, proposals, truth)
    return jax.lax.stop_gradient(rois)


def _head_losses(
    apply: StatefulApply, features: tuple[jax.Array, ...], rois: SampledRoIs, truth: GroundTruth, valid: jax.Array
) -> LossDict:
    """Compute the loss of the box head on all sampled RoIs, and of the other heads on the positive ones."""
    config = apply.model.config
    x = apply(apply.model.roi_features, features, rois.boxes, config.box.pool_size, _flatten(rois.valid))
    loss_dict = _box_losses(apply, x, rois, truth)
    # Positives come first, and there are at most `max_positives` of them: no other RoI needs a mask.
    num_rois = rois.valid.shape[1]
    max_positives = min(num_rois, int(config.roi.batch_size * config.roi.positive_fraction))
    positives = jax.tree.map(lambda field: field[:, :max_positives], rois)

    def positive_features(size: int) -> jax.Array:
        if config.features == "c4":  # the heads share the output of res5
            return _flatten(x.reshape(-1, num_rois, *x.shape[1:])[:, :max_positives])
        return apply(apply.model.roi_features, features, positives.boxes, size)

    if config.mask is not None:
        loss_dict |= _mask_losses(apply, positive_features(config.mask.pool_size), positives, truth)
    if config.keypoint is not None:
        inputs = positive_features(config.keypoint.pool_size)
        loss_dict |= _keypoint_losses(apply, inputs, positives, truth, valid)
    return loss_dict


def _box_losses(apply: StatefulApply, x: jax.Array, rois: SampledRoIs, truth: GroundTruth) -> LossDict:
    config = apply.model.config.box
    class_logits, deltas = apply(apply.model.box, x, _flatten(rois.valid))
    shape = rois.valid.shape
    class_logits, deltas = class_logits.reshape(*shape, -1), deltas.reshape(*shape, -1, 4)
    with jax.named_scope("targets"):
        target_deltas = jax.vmap(lambda r, t: targets.box_targets(r, t, config))(rois, truth)
    with jax.named_scope("losses"):
        return {
            "loss_class": losses.class_loss(class_logits, rois),
            "loss_box": losses.box_loss(deltas, target_deltas, rois, beta=config.smooth_l1_beta),
        }


def _mask_losses(apply: StatefulApply, x: jax.Array, rois: SampledRoIs, truth: GroundTruth) -> LossDict:
    config, size = apply.model.config.mask, apply.model.config.mask_size
    assert config is not None
    # A softmax over classes needs all logits; the sigmoid only those of the RoI's own class.
    softmax = config.activation == "softmax"
    classes = None if softmax else _flatten(rois.classes)
    logits = apply(apply.model.mask, x, classes, _flatten(rois.valid & (rois.classes > 0)))
    with jax.named_scope("targets"):
        masks = jax.vmap(lambda r, t: targets.mask_targets(r, t, config, size))(rois, truth)
        rois_with_masks = jax.vmap(targets.with_masks)(rois, truth)
    with jax.named_scope("losses"):
        loss = losses.softmax_mask_loss if softmax else losses.mask_loss
        return {"loss_mask": loss(logits, *jax.tree.map(_flatten, (masks, rois_with_masks)))}


def _keypoint_losses(
    apply: StatefulApply, x: jax.Array, rois: SampledRoIs, truth: GroundTruth, valid: jax.Array
) -> LossDict:
    config, roi = apply.model.config.keypoint, apply.model.config.roi
    assert config is not None
    logits = apply.model.apply(apply.variables, x, method=apply.model.keypoints)
    with jax.named_scope("targets"):
        cells = jax.vmap(lambda r, t: targets.keypoint_targets(r, t, config))(rois, truth)
    with jax.named_scope("losses"):
        total, count = losses.keypoint_loss(logits, jax.tree.map(_flatten, cells))
    if config.normalizer == "fixed":
        count = config.num_keypoints * roi.batch_size * roi.positive_fraction * jnp.sum(valid)
    return {"loss_keypoint": (total, count)}


def _flatten(x: jax.Array) -> jax.Array:
    """Merge images and RoIs into one axis: (B, R, ...) -> (B * R, ...)."""
    return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])
