"""The training loop: steps, checkpoints, evaluations, signals and non-finite losses."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from mrcnn_jax.checkpoints.manager import Checkpointer
from mrcnn_jax.config import TrainConfig
from mrcnn_jax.distributed import collectives
from mrcnn_jax.errors import ConfigError, NonFiniteLossError
from mrcnn_jax.inference.devices import replicate
from mrcnn_jax.runtime import profiling
from mrcnn_jax.structures import Batch
from mrcnn_jax.training import parallel
from mrcnn_jax.training.evaluations import PeriodicEvaluator
from mrcnn_jax.training.interruption import SignalHandler
from mrcnn_jax.training.logs.metrics_log import MetricsLog
from mrcnn_jax.training.nonfinite_dump import FailedStep, format_losses

logger = logging.getLogger(__name__)

ImageIds = Callable[[np.ndarray], list[Any]]  # dataset indices -> image ids
SaveFailedStep = Callable[[FailedStep], str]  # -> path of the file, or "" if it cannot be written


@dataclasses.dataclass
class PendingStep:
    """A step whose metrics have not been read yet, so that the devices need not wait for the host."""

    step: int
    metrics: dict[str, jax.Array]
    batch: Batch  # on the host


@dataclasses.dataclass(frozen=True)
class TrainLoop:
    """Trains up to `config.steps`.

    Each iteration saves, stops or evaluates if it is due, fetches a batch, starts the step, and reads the metrics of
    the step before. A state is saved only after the loss of the step that produced it is known to be finite.
    """

    train_step: parallel.CompiledTrainStep
    config: TrainConfig
    log: MetricsLog
    checkpointer: Checkpointer
    image_ids: ImageIds
    save_failed_step: SaveFailedStep
    signals: SignalHandler
    evaluator: PeriodicEvaluator
    devices: Sequence[jax.Device]
    profiler: profiling.StepProfiler = dataclasses.field(default_factory=profiling.StepProfiler)

    def run(self, state: Any, batches: Iterator[Batch], key: jax.Array) -> Any:
        """Train from `state`, save the final state and return it. `batches` starts at `state.step`.

        Raises:
            NonFiniteLossError: at the step after the one that was not finite.
            Interrupted: after a signal, when the state is saved.
            ConfigError: if the run has already skipped more steps than `config.max_skipped`.
        """
        start, skipped = int(state.step), int(state.skipped)
        if skipped > self.config.max_skipped:  # the train step would not change the state any more
            raise ConfigError(f"train.max_skipped={self.config.max_skipped}, but the run has skipped {skipped} steps")
        state, key = replicate((state, key), self.devices)
        # The guard turns unintended transfers between host and device into errors.
        with self.signals.postponed(), jax.transfer_guard("disallow"):
            state, step = self._run_steps(start, state, batches, key)
            self.checkpointer.save(step, state)
            self.checkpointer.wait()
        return state

    def _run_steps(self, start: int, state: Any, batches: Iterator[Batch], key: jax.Array) -> tuple[Any, int]:
        """Run the steps from `start`; return the final state and its step."""
        pending: PendingStep | None = None
        for step in range(start, self.config.steps):
            stop, evaluate = self.signals.should_stop(), self.evaluator.is_due(step)
            if stop or evaluate or (step > start and step % self.config.checkpoint_every == 0):
                self._flush_metrics(pending, state, key)
                pending = None
                self.checkpointer.save(step, state)
            if stop:
                self.checkpointer.wait()
                raise self.signals.error(step)
            if evaluate and self._evaluate(step, state):
                return state, step
            self.profiler.begin(step + 1)
            with self.log.waiting(), jax.profiler.TraceAnnotation(profiling.INPUT_EVENT):
                batch = next(batches)
            state, metrics = self._start_step(state, batch, key)
            self._flush_metrics(pending, state, key)
            pending = PendingStep(step + 1, metrics, batch)
            self.profiler.end(metrics)
        self._flush_metrics(pending, state, key)
        return state, max(start, self.config.steps)

    def _evaluate(self, step: int, state: Any) -> bool:
        """Run the evaluations that are due; return whether patience is exhausted.

        A signal during an evaluation raises Interrupted at once, because the state has been saved.
        """
        self.profiler.stop()
        with jax.transfer_guard("allow"), self.log.evaluating():
            metrics = self.evaluator.evaluate(step, state)
        self.log.write_evaluation(step, metrics, self.evaluator.overlays(step))
        return self.evaluator.patience_exhausted()

    def _start_step(self, state: Any, batch: Batch, key: jax.Array) -> tuple[Any, dict[str, jax.Array]]:
        """Start a step without waiting for it. Compilation time does not count in the logged rates."""
        traces, start = self.train_step.traces, time.perf_counter()
        state, metrics = self.train_step(state, parallel.place_batch(batch, self.devices), key)
        if self.train_step.traces > traces:
            self.log.exclude(time.perf_counter() - start)
        return state, metrics

    def _flush_metrics(self, pending: PendingStep | None, state: Any, key: jax.Array) -> None:
        """Wait for the metrics of a step and log them. Raises NonFiniteLossError."""
        if pending is None:
            return
        with jax.profiler.TraceAnnotation("metrics"):
            metrics = jax.device_get(pending.metrics)
        if metrics.pop("finite"):
            self.log.step(pending.step, metrics)
        else:
            self._record_skipped_step(pending, metrics, state, key)

    def _record_skipped_step(self, pending: PendingStep, metrics: dict[str, Any], state: Any, key: jax.Array) -> None:
        """Log a skipped step. Saves it and raises NonFiniteLossError if more than `max_skipped` were skipped."""
        with jax.transfer_guard("allow"):
            image_ids = self._global_image_ids(pending.batch)
            if metrics["skipped"] > self.config.max_skipped:
                # The train step has not changed the state since, see `training.step`.
                devices = len(self.devices) * jax.process_count()
                saved = self.save_failed_step(FailedStep(state, pending.batch, key, image_ids, metrics, devices))
                raise nonfinite_loss_error(pending.step, image_ids, metrics, saved)
        logger.warning(
            "step %d is skipped because its loss or gradient is not finite (%s), images %s; skipped so far: %d,"
            " train.max_skipped=%d",
            *(pending.step, format_losses(metrics), image_ids, metrics["skipped"], self.config.max_skipped),
        )
        self.log.step(pending.step, {"skipped": metrics["skipped"]})

    def _global_image_ids(self, batch: Batch) -> list[Any]:
        """Return the image ids of the global batch."""
        local_ids = self.image_ids(np.asarray(batch.indices)[np.asarray(batch.valid)])
        gathered = collectives.gather(local_ids)
        return collectives.run_on_main(lambda: list(itertools.chain.from_iterable(gathered)))


def nonfinite_loss_error(step: int, image_ids: list[Any], metrics: dict[str, Any], saved: str) -> NonFiniteLossError:
    """Return the error for a step with a non-finite loss or gradient, saved in the file `saved` ("" if it is not)."""
    skipped = int(metrics["skipped"]) - 1
    message = f"the loss or its gradient is not finite at step {step} ({format_losses(metrics)}), images {image_ids}."
    if skipped:
        message += f" Steps skipped before it, as train.max_skipped allows: {skipped}."
    if saved:
        message += f" `mrcnn replay {shlex.quote(saved)}` repeats the step and names the image and the loss."
    message += (
        " The last checkpoint is from before this step: the same command resumes there and fails here again;"
        f" with train.max_skipped={skipped + 1} it skips the step. A new run with a lower learning rate, a longer"
        " warmup or optimizer.clip_norm often helps; with init=WORKDIR it starts from the weights of this run"
    )
    return NonFiniteLossError(message, step=step, image_ids=image_ids, saved=saved)
