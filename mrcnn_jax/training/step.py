"""The training step as a pure function: `train_step(state, batch, key) -> (state, metrics)`."""

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
from mrcnn_jax.training.gradients import LossesAndGradients, make_gradient_function

TrainStep = Callable[["TrainState", Batch, jax.Array], tuple["TrainState", Metrics]]


class TrainState(NamedTuple):
    """The state of a training run, as it is saved in a checkpoint. The position in the data follows from `step`."""

    step: jax.Array  # () int32, number of batches seen so far
    params: Any
    model_state: dict[str, Any]  # the other collections: constants of frozen batch norm, running statistics
    opt_state: Any
    ema: dict[str, Any]  # moving average of `params` and of the running statistics; {} if disabled
    skipped: jax.Array  # () int32, number of steps skipped because a loss or gradient was not finite

    def inference_variables(self) -> Variables:
        """Return the variables for evaluation: the averaged weights if there are any."""
        return ema_variables(self.params, self.model_state, self.ema)


def create_state(
    optimizer: optax.GradientTransformation, variables: Variables, *, ema_decay: float = 0.0
) -> TrainState:
    """Create the state before the first step."""
    model_state = {name: value for name, value in variables.items() if name != "params"}
    params = variables["params"]
    average = init_ema(params, model_state, ema_decay)
    # Two zeros, not one: the state is donated, so its leaves must not share a buffer.
    step, skipped = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
    return TrainState(step, params, model_state, optimizer.init(params), average, skipped)


def make_train_step(
    model: MaskRCNN,
    config: Config,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    axis_name: str | None = None,
) -> TrainStep:
    """Return the training step.

    With `axis_name`, the step runs under `pmap` on one device's part of the batch, and is equivalent to a step on the
    whole batch: loss sums and counts are summed over devices before the division. A step whose loss or gradient is not
    finite is skipped, see `_skip_nonfinite`.
    """
    # Synchronized batch norm needs the axis name, too.
    model = model.clone(axis_name=axis_name, remat=config.train.remat)
    compute_gradients = make_gradient_function(model, config, axis_name)
    train = config.train

    def train_step(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
        keys = image_keys(key, state.step, batch.indices)
        computed = compute_gradients(state.params, state.model_state, batch, keys)
        loss, grad_norm, finite = loss_and_grad_norm(computed)

        with jax.named_scope("optimizer"):
            updates, opt_state = optimizer.update(computed.gradients, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            model_state = {**state.model_state, **computed.statistics}
            ema = update_ema(state.ema, params, model_state, train.ema_decay, state.step)
            new_state = TrainState(state.step + 1, params, model_state, opt_state, ema, state.skipped)
            new_state = _skip_nonfinite(state, new_state, finite, train.max_skipped)
        metrics = {
            "loss": loss,
            **computed.losses,
            **computed.counts,
            "grad_norm": grad_norm,
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
            "finite": finite,
            "skipped": new_state.skipped,
        }
        return new_state, metrics

    return train_step


def image_keys(key: jax.Array, step: jax.Array, indices: jax.Array) -> jax.Array:
    """Derive a PRNG key (B,) for each image from the step and the image's dataset index (B,).

    The keys do not depend on an image's slot in the batch or on its device.
    """
    step_key = jax.random.fold_in(key, step)
    return jax.vmap(lambda index: jax.random.fold_in(step_key, index))(indices)


def loss_and_grad_norm(computed: LossesAndGradients) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the total loss, the global norm of its gradient, and whether both are finite."""
    loss = jnp.sum(jnp.stack(list(computed.losses.values())))
    norm = optax.global_norm(computed.gradients)
    return loss, norm, jnp.isfinite(loss) & jnp.isfinite(norm)


def _skip_nonfinite(old: TrainState, new: TrainState, finite: jax.Array, max_skipped: int) -> TrainState:
    """Return `new` if the step was finite, else `old` with `step` and `skipped` incremented.

    After more than `max_skipped` skipped steps the state no longer changes, not even `step`: the host reads the metrics
    one step late, and can still save the state that the bad batch was applied to.
    """
    skipped = old.skipped + jnp.where(finite, 0, 1)
    halted = skipped > max_skipped
    old = old._replace(step=old.step + jnp.where(halted, 0, 1), skipped=skipped)
    accepted = finite & ~halted
    state: TrainState = jax.tree.map(lambda n, o: jnp.where(accepted, n, o), new._replace(skipped=skipped), old)
    return state
