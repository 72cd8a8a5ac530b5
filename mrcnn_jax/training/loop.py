"""The training run: data, model, state, steps, checkpoints, final report."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from mrcnn_jax.config import Config, ConfigError, TrainConfig, validate
from mrcnn_jax.data.categories import Categories
from mrcnn_jax.data.coco import Dataset, load_split
from mrcnn_jax.data.pipeline import train_batches
from mrcnn_jax.evaluation.coco import check_categories, check_keypoints
from mrcnn_jax.evaluation.run import evaluate_model
from mrcnn_jax.models.rcnn import build_model, variable_shapes
from mrcnn_jax.structures import Batch
from mrcnn_jax.training import parallel
from mrcnn_jax.training.checkpoint import Checkpointer, claim_workdir
from mrcnn_jax.training.initial import starting_point
from mrcnn_jax.training.logging import MetricsLog, default_sinks
from mrcnn_jax.training.optimizer import frozen_paths, make_optimizer, make_schedule
from mrcnn_jax.training.step import TrainState, TrainStep, create_state, make_train_step

ImageIds = Callable[[np.ndarray], list[Any]]


def train(config: Config, workdir: epath.PathLike, *, devices: Sequence[jax.Device] | None = None) -> TrainState:
    """Train, or go on training, the run in `workdir` up to `config.train.steps`; evaluate it; return its state.

    A run that is finished already is only evaluated. `devices` are those of this process (default: all).
    Raises ConfigError or DataError before training for what cannot work, NonFiniteLossError during it.
    """
    devices = jax.local_devices() if devices is None else devices
    validate(config)
    parallel.check_divisible(config.train.batch_size, len(devices) * jax.process_count())
    dataset = load_split(config.data, "train")
    config = with_categories(config, dataset.categories)
    held_back = load_split(config.data, "eval").categories  # what is wrong with it is better known before the training
    check_categories(config.model, held_back.ids, held_back.names)
    check_keypoints(config.model, held_back.pose.names)
    schedule = make_schedule(config.optimizer, config.train.steps)
    init_key, key = jax.random.split(jax.random.key(config.train.seed))
    config, variables = starting_point(config, workdir, init_key)
    claim_workdir(workdir, config)
    model = build_model(config.model)
    shapes = variable_shapes(model)
    optimizer = make_optimizer(config.optimizer, schedule, shapes["params"], frozen_paths(config.model))
    step = make_train_step(model, config, optimizer, schedule, axis_name=parallel.AXIS_NAME)
    with Checkpointer(workdir, config.train.keep_checkpoints) as checkpointer:
        if variables is None:
            state = checkpointer.restore_latest(jax.eval_shape(functools.partial(create_state, optimizer), shapes))
        else:
            state = create_state(optimizer, variables)
        assert state is not None, f"{workdir} has a checkpoint that cannot be found"
        del variables  # the state has its own
        if int(state.step) < config.train.steps:
            state = _train_on(dataset, config, workdir, step, state, key, checkpointer, devices)
    if jax.process_index() == 0:
        _report(config, state, workdir)
    return state


def _report(config: Config, state: TrainState, workdir: epath.PathLike) -> None:
    """Evaluate on `config.data.eval`: tables, pictures, and a last line with the average precisions."""
    metrics = evaluate_model(config, jax.device_get({"params": state.params, **state.model_state}), workdir)
    names = {"bbox/AP": "box AP", "segm/AP": "mask AP", "keypoints/AP": "keypoint AP"}
    scores = ", ".join(f"{name} {metrics[key]:.3f}" for key, name in names.items() if key in metrics)
    print(f"\n{workdir}: step {int(state.step)}, {scores}", flush=True)


def _train_on(
    dataset: Dataset,
    config: Config,
    workdir: epath.PathLike,
    step: TrainStep,
    state: TrainState,
    key: jax.Array,
    checkpointer: Checkpointer,
    devices: Sequence[jax.Device],
) -> TrainState:
    """Open the data at the step of `state` and the places that metrics go to, and train to the end."""
    train, start = config.train, int(state.step)
    print(f"{workdir}: step {start} of {train.steps}, {len(dataset)} images, {len(devices)} devices", flush=True)
    batches = train_batches(
        dataset, config, start_step=start, process_index=jax.process_index(), process_count=jax.process_count()
    )
    writes = jax.process_index() == 0
    sinks = default_sinks(workdir, steps=train.steps, start=start, batch_size=train.batch_size) if writes else []
    log = MetricsLog(sinks, every=train.log_every, last_step=train.steps, batch_size=train.batch_size)
    with batches, log:
        return run_steps(
            parallel.compile_train_step(step, devices),
            state,
            batches,
            key,
            config=train,
            log=log,
            checkpointer=checkpointer,
            image_ids=lambda indices: dataset.ids[indices].tolist(),
            devices=devices,
        )


def with_categories(config: Config, categories: Categories) -> Config:
    """Fill `num_classes`, ids and names of the categories, and of keypoints names and skeleton, from the data.

    Raises ConfigError where the configuration says otherwise than the data.
    """
    model = config.model
    ours = (model.num_classes or len(categories.ids), model.category_ids or categories.ids)
    if ours != (len(categories.ids), categories.ids):
        raise ConfigError(
            f"model.num_classes={model.num_classes} and model.category_ids={model.category_ids} do not agree with the"
            f" {len(categories.ids)} categories of the data, {categories.ids}; leave them out to take those of the data"
        )
    model = dataclasses.replace(
        model, num_classes=ours[0], category_ids=ours[1], category_names=model.category_names or categories.names
    )
    check_keypoints(model, categories.pose.names)
    if model.keypoint is not None and not model.keypoint_names:
        model = dataclasses.replace(
            model, keypoint_names=categories.pose.names, skeleton=model.skeleton or categories.pose.skeleton
        )
    return dataclasses.replace(config, model=model)


class NonFiniteLossError(RuntimeError):
    """Training met a loss or gradient that is not finite; says at which step, for which images."""

    def __init__(self, step: int, image_ids: list[Any], metrics: dict[str, Any]):
        self.step, self.image_ids = step, image_ids
        losses = ", ".join(f"{name} {float(v):.4g}" for name, v in metrics.items() if name.startswith("loss"))
        super().__init__(
            f"the loss is not finite at step {step} ({losses}), images {image_ids}. The last checkpoint is from before"
            " it; a lower learning rate, a longer warmup or clip_norm often help"
        )


@dataclasses.dataclass
class Pending:
    """A step whose metrics have not been read yet, so that the devices need not wait for the host."""

    step: int
    metrics: dict[str, jax.Array]
    indices: np.ndarray  # of the batch's images in their data set


def run_steps(
    train_step: parallel.CompiledTrainStep,
    state: Any,
    batches: Iterator[Batch],
    key: jax.Array,
    *,
    config: TrainConfig,
    log: MetricsLog,
    checkpointer: Checkpointer,
    image_ids: ImageIds,
    devices: Sequence[jax.Device] | None = None,
) -> Any:
    """Train from `state.step` to `config.steps`; `batches` starts at that step. Returns the final state, saved.

    The order of a round: save if it is time, next batch, start the step, read the metrics of the step before. Nothing
    is saved before the loss that led to it is known to be finite; else NonFiniteLossError, one step late.
    """
    start = int(state.step)
    state, key = parallel.replicate((state, key), devices)
    pending: Pending | None = None
    for step in range(start, config.steps):
        if step > start and step % config.checkpoint_every == 0:
            _settle(pending, log, image_ids)
            pending = None
            checkpointer.save(step, state)
        with log.waiting():
            batch = next(batches)
        state, metrics = _start_step(train_step, state, parallel.place_batch(batch, devices), key, log)
        _settle(pending, log, image_ids)
        pending = Pending(step + 1, metrics, np.asarray(batch.indices)[np.asarray(batch.valid)])
    _settle(pending, log, image_ids)
    checkpointer.save(max(start, config.steps), state)
    checkpointer.wait()
    return state


def _start_step(
    train_step: parallel.CompiledTrainStep, state: Any, batch: Batch, key: jax.Array, log: MetricsLog
) -> tuple[Any, dict[str, jax.Array]]:
    """Start a step without waiting for it; the time of a compilation is kept out of the rates."""
    traces, before = train_step.traces, time.perf_counter()
    state, metrics = train_step(state, batch, key)
    if train_step.traces > traces:
        log.exclude(time.perf_counter() - before)
    return state, metrics


def _settle(pending: Pending | None, log: MetricsLog, image_ids: ImageIds) -> None:
    """Read the metrics of a step (waits for it) and log them. Raises NonFiniteLossError."""
    if pending is None:
        return
    metrics = jax.device_get(pending.metrics)
    if not metrics.pop("finite"):
        raise NonFiniteLossError(pending.step, image_ids(pending.indices), metrics)
    log.step(pending.step, metrics)
