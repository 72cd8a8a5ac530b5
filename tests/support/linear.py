"""A linear model of three parameters in place of the network, for fast tests of everything around it.

Only the gradients are replaced; the rest of the train step is the real one.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mrcnn_jax.checkpoints.manager import Checkpointer
from mrcnn_jax.config import Config, ModelConfig, TrainConfig
from mrcnn_jax.inference import detector
from mrcnn_jax.models.mask_rcnn import build_model
from mrcnn_jax.structures import Batch, Detections
from mrcnn_jax.training import gradients, init, parallel, step, train
from mrcnn_jax.training.interruption import SignalHandler
from mrcnn_jax.training.logs.metrics_log import MetricsLog
from mrcnn_jax.training.loop import TrainLoop
from mrcnn_jax.training.step import TrainState, TrainStep, create_state

POISON = -1  # image height that makes the loss infinite
OPTIMIZER = optax.sgd(0.1, momentum=0.9)
NO_EVALUATION = SimpleNamespace(is_due=lambda step: False)


def make_gradient_function(model: Any, config: Any, axis_name: str | None) -> gradients.GradientFunction:
    """Fit every parameter, of any shape, to the mean pixel of the images plus noise per step and image.

    The metric `pixels`, the sum of all pixels, identifies a batch.
    """

    def compute_gradients(
        params: Any, model_state: dict[str, Any], batch: Batch, keys: jax.Array
    ) -> gradients.LossesAndGradients:
        means = batch.images.astype(jnp.float32).mean((1, 2, 3)) / 255
        targets = means + jax.vmap(jax.random.uniform)(keys)
        targets = jnp.where(batch.image_sizes[:, 0] == POISON, jnp.inf, targets)

        def loss(params: Any) -> jax.Array:
            errors = [jnp.mean((leaf.reshape(-1, 1) - targets[None]) ** 2) for leaf in jax.tree.leaves(params)]
            return jnp.mean(jnp.stack(errors))

        def update(statistic: jax.Array) -> jax.Array:
            return 0.9 * statistic + 0.1 * jnp.mean(means)

        value, gradient = jax.value_and_grad(loss)(params)
        statistics = {name: jax.tree.map(update, tree) for name, tree in model_state.items() if name != "frozen"}
        return gradients.LossesAndGradients(
            gradients.mean_over_devices(gradient, axis_name),
            gradients.mean_over_devices({"loss_linear": value}, axis_name),
            gradients.sum_over_devices({"pixels": jnp.sum(batch.images.astype(jnp.int32))}, axis_name),
            gradients.mean_over_devices(statistics, axis_name),
        )

    return compute_gradients


def variables() -> dict[str, Any]:
    params = {name: np.float32(value) for name, value in (("weight", 1), ("bias", 0), ("scale", -1))}
    return {"params": params, "batch_stats": {"mean": np.float32(0)}}


def start() -> TrainState:
    """The state before the first step."""
    return jax.device_get(create_state(OPTIMIZER, variables()))


def make_step(max_skipped: int = 0) -> TrainStep:
    with mock.patch.object(step, "make_gradient_function", make_gradient_function):
        model = build_model(ModelConfig(num_classes=1))
        return step.make_train_step(
            model,
            Config(train=TrainConfig(max_skipped=max_skipped)),
            OPTIMIZER,
            lambda step: 0.1,
            axis_name=parallel.AXIS_NAME,
        )


@functools.cache
def compiled_step(max_skipped: int = 0) -> parallel.CompiledTrainStep:
    """Return the step on two devices, compiled once per process."""
    return parallel.CompiledTrainStep(make_step(max_skipped), jax.local_devices()[:2])


def batches(first: int = 0, poisoned: Sequence[int] = ()) -> Iterator[Batch]:
    """Yield batch k with images 4 k .. 4 k + 3; odd batches are taller; batches `poisoned` have a bad image."""
    for number in itertools.count(first):
        pixels = np.random.default_rng(number).integers(0, 200, (4, 4 + 4 * (number % 2), 4, 3), dtype=np.uint8)
        sizes = np.full((4, 2), 4, np.int32)
        if number in poisoned:
            sizes[2] = POISON
        yield Batch(pixels, sizes, np.arange(4 * number, 4 * number + 4, dtype=np.int32), np.ones(4, bool), ())


def fit(
    workdir: Any,
    config: TrainConfig,
    sink: Any,
    *,
    train_step: Any = None,
    poisoned: Sequence[int] = (),
    checkpointer: type[Checkpointer] = Checkpointer,
    signals: SignalHandler | None = None,
    evaluator: Any = NO_EVALUATION,
) -> TrainState:
    """Train or resume in `workdir` on two devices; return the final state on the host."""
    devices = jax.local_devices()[:2]
    with (
        checkpointer(workdir, keep=10) as saved,
        MetricsLog([sink], every=1, last_step=config.steps, batch_size=4) as log,
    ):
        state = saved.restore_latest(start()) or start()
        loop = TrainLoop(
            train_step=train_step or compiled_step(config.max_skipped),
            config=config,
            log=log,
            checkpointer=saved,
            image_ids=lambda indices: [f"image {index}" for index in indices],
            save_failed_step=lambda failed_step: "failure.npz",
            signals=signals or SignalHandler(),
            evaluator=evaluator,
            devices=devices,
        )
        return jax.device_get(loop.run(state, batches(int(state.step), poisoned), jax.random.key(0)))


def replace_network(change: Callable[[Any, str, Any], None] = setattr) -> None:
    """Replace the network in `train` by the linear model, without detections. `change`: `setattr` of a MonkeyPatch."""
    replace_gradients(change)
    change(train, "variable_shapes", lambda model: jax.eval_shape(variables))
    change(init, "init_variables", lambda model, key: variables())


def replace_gradients(change: Callable[[Any, str, Any], None] = setattr) -> None:
    """Replace only the gradients and detections, and keep the parameters of the network."""
    change(step, "make_gradient_function", make_gradient_function)
    change(detector, "compile_detect", lambda *_: detect_nothing)


def detect_nothing(images: Any, image_sizes: Any) -> Detections:
    count = len(images)
    return Detections(
        np.zeros((count, 2, 4), np.float32),
        np.zeros((count, 2), np.float32),
        np.zeros((count, 2), np.int32),
        np.zeros((count, 2, 28, 28), np.float32),
        np.zeros((count, 2, 0, 3), np.float32),
        np.zeros((count, 2), bool),
        np.zeros(count, bool),
    )
