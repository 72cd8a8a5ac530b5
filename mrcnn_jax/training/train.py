"""A training run: data, model, state, the loop, the final report."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from mrcnn_jax.checkpoints.manager import Checkpointer
from mrcnn_jax.checkpoints.workdir import check_workdir, prepare_workdir
from mrcnn_jax.config import Config, from_json, to_json, validate
from mrcnn_jax.data.categories import Categories
from mrcnn_jax.data.dataset import Dataset, load_split
from mrcnn_jax.data.pipeline import train_batches
from mrcnn_jax.distributed import collectives, failure
from mrcnn_jax.errors import ConfigError
from mrcnn_jax.evaluation.coco_metrics import check_keypoints
from mrcnn_jax.evaluation.evaluate import check_evaluation, check_same_configuration, check_same_data
from mrcnn_jax.models.mask_rcnn import build_model, check_jax_settings, variable_shapes
from mrcnn_jax.runtime import compilation_cache, profiling
from mrcnn_jax.training import parallel
from mrcnn_jax.training.evaluations import Evaluations
from mrcnn_jax.training.init import starting_point
from mrcnn_jax.training.interruption import Interruptions
from mrcnn_jax.training.logs.console import describe_measured
from mrcnn_jax.training.logs.metrics_log import MetricsLog, default_sinks
from mrcnn_jax.training.logs.tensorboard import record_measured
from mrcnn_jax.training.loop import Loop
from mrcnn_jax.training.memory import peak_memory
from mrcnn_jax.training.nonfinite_dump import save_failure
from mrcnn_jax.training.optimizer import frozen_paths, make_optimizer, make_schedule
from mrcnn_jax.training.step import TrainState, create_state, make_train_step


def train(
    config: Config, workdir: epath.PathLike, *, devices: Sequence[jax.Device] | None = None, profile: bool = False
) -> TrainState:
    """Train, or go on training, the run in `workdir` up to `config.train.steps`; evaluate it; return its state.

    A run that is finished already is only evaluated. `devices` are those of this process (default: all). With several
    processes, each of them calls this; only the main one reads and writes `workdir`. With `profile` it records a few
    steps in `workdir/profile`, see `profiling`.
    Raises ConfigError or DataError before training for what cannot work, NonFiniteLossError during it, and Interrupted
    when a signal ended it: the same call goes on.
    """
    check_jax_settings()
    workdir = os.path.expanduser(workdir)
    with Interruptions() as interruptions:
        check_same_configuration(config)
        validate(config)
        check_workdir(workdir)
        devices = jax.local_devices() if devices is None else devices
        images, shares = config.train.batch_size, len(devices) * jax.process_count()
        parallel.check_divisible(images, shares, parts=config.train.accumulate)
        dataset, held_back = load_split(config.data, "train"), load_split(config.data, "eval")
        check_same_data({"data.train": dataset, "data.eval": held_back})
        config = with_categories(config, dataset.categories)
        check_evaluation(config, held_back)  # what is wrong with it is better known before the training
        run = _Run(config, workdir, dataset, held_back, devices, interruptions)
        state = run.train(profile)
        run.report(state)
    return state


class _Run:
    """One call of `train` with its data at hand."""

    def __init__(
        self,
        config: Config,
        workdir: epath.PathLike,
        dataset: Dataset,
        held_back: Dataset,
        devices: Sequence[jax.Device],
        interruptions: Interruptions,
    ):
        self.workdir, self.devices, self.interruptions = workdir, devices, interruptions
        self._dataset = dataset
        self.config, variables = _claim(config, workdir, dataset)  # from here on that of the main process, everywhere
        _, self.key = _keys(self.config)
        schedule = make_schedule(self.config.optimizer, self.config.train.steps)
        self.model = build_model(self.config.model)
        shapes = variable_shapes(self.model)
        optimizer = make_optimizer(self.config.optimizer, schedule, shapes["params"], frozen_paths(self.config.model))
        self._create = functools.partial(create_state, optimizer, ema_decay=self.config.train.ema_decay)
        self._template = jax.eval_shape(self._create, shapes)
        self._fresh = None if variables is None else self._create(variables)
        self._step = make_train_step(self.model, self.config, optimizer, schedule, axis_name=parallel.AXIS_NAME)
        self._evaluations = Evaluations(self.config, workdir, held_back, devices, self._check)

    def _check(self) -> None:
        """Raise Interrupted if a signal came. Asked by all processes together."""
        if self.interruptions.reached():
            raise self.interruptions.interrupted()

    def train(self, profile: bool) -> TrainState:
        """The final state: restored, or trained to the end."""
        train = self.config.train
        with (
            Checkpointer(self.workdir, train.keep_checkpoints) as checkpointer,
            failure.finish_before_exit(checkpointer.wait),
        ):
            state, self._fresh = self._begin(checkpointer), None
            self._evaluations.begin(int(state.step))
            if int(state.step) < train.steps and not self._evaluations.exhausted():
                checkpointer.check_disk_space(int(state.step), self._template)  # better known before days of training
                state = self._train_on(state, checkpointer, profile)
        return state

    def _begin(self, checkpointer: Checkpointer) -> TrainState:
        """The main process's state, on every process: fresh, or from the newest checkpoint."""
        if not collectives.is_main():
            state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), self._template)
        elif self._fresh is not None:
            state = jax.device_get(self._fresh)
        else:
            state = checkpointer.restore_latest(self._template)
            assert state is not None, f"{self.workdir} has a checkpoint that cannot be found"
        begun: TrainState = collectives.broadcast(state)
        return begun

    def _train_on(self, state: TrainState, checkpointer: Checkpointer, profile: bool) -> TrainState:
        """Open the data at the step of `state` and the places that metrics go to, and train to the end."""
        config, train, dataset, start = self.config, self.config.train, self._dataset, int(state.step)
        count = jax.process_count()
        if collectives.is_main():
            print(
                f"{self.workdir}: step {start} of {train.steps}, {len(dataset)} images, {jax.device_count()} devices"
                f" ({jax.devices()[0].device_kind}) in {count} processes, seed {train.seed}, jax {jax.__version__}",
                f"the first step of each image shape is compiled before it is done{compilation_cache.describe()}",
                sep="\n",
                flush=True,
            )
        batches = train_batches(
            dataset, config, start_step=start, process_index=jax.process_index(), process_count=count
        )
        sinks = (
            default_sinks(self.workdir, steps=train.steps, start=start, batch_size=train.batch_size)
            if collectives.is_main()
            else []
        )
        log = MetricsLog(
            sinks,
            every=train.log_every,
            last_step=train.steps,
            batch_size=train.batch_size,
            gauges=lambda: peak_memory(self.devices),
        )
        recorded = profiling.profile_steps(epath.Path(self.workdir) / profiling.FOLDER, "train", recorded=profile)
        with batches, log, recorded:
            loop = Loop(
                train_step=parallel.compile_train_step(self._step, self.devices),
                config=train,
                log=log,
                checkpointer=checkpointer,
                image_ids=lambda indices: dataset.ids[indices].tolist(),
                save_failure=functools.partial(save_failure, self.workdir, config),
                interruptions=self.interruptions,
                evaluations=self._evaluations,
                devices=self.devices,
                profile=recorded,
            )
            trained: TrainState = loop.run(state, batches, self.key)
        return trained

    def report(self, state: TrainState) -> None:
        """Evaluate on `config.data.eval`: tables, pictures, and a last line with the average precisions."""
        step, metric = int(state.step), self.config.train.best_metric
        known = self._evaluations.row(step)
        with self.interruptions.postponed():
            metrics = self._evaluations.finish(step, state)
        if not collectives.is_main():
            return
        new = {name: metrics[name] for name in metrics.keys() - known.keys()}
        record_measured(self.workdir, step, new, self._evaluations.pictures(step) if new else {})
        best = self._evaluations.best()
        at_best = f", no best checkpoint: {metric} never had a value" if metric else ""
        if best is not None:
            at_best = f", best {metric} {best[1]:.3f} at step {best[0]}"
        if self._evaluations.exhausted() and step < self.config.train.steps:
            print(f"\n{self.config.train.patience} measurements without a better {metric}: the training ends here")
        print(f"\n{self.workdir}: step {step}, {describe_measured(metrics)}{at_best}", flush=True)


def _keys(config: Config) -> tuple[jax.Array, jax.Array]:
    """The keys of the initial variables and of the training steps."""
    first, second = jax.random.split(jax.random.key(config.train.seed))
    return first, second


def _claim(config: Config, workdir: epath.PathLike, dataset: Dataset) -> tuple[Config, Any]:
    """The configuration with all that its initial weights decide, recorded in `workdir`, on every process; and the
    initial variables, on the main process of a run that has no checkpoint yet."""
    variables: Any = None

    def claim() -> bytes:
        nonlocal variables
        resolved, variables = starting_point(config, workdir, _keys(config)[0])
        prepare_workdir(workdir, resolved, dataset.fingerprint())
        return to_json(resolved).encode()

    return from_json(collectives.run_on_main(claim).decode()), variables


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
    check_keypoints(model, categories.keypoint_schema.names)
    if model.keypoint is not None and not model.keypoint_names:
        model = dataclasses.replace(
            model,
            keypoint_names=categories.keypoint_schema.names,
            skeleton=model.skeleton or categories.keypoint_schema.skeleton,
        )
    return dataclasses.replace(config, model=model)
