"""One training step as a pure function: `train_step(state, batch, key) -> (state, metrics)`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mrcnn_jax import losses
from mrcnn_jax.config import Config
from mrcnn_jax.models.rcnn import MaskRCNN, Variables
from mrcnn_jax.structures import Batch
from mrcnn_jax.training.forward import Metrics, forward_losses

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
    model = model.clone(axis_name=axis_name)  # where synchronised batch norm finds the other devices

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


def _mean(part: losses.Loss, axis_name: str | None) -> jax.Array:
    """This device's share of the global mean: its own sum over everybody's count."""
    total, count = part
    count = _sum_over_devices(count, axis_name)
    return total / jnp.maximum(count, 1).astype(total.dtype)


def _sum_over_devices(tree: Any, axis_name: str | None) -> Any:
    return tree if axis_name is None else jax.lax.psum(tree, axis_name)


def _mean_over_devices(tree: Any, axis_name: str | None) -> Any:
    return tree if axis_name is None else jax.lax.pmean(tree, axis_name)
