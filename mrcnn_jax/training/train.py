"""A whole training run: data, model, initial state, training loop, final evaluation."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Sequence

import jax
import numpy as np
from etils import epath

from mrcnn_jax.checkpoints.manager import Checkpointer
from mrcnn_jax.checkpoints.workdir import check_workdir, prepare_workdir
from mrcnn_jax.config import Config, from_json, to_json, validate
from mrcnn_jax.data.categories import Categories
from mrcnn_jax.data.dataset import load_split
from mrcnn_jax.data.pipeline import train_batches
from mrcnn_jax.distributed import collectives, failure
from mrcnn_jax.errors import ConfigError
from mrcnn_jax.evaluation.coco_metrics import check_keypoints
from mrcnn_jax.evaluation.evaluate import check_evaluation, check_same_configuration, check_same_data
from mrcnn_jax.models.mask_rcnn import Variables, build_model, check_jax_settings, variable_shapes
from mrcnn_jax.runtime import compilation_cache, profiling
from mrcnn_jax.training import parallel
from mrcnn_jax.training.evaluations import PeriodicEvaluator
from mrcnn_jax.training.init import resolve_init
from mrcnn_jax.training.interruption import SignalHandler
from mrcnn_jax.training.logs.console import format_evaluation
from mrcnn_jax.training.logs.metrics_log import MetricsLog, default_sinks
from mrcnn_jax.training.logs.tensorboard import write_final_evaluation
from mrcnn_jax.training.loop import TrainLoop
from mrcnn_jax.training.memory import peak_memory
from mrcnn_jax.training.nonfinite_dump import save_failed_step
from mrcnn_jax.training.optimizer import frozen_paths, make_optimizer, make_schedule
from mrcnn_jax.training.step import TrainState, create_state, make_train_step


def train(
    config: Config, workdir: epath.PathLike, *, devices: Sequence[jax.Device] | None = None, profile: bool = False
) -> TrainState:
    """Train the run in `workdir` up to `config.train.steps`, evaluate it, and return its final state.

    Resumes from the latest checkpoint in `workdir`; a finished run is only evaluated. With several processes, all of
    them call this function; only process 0 reads and writes `workdir`.

    Args:
        devices: local devices to use (default: all).
        profile: record a few steps in `workdir/profile`, see `runtime.profiling`.

    Raises:
        ConfigError, DataError: before training, if the configuration or the data cannot be used.
        NonFiniteLossError: if a loss or gradient is not finite, more often than `config.train.max_skipped` allows.
        Interrupted: after SIGTERM or Ctrl-C; the same call resumes the run.
    """
    check_jax_settings()
    workdir = os.path.expanduser(workdir)
    with SignalHandler() as signals:
        check_same_configuration(config)
        validate(config)
        check_workdir(workdir)
        devices = jax.local_devices() if devices is None else devices
        num_devices = len(devices) * jax.process_count()
        parallel.check_divisible(config.train.batch_size, num_devices, accumulate=config.train.accumulate)
        run = _TrainingRun(config, workdir, devices, signals)
        state = run.train(profile)
        run.report(state)
    return state


class _TrainingRun:
    """One call of `train`: data, train step and evaluator."""

    def __init__(self, config: Config, workdir: epath.PathLike, devices: Sequence[jax.Device], signals: SignalHandler):
        """Load and check the data, and resolve the configuration, which is the same on every process."""
        self.workdir, self.devices, self.signals = workdir, devices, signals
        self._dataset, eval_dataset = load_split(config.data, "train"), load_split(config.data, "eval")
        check_same_data({"data.train": self._dataset, "data.eval": eval_dataset})
        config = with_categories(config, self._dataset.categories)
        check_evaluation(config, eval_dataset)
        init_key, self.key = jax.random.split(jax.random.key(config.train.seed))
        self._variables: Variables | None = None  # initial ones, on process 0, unless the run resumes
        self.config = collectives.run_on_main(lambda: self._resolve(config, init_key))
        schedule = make_schedule(self.config.optimizer, self.config.train.steps)
        model = build_model(self.config.model)
        shapes = variable_shapes(model)
        optimizer = make_optimizer(self.config.optimizer, schedule, shapes["params"], frozen_paths(self.config.model))
        create = functools.partial(create_state, optimizer, ema_decay=self.config.train.ema_decay)
        self._state_shapes = jax.eval_shape(create, shapes)
        self._new_state = None if self._variables is None else create(self._variables)
        self._variables = None  # frees their memory when the training begins
        self._step = make_train_step(model, self.config, optimizer, schedule, axis_name=parallel.AXIS_NAME)
        self._evaluator = PeriodicEvaluator(self.config, workdir, eval_dataset, devices, signals.check)

    def _resolve(self, config: Config, key: jax.Array) -> Config:
        """Resolve the configuration and the initial variables, write the configuration to `workdir` and return it."""
        config, self._variables = resolve_init(config, self.workdir, key)
        prepare_workdir(self.workdir, config, self._dataset.fingerprint())
        return from_json(to_json(config))  # as in a resumed run

    def train(self, profile: bool) -> TrainState:
        """Train from the initial or restored state; return the final state."""
        train = self.config.train
        with (
            Checkpointer(self.workdir, train.keep_checkpoints) as checkpointer,
            failure.finish_before_exit(checkpointer.wait),
        ):
            state, self._new_state = self._initial_state(checkpointer), None
            self._evaluator.resume(int(state.step))
            if int(state.step) < train.steps and not self._evaluator.patience_exhausted():
                # Fail before training, not at the first save.
                checkpointer.check_disk_space(int(state.step), self._state_shapes)
                state = self._run_loop(state, checkpointer, profile)
        return state

    def _initial_state(self, checkpointer: Checkpointer) -> TrainState:
        """Return the new state or the one of the latest checkpoint, broadcast from process 0."""
        if not collectives.is_main():
            state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), self._state_shapes)
        elif self._new_state is not None:
            state = jax.device_get(self._new_state)
        else:
            state = checkpointer.restore_latest(self._state_shapes)
            assert state is not None, f"{self.workdir} has a checkpoint that cannot be found"
        broadcast: TrainState = collectives.broadcast(state)
        return broadcast

    def _run_loop(self, state: TrainState, checkpointer: Checkpointer, profile: bool) -> TrainState:
        """Open the data pipeline and the logs at the step of `state`, and train to the end."""
        config, dataset, start = self.config, self._dataset, int(state.step)
        self._print_start(start)
        batches = train_batches(
            dataset, config, start_step=start, process_index=jax.process_index(), process_count=jax.process_count()
        )
        log = self._open_log(start)
        profiler = profiling.profile_steps(epath.Path(self.workdir) / profiling.FOLDER, "train", recorded=profile)
        with batches, log, profiler:
            loop = TrainLoop(
                train_step=parallel.CompiledTrainStep(self._step, self.devices),
                config=config.train,
                log=log,
                checkpointer=checkpointer,
                image_ids=lambda indices: dataset.ids[indices].tolist(),
                save_failed_step=functools.partial(save_failed_step, self.workdir, config),
                signals=self.signals,
                evaluator=self._evaluator,
                devices=self.devices,
                profiler=profiler,
            )
            trained: TrainState = loop.run(state, batches, self.key)
        return trained

    def _print_start(self, start: int) -> None:
        if not collectives.is_main():
            return
        train = self.config.train
        print(
            f"{self.workdir}: step {start} of {train.steps}, {len(self._dataset)} images, {jax.device_count()} devices"
            f" ({jax.devices()[0].device_kind}) in {jax.process_count()} processes, seed {train.seed},"
            f" jax {jax.__version__}",
            f"the first step of each image shape is compiled before it runs{compilation_cache.describe()}",
            sep="\n",
            flush=True,
        )

    def _open_log(self, start: int) -> MetricsLog:
        train, sinks = self.config.train, []
        if collectives.is_main():
            sinks = default_sinks(self.workdir, steps=train.steps, start=start, batch_size=train.batch_size)
        return MetricsLog(
            sinks,
            every=train.log_every,
            last_step=train.steps,
            batch_size=train.batch_size,
            gauges=lambda: peak_memory(self.devices),
        )

    def report(self, state: TrainState) -> None:
        """Evaluate the final state; print tables and a summary line, and write the metrics to the logs."""
        step = int(state.step)
        recorded = self._evaluator.recorded_metrics(step)
        with self.signals.postponed():
            metrics = self._evaluator.evaluate_final(step, state)
        if not collectives.is_main():
            return
        new = {name: metrics[name] for name in metrics.keys() - recorded.keys()}
        write_final_evaluation(self.workdir, step, new, self._evaluator.overlays(step) if new else {})
        train, metric = self.config.train, self.config.train.best_metric
        if self._evaluator.patience_exhausted() and step < train.steps:
            print(f"\nstopped early: {train.patience} evaluations without a better {metric} (train.patience)")
        print(f"\n{self.workdir}: step {step}, {format_evaluation(metrics)}{self._format_best()}", flush=True)

    def _format_best(self) -> str:
        metric, best = self.config.train.best_metric, self._evaluator.best()
        if best is not None:
            return f", best {metric} {best[1]:.3f} at step {best[0]}"
        return f", no best checkpoint: {metric} was never defined" if metric else ""


def with_categories(config: Config, categories: Categories) -> Config:
    """Fill in `num_classes`, category ids and names, keypoint names and the skeleton from the dataset.

    Raises ConfigError if the configuration disagrees with the dataset.
    """
    model = config.model
    num_classes, ids = model.num_classes or len(categories.ids), model.category_ids or categories.ids
    if (num_classes, ids) != (len(categories.ids), categories.ids):
        raise ConfigError(
            f"model.num_classes={model.num_classes} and model.category_ids={model.category_ids} do not match the"
            f" {len(categories.ids)} categories of the data, {categories.ids}; leave them unset to use those of the"
            " data"
        )
    model = dataclasses.replace(
        model, num_classes=num_classes, category_ids=ids, category_names=model.category_names or categories.names
    )
    check_keypoints(model, categories.keypoint_schema.names)
    if model.keypoint is not None and not model.keypoint_names:
        model = dataclasses.replace(
            model,
            keypoint_names=categories.keypoint_schema.names,
            skeleton=model.skeleton or categories.keypoint_schema.skeleton,
        )
    return dataclasses.replace(config, model=model)
