"""The loop around the train step: batches in, metrics out, with checkpoints, measurements and guards."""

from __future__ import annotations

import dataclasses
import json
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
from mrcnn_jax.runtime import profiling
from mrcnn_jax.structures import Batch
from mrcnn_jax.training import parallel
from mrcnn_jax.training.evaluations import Evaluations
from mrcnn_jax.training.interruption import Interruptions
from mrcnn_jax.training.logs.metrics_log import MetricsLog
from mrcnn_jax.training.nonfinite_dump import Failure

logger = logging.getLogger(__name__)

ImageIds = Callable[[np.ndarray], list[Any]]  # positions in the data set -> ids of its images
SaveFailure = Callable[[Failure], str]  # -> path of the file, or "" if it cannot be written


@dataclasses.dataclass
class Pending:
    """A step whose metrics have not been read yet, so that the devices need not wait for the host."""

    step: int
    metrics: dict[str, jax.Array]
    batch: Batch  # on the host


@dataclasses.dataclass(frozen=True)
class Loop:
    """Trains up to `config.steps`.

    The order of a round: save, stop or measure if it is time, next batch, start the step, read the metrics of the step
    before. Nothing is saved before the loss that led to it is known to be finite.
    """

    train_step: parallel.CompiledTrainStep
    config: TrainConfig
    log: MetricsLog
    checkpointer: Checkpointer
    image_ids: ImageIds
    save_failure: SaveFailure
    interruptions: Interruptions
    evaluations: Evaluations
    devices: Sequence[jax.Device]
    profile: profiling.StepProfiler = dataclasses.field(default_factory=profiling.StepProfiler)

    def run(self, state: Any, batches: Iterator[Batch], key: jax.Array) -> Any:
        """The final state, which is saved; `batches` starts at `state.step`.

        Raises NonFiniteLossError, one step late; Interrupted after a signal, when the state is saved; ConfigError if
        more steps were left out already than `config.max_skipped`.
        """
        start, skipped = int(state.step), int(state.skipped)
        if skipped > self.config.max_skipped:  # the train step would change nothing any more
            raise ConfigError(f"train.max_skipped={self.config.max_skipped}, but the run has left out {skipped} steps")
        state, key = parallel.replicate((state, key), self.devices)
        # Signals wait for a safe point; an array that moves between host and device unasked is an error.
        with self.interruptions.postponed(), jax.transfer_guard("disallow"):
            state, done = self._rounds(start, state, batches, key)
            self.checkpointer.save(done, state)
            self.checkpointer.wait()
        return state

    def _rounds(self, start: int, state: Any, batches: Iterator[Batch], key: jax.Array) -> tuple[Any, int]:
        """The state after the last step, and how many steps are done."""
        pending: Pending | None = None
        for step in range(start, self.config.steps):
            stop, measure = self.interruptions.reached(), self.evaluations.due(step)
            if stop or measure or (step > start and step % self.config.checkpoint_every == 0):
                self._flush_metrics(pending, state, key)
                pending = None
                self.checkpointer.save(step, state)
            if stop:
                self.checkpointer.wait()
                raise self.interruptions.interrupted(step)
            if measure and self._measure(step, state):
                return state, step
            self.profile.begin(step + 1)
            with self.log.waiting(), jax.profiler.TraceAnnotation(profiling.INPUT_EVENT):
                batch = next(batches)
            state, metrics = self._start_step(state, batch, key)
            self._flush_metrics(pending, state, key)
            pending = Pending(step + 1, metrics, batch)
            self.profile.end(metrics)
        self._flush_metrics(pending, state, key)
        return state, max(start, self.config.steps)

    def _measure(self, step: int, state: Any) -> bool:
        """Measure what is due; whether the training is to end here. A signal ends it at once, the state is saved."""
        self.profile.stop()
        with jax.transfer_guard("allow"), self.log.measuring():
            metrics = self.evaluations.measure(step, state)
        self.log.write_scalars(step, metrics, self.evaluations.pictures(step))
        return self.evaluations.exhausted()

    def _start_step(self, state: Any, batch: Batch, key: jax.Array) -> tuple[Any, dict[str, jax.Array]]:
        """Start a step without waiting for it; the time of a compilation is kept out of the rates."""
        traces, before = self.train_step.traces, time.perf_counter()
        state, metrics = self.train_step(state, parallel.place_batch(batch, self.devices), key)
        if self.train_step.traces > traces:
            self.log.exclude(time.perf_counter() - before)
        return state, metrics

    def _flush_metrics(self, pending: Pending | None, state: Any, key: jax.Array) -> None:
        """Read the metrics of a step (waits for it) and log them. Raises NonFiniteLossError."""
        if pending is None:
            return
        with jax.profiler.TraceAnnotation("metrics"):
            metrics = jax.device_get(pending.metrics)
        if metrics.pop("finite"):
            self.log.step(pending.step, metrics)
        else:
            self._record_skipped_step(pending, metrics, state, key)

    def _record_skipped_step(self, pending: Pending, metrics: dict[str, Any], state: Any, key: jax.Array) -> None:
        """Say which step was left out; with more of them than allowed, keep what met it and raise."""
        with jax.transfer_guard("allow"):
            images = self._all_image_ids(pending.batch)
            if metrics["skipped"] > self.config.max_skipped:
                # Since then the state has not changed: see `training.step`.
                devices = len(self.devices) * jax.process_count()
                saved = self.save_failure(Failure(state, pending.batch, key, images, metrics, devices))
                raise non_finite(pending.step, images, metrics, saved)
        logger.warning(
            "step %d is left out, its loss or gradient is not finite (%s), images %s: %d of at most %d such steps",
            *(pending.step, _describe(metrics), images, metrics["skipped"], self.config.max_skipped),
        )
        self.log.step(pending.step, {"skipped": metrics["skipped"]})

    def _all_image_ids(self, batch: Batch) -> list[Any]:
        """Ids of the images in the global batch."""
        ours = self.image_ids(np.asarray(batch.indices)[np.asarray(batch.valid)])
        shares = collectives.gather_bytes(json.dumps(ours).encode())
        return [image for share in shares for image in json.loads(share)]


def non_finite(step: int, image_ids: list[Any], metrics: dict[str, Any], saved: str) -> NonFiniteLossError:
    """The error of a step whose loss or gradient is not finite; `saved` is the file that contains it, or empty."""
    before = int(metrics["skipped"]) - 1
    replay = f"mrcnn replay {shlex.quote(saved)}"
    message = (
        f"the loss or its gradient is not finite at step {step} ({_describe(metrics)}), images {image_ids}."
        + (f" Such steps that were left out before it, as train.max_skipped allows: {before}." if before else "")
        + (f" `{replay}` does the step again and says which image and which loss it is." if saved else "")
        + " The last checkpoint is from before it: the same command goes on from there, and meets it again."
        f" train.max_skipped={before + 1} leaves it out. A new run with a lower learning rate, a longer warmup or"
        " optimizer.clip_norm often helps; init=WORKDIR begins it with the weights of this one"
    )
    return NonFiniteLossError(message, step=step, image_ids=image_ids, saved=saved)


def _describe(metrics: dict[str, Any]) -> str:
    shown = {name: value for name, value in metrics.items() if name.startswith("loss") or name == "grad_norm"}
    return ", ".join(f"{name} {float(value):.4g}" for name, value in shown.items())
