"""Evaluations during and after training: validation loss, average precision, best checkpoint, early stopping."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
from etils import epath

from mrcnn_jax.checkpoints.manager import best_step, save_best
from mrcnn_jax.checkpoints.workdir import BEST
from mrcnn_jax.config import Config
from mrcnn_jax.config.metric_names import VALIDATION_LOSS
from mrcnn_jax.data.dataset import Dataset
from mrcnn_jax.data.pipeline import eval_batches
from mrcnn_jax.distributed import collectives
from mrcnn_jax.errors import ConfigError
from mrcnn_jax.evaluation.evaluate import FOLDER, OVERLAYS, check_evaluation, evaluate_model, scorable_iou_types
from mrcnn_jax.inference.devices import largest_divisor
from mrcnn_jax.models.mask_rcnn import Variables
from mrcnn_jax.training.logs.json_lines import EVALUATIONS, truncate_rows, write_rows
from mrcnn_jax.training.validation import ValidationLoss

logger = logging.getLogger(__name__)

UNDEFINED = -1  # value of a precision or recall in pycocotools if there is no ground truth for it
_PRECISION = "bbox/AP"  # every evaluation has it

Metrics = dict[str, float]  # by name


class PeriodicEvaluator:
    """Evaluates the model during and after training, records the metrics and keeps the best checkpoint.

    `workdir/evaluations.jsonl` has one row per evaluated step. A run that resumes from an earlier checkpoint drops the
    later rows, which are computed again. Patience depends on the rows alone; the best step is the one whose weights are
    in `workdir/best`. Both are the same in all processes.
    """

    def __init__(
        self,
        config: Config,
        workdir: epath.PathLike,
        dataset: Dataset,
        devices: Sequence[jax.Device],
        check: Callable[[], None] = lambda: None,
    ):
        """Evaluate on `dataset`, the split `config.data.eval`. `check` is called before each batch and may raise.

        Raises ConfigError if `config` cannot be evaluated on `dataset`.
        """
        check_evaluation(config, dataset)
        _check_best_metric(config, dataset)
        self._config, self._workdir, self._dataset = config, workdir, dataset
        self._path = epath.Path(workdir) / EVALUATIONS
        self._devices, self._check = devices, check
        self._rows: dict[int, Metrics] = {}  # by step
        self._best_step: int | None = None  # the step in `workdir/best`, if it has a row
        self._latest: tuple[int, Metrics] = (-1, {})  # step of the last evaluation in this process, and its metrics
        self._validation: ValidationLoss | None = None

    def resume(self, step: int) -> None:
        """Read the rows up to `step`, from which the training starts, and the step in `workdir/best`."""
        rows, saved_step = collectives.run_on_main(lambda: (truncate_rows(self._path, step), best_step(self._workdir)))
        self._rows = {row.pop("step"): row for row in rows}
        self._best_step = saved_step if saved_step in self._rows else None
        if collectives.is_main():
            self._warn_if_best_is_lost()

    def is_due(self, step: int) -> bool:
        """Return whether an evaluation is due after `step` steps that has not been done yet."""
        return bool(self._due_metrics(step))

    def evaluate(self, step: int, state: Any) -> dict[str, float]:
        """Run the due evaluations of the state after `step` steps, without printing tables; return the metrics."""
        return self._evaluate(step, state, self._due_metrics(step), quiet=True)

    def evaluate_final(self, step: int, state: Any) -> dict[str, float]:
        """Evaluate the final state, after `step` steps: average precision, and the validation loss if it is enabled.

        Metrics that this process has computed for `step` are not computed again; those of an earlier process are.
        """
        wanted = {_PRECISION} | ({VALIDATION_LOSS} if self._config.train.validate_every else set())
        known = self._latest_metrics(step)
        return {**known, **self._evaluate(step, state, wanted - known.keys(), quiet=False)}

    def overlays(self, step: int) -> dict[str, bytes]:
        """Return the images that this process's evaluation at `step` drew: name -> PNG. Empty without an evaluation."""
        if _PRECISION not in self._latest_metrics(step) or not collectives.is_main():
            return {}
        return {path.stem: path.read_bytes() for path in (epath.Path(self._workdir) / FOLDER / OVERLAYS).glob("*.png")}

    def recorded_metrics(self, step: int) -> dict[str, float]:
        """Return the metrics recorded for `step`; empty if there are none."""
        return self._rows.get(step, {})

    def _latest_metrics(self, step: int) -> Metrics:
        """Return the metrics that this process has computed last; empty if that was not for `step`."""
        return self._latest[1] if self._latest[0] == step else {}

    def patience_exhausted(self) -> bool:
        """Return whether `train.patience` evaluations have passed without a better metric."""
        patience, metric = self._config.train.patience, self._config.train.best_metric
        best = self._best_of(self._rows)
        evaluated = [step for step, row in self._rows.items() if row.get(metric, UNDEFINED) != UNDEFINED]
        return 0 < patience <= sum(best is None or step > best for step in evaluated)

    def best(self) -> tuple[int, float] | None:
        """Return step and `train.best_metric` of the weights in `workdir/best`: the first step if values are equal."""
        step = self._best_of([] if self._best_step is None else [self._best_step])
        return None if step is None else (step, self._value(step))

    def _best_of(self, steps: Iterable[int]) -> int | None:
        """Return which of `steps` has the best `train.best_metric`, the first of equal ones; None without values."""
        sign = -1 if self._config.train.best_metric == VALIDATION_LOSS else 1
        defined = [step for step in sorted(steps) if not math.isnan(self._value(step))]
        return max(defined, key=lambda step: sign * self._value(step), default=None)

    def _value(self, step: int) -> float:
        """Return `train.best_metric` of a row; NaN if it was not evaluated or is undefined."""
        value = self._rows[step].get(self._config.train.best_metric, UNDEFINED)
        return math.nan if value == UNDEFINED else value

    def _warn_if_best_is_lost(self) -> None:
        """Log a warning if the best row is of other weights than those in `workdir/best`."""
        saved, best, metric = self.best(), self._best_of(self._rows), self._config.train.best_metric
        if best is None or (saved is not None and self._value(best) == saved[1]):
            return
        reference = f"step {saved[0]} ({saved[1]:.3f})" if saved else "the next evaluation"
        logger.warning(
            "%s was best at step %d (%.3f), but its weights were not saved (train.best_metric was another one then, or"
            " the run has resumed from an earlier step); %s counts as the best in %s",
            *(metric, best, self._value(best), reference, epath.Path(self._workdir) / BEST),
        )

    def _due_metrics(self, step: int) -> set[str]:
        train = self._config.train
        intervals = {VALIDATION_LOSS: train.validate_every, _PRECISION: train.evaluate_every}
        due = {name for name, interval in intervals.items() if interval and step > 0 and step % interval == 0}
        return due - self._rows.get(step, {}).keys()

    def _evaluate(self, step: int, state: Any, names: set[str], *, quiet: bool) -> dict[str, float]:
        if not names:
            return {}
        variables = jax.device_get(state.inference_variables())
        metrics: dict[str, float] = {}
        if VALIDATION_LOSS in names:
            metrics |= self._validate(variables)
        if _PRECISION in names:
            metrics |= evaluate_model(
                self._config,
                variables,
                self._workdir,
                dataset=self._dataset,
                devices=self._devices,
                check=self._check,
                quiet=quiet,
            )
        self._latest = step, metrics
        self._record(step, {**metrics, **self._rows.get(step, {})}, variables)
        return metrics

    def _validate(self, variables: Variables) -> dict[str, float]:
        index, count = jax.process_index(), jax.process_count()
        if self._validation is None:
            self._validation = ValidationLoss(
                self._config.model,
                largest_divisor(self._devices, self._config.eval.batch_size // count),
                masks=self._dataset.has_masks,
                keypoints=bool(self._dataset.categories.keypoint_schema.names),
            )
        with eval_batches(self._dataset, self._config, process_index=index, process_count=count) as batches:
            return self._validation(variables, batches, self._check)

    def _record(self, step: int, row: Metrics, variables: Variables) -> None:
        """Save the variables if they are the best, then write the rows: a run killed in between evaluates again."""
        if self._rows.get(step) == row:
            return
        self._rows[step] = row
        saved = self._best_step
        better = saved != step and self._best_of({step} if saved is None else {saved, step}) == step
        if better:
            self._best_step = step

        def write() -> None:
            if better:
                save_best(self._workdir, step, variables)
            write_rows(self._path, [{"step": number, **row} for number, row in sorted(self._rows.items())])

        collectives.run_on_main(write)


def _check_best_metric(config: Config, dataset: Dataset) -> None:
    """Raise ConfigError if `dataset` has no ground truth for `train.best_metric`."""
    metric = config.train.best_metric
    names = scorable_iou_types(config, dataset)
    if metric and metric != VALIDATION_LOSS and metric.split("/")[0] not in names:
        raise ConfigError(
            f"train.best_metric={metric}, but data.eval can only be scored on {', '.join(names)}: give another metric"
        )
