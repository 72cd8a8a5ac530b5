"""One training step as a pure function: `train_step(state, batch, key) -> (state, metrics)`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mrcnn_jax import losses, targets
from mrcnn_jax.config import Config, ModelConfig
from mrcnn_jax.models.rcnn import MaskRCNN, Variables, level_anchors, pool_rois, propose
from mrcnn_jax.structures import Batch, GroundTruth, Proposals, SampledRoIs

Metrics = dict[str, jax.Array]
TrainStep = Callable[["TrainState", Batch, jax.Array], tuple["TrainState", Metrics]]


class TrainState(NamedTuple):
    """Everything that a checkpoint has to hold; the position in the data follows from `step`."""

    step: jax.Array  # () int32, updates made so far
    params: Any
    model_state: dict[str, Any]  # the other collections: constants of frozen batch norm, running statistics
    opt_state: Any


def create_state(optimizer: optax.GradientTransformation, variables: Variables) -> TrainState:
    """The state before the first step."""
    model_state = {name: value for name, value in variables.items() if name != "params"}
    params = variables["params"]
    return TrainState(jnp.zeros((), jnp.int32), params, model_state, optimizer.init(params))


def make_train_step(
    model: MaskRCNN,
    config: Config,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    axis_name: str | None = None,
) -> TrainStep:
    """Build the step. Under `axis_name`, n devices with a share each make the step of one device with the whole batch.

    Loss sums and counts are summed over devices and divided once, so images with few positives weigh as they should.
    """

    def train_step(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
        step_key = jax.random.fold_in(key, state.step)
        keys = jax.vmap(lambda index: jax.random.fold_in(step_key, index))(batch.indices)

        def loss(params: Any) -> Any:
            variables = {"params": params, **state.model_state}
            sums, aux = forward_losses(model, config.model, variables, batch, keys)
            parts = {name: _mean(part, axis_name) for name, part in sums.items()}
            return sum(parts.values()), (parts, aux)

        gradients, (parts, (statistics, counts)) = jax.grad(loss, has_aux=True)(state.params)
        gradients, parts, counts = _sum_over_devices((gradients, parts, counts), axis_name)
        model_state = {**state.model_state, **_mean_over_devices(statistics, axis_name)}
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        total = jnp.sum(jnp.stack(list(parts.values())))
        grad_norm = optax.global_norm(gradients)
        metrics = {
            "loss": total,
            **parts,
            **counts,
            "grad_norm": grad_norm,
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
            "finite": jnp.isfinite(total) & jnp.isfinite(grad_norm),
        }
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, model_state, opt_state), metrics

    return train_step


def forward_losses(
    model: MaskRCNN, config: ModelConfig, variables: Variables, batch: Batch, keys: jax.Array
) -> tuple[dict[str, losses.Loss], tuple[dict[str, Any], Metrics]]:
    """The whole forward pass of training: each loss as (sum, count), then the new running statistics and some counts.

    keys: (B,) PRNG keys, one for each image.
    """
    collections = [name for name in variables if name not in ("params", "frozen")]
    features, statistics = model.apply(
        variables, batch.images, batch.image_sizes, train=True, method=model.features, mutable=collections
    )
    parts, counts = losses_from_features(model, config, variables, features, batch, keys)
    return parts, (dict(statistics), counts)


def losses_from_features(
    model: MaskRCNN,
    config: ModelConfig,
    variables: Variables,
    features: tuple[jax.Array, ...],
    batch: Batch,
    keys: jax.Array,
) -> tuple[dict[str, losses.Loss], Metrics]:
    """Everything after the pyramid: RPN, proposals, targets, heads, losses. Of the images only their shape is used."""
    truth = batch.ground_truth._replace(valid=batch.ground_truth.valid & batch.valid[:, None])
    logits, deltas = model.apply(variables, features, method=model.rpn)
    anchors = level_anchors(config, batch.images.shape[1:3], [level.shape[1:3] for level in features])
    rpn_keys, roi_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)

    all_anchors = jnp.concatenate([jnp.asarray(level) for level in anchors])
    parts = _rpn_losses(config, rpn_keys, all_anchors, truth, batch.valid, logits, deltas)
    proposals = propose(config, logits, deltas, anchors, batch.image_sizes, train=True)
    proposals = proposals._replace(valid=proposals.valid & batch.valid[:, None])
    rois = _sample_rois(config, roi_keys, proposals, truth)
    parts |= _box_losses(model, config, variables, features, rois, truth)
    if config.mask is not None:
        parts |= _mask_losses(model, config, variables, features, rois, truth)
    counts = {"num_rois": jnp.sum(rois.valid), "num_positive_rois": jnp.sum(rois.classes > 0)}
    return parts, counts


def _rpn_losses(
    config: ModelConfig,
    keys: jax.Array,
    anchors: jax.Array,
    truth: GroundTruth,
    valid: jax.Array,
    logits: tuple[jax.Array, ...],
    deltas: tuple[jax.Array, ...],
) -> dict[str, losses.Loss]:
    drawn = jax.vmap(lambda key, truth: targets.rpn_targets(key, anchors, truth, config.rpn))(keys, truth)
    drawn = drawn._replace(positive=drawn.positive & valid[:, None], negative=drawn.negative & valid[:, None])
    objectness = losses.rpn_class_loss(jnp.concatenate(logits, axis=1), drawn)
    boxes = losses.rpn_box_loss(jnp.concatenate(deltas, axis=1), drawn, beta=config.rpn.smooth_l1_beta)
    if config.rpn.normalizer == "batch_size":
        count = config.rpn.batch_size * jnp.sum(valid)
        objectness, boxes = (objectness[0], count), (boxes[0], count)
    return {"loss_rpn_class": objectness, "loss_rpn_box": boxes}


def _sample_rois(config: ModelConfig, keys: jax.Array, proposals: Proposals, truth: GroundTruth) -> SampledRoIs:
    rois = jax.vmap(lambda key, p, t: targets.sample_rois(key, p, t, config.roi))(keys, proposals, truth)
    return jax.lax.stop_gradient(rois)


def _box_losses(
    model: MaskRCNN,
    config: ModelConfig,
    variables: Variables,
    features: tuple[jax.Array, ...],
    rois: SampledRoIs,
    truth: GroundTruth,
) -> dict[str, losses.Loss]:
    pooled = pool_rois(config, features, rois.boxes, config.box.pool_size)
    class_logits, deltas = model.apply(variables, pooled, method=model.box)
    shape = rois.valid.shape
    class_logits, deltas = class_logits.reshape(*shape, -1), deltas.reshape(*shape, -1, 4)
    goals = jax.vmap(lambda r, t: targets.box_targets(r, t, config.box))(rois, truth)
    return {
        "loss_class": losses.class_loss(class_logits, rois),
        "loss_box": losses.box_loss(deltas, goals, rois, beta=config.box.smooth_l1_beta),
    }


def _mask_losses(
    model: MaskRCNN,
    config: ModelConfig,
    variables: Variables,
    features: tuple[jax.Array, ...],
    rois: SampledRoIs,
    truth: GroundTruth,
) -> dict[str, losses.Loss]:
    assert config.mask is not None
    mask_config = config.mask
    # Positives come first, and there are never more of them than the fraction allows: the rest need no masks.
    limit = min(rois.valid.shape[1], int(config.roi.batch_size * config.roi.positive_fraction))
    rois = jax.tree.map(lambda field: field[:, :limit], rois)
    pooled = pool_rois(config, features, rois.boxes, mask_config.pool_size)
    logits = model.apply(variables, pooled, method=model.mask)
    goals = jax.vmap(lambda r, t: targets.mask_targets(r, t, mask_config))(rois, truth)
    flat = jax.tree.map(lambda field: field.reshape(-1, *field.shape[2:]), (goals, rois))
    return {"loss_mask": losses.mask_loss(logits, *flat)}


def _mean(part: losses.Loss, axis_name: str | None) -> jax.Array:
    """This device's share of the global mean: its own sum over everybody's count."""
    total, count = part
    count = _sum_over_devices(count, axis_name)
    return total / jnp.maximum(count, 1).astype(total.dtype)


def _sum_over_devices(tree: Any, axis_name: str | None) -> Any:
    return tree if axis_name is None else jax.lax.psum(tree, axis_name)


def _mean_over_devices(tree: Any, axis_name: str | None) -> Any:
    return tree if axis_name is None else jax.lax.pmean(tree, axis_name)
