"""One training step as a pure function: `train_step(state, batch, key) -> (state, metrics)`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mrcnn_jax.checkpoints.ema import ema_variables, init_ema, update_ema
from mrcnn_jax.config import Config
from mrcnn_jax.models.mask_rcnn import MaskRCNN, Variables
from mrcnn_jax.structures import Batch
from mrcnn_jax.training.forward import Metrics
from mrcnn_jax.training.gradients import Gradients, make_gradients

TrainStep = Callable[["TrainState", Batch, jax.Array], tuple["TrainState", Metrics]]


class TrainState(NamedTuple):
    """Everything that a checkpoint has to hold; the position in the data follows from `step`."""

    step: jax.Array  # () int32, batches seen so far
    params: Any
    model_state: dict[str, Any]  # the other collections: constants of frozen batch norm, running statistics
    opt_state: Any
    ema: dict[str, Any]  # the moving average of `params` and of running statistics; {} without one
    skipped: jax.Array  # () int32, steps that were left out because a loss or gradient was not finite

    def inference_variables(self) -> Variables:
        """What to evaluate: the averaged weights if there are any."""
        return ema_variables(self.params, self.model_state, self.ema)


def create_state(
    optimizer: optax.GradientTransformation, variables: Variables, *, ema_decay: float = 0.0
) -> TrainState:
    """The state before the first step."""
    model_state = {name: value for name, value in variables.items() if name != "params"}
    params = variables["params"]
    zero = jnp.zeros((), jnp.int32)
    average = init_ema(params, model_state, ema_decay)
    return TrainState(zero, params, model_state, optimizer.init(params), average, jnp.zeros((), jnp.int32))


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
    A step whose loss or gradient is not finite changes nothing but its counter, see `_guard`.
    """
    # The name tells synchronized batch norm where to find the other devices.
    gradients = make_gradients(model.clone(axis_name=axis_name, remat=config.train.remat), config, axis_name)
    train = config.train

    def train_step(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
        keys = image_keys(key, state.step, batch.indices)
        found = gradients(state.params, state.model_state, batch, keys)
        total, grad_norm, finite = loss_and_grad_norm(found)

        with jax.named_scope("optimizer"):
            updates, opt_state = optimizer.update(found.gradients, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            model_state = {**state.model_state, **found.statistics}
            ema = update_ema(state.ema, params, model_state, train.ema_decay, state.step)
            after = TrainState(state.step + 1, params, model_state, opt_state, ema, state.skipped)
            after = _guard(state, after, finite, train.max_skipped)
        metrics = {
            "loss": total,
            **found.losses,
            **found.counts,
            "grad_norm": grad_norm,
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
            "finite": finite,
            "skipped": after.skipped,
        }
        return after, metrics

    return train_step


def image_keys(key: jax.Array, step: jax.Array, indices: jax.Array) -> jax.Array:
    """A key for each image of a batch, (B,): it belongs to the image and the step, not to a place or a device."""
    step_key = jax.random.fold_in(key, step)
    return jax.vmap(lambda index: jax.random.fold_in(step_key, index))(indices)


def loss_and_grad_norm(found: Gradients) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The loss, the norm of its gradient, and whether the step can be made with them: both are finite."""
    total = jnp.sum(jnp.stack(list(found.losses.values())))
    norm = optax.global_norm(found.gradients)
    return total, norm, jnp.isfinite(total) & jnp.isfinite(norm)


def _guard(before: TrainState, after: TrainState, finite: jax.Array, max_skipped: int) -> TrainState:
    """`after`, if the step was finite; else `before` with one more skipped step.

    When there are more than `max_skipped` of them, nothing changes any more, not even `step`: the host hears of it one
    step late, and then finds the state that met the bad batch.
    """
    skipped = before.skipped + jnp.where(finite, 0, 1)
    halted = skipped > max_skipped
    without = before._replace(step=before.step + jnp.where(halted, 0, 1), skipped=skipped)
    accepted = finite & ~halted
    guarded: TrainState = jax.tree.map(
        lambda new, old: jnp.where(accepted, new, old), after._replace(skipped=skipped), without
    )
    return guarded
