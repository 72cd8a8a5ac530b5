"""Evaluations during and after training: validation loss, average precision, best checkpoint, early stopping."""

from __future__ import annotations

import json
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
from mrcnn_jax.runtime import files
from mrcnn_jax.training.validation import ValidationLoss

logger = logging.getLogger(__name__)

EVALUATIONS = "evaluations.jsonl"  # in the work directory
UNDEFINED = -1  # value of a precision or recall in pycocotools if there is no ground truth for it
_PRECISION = "bbox/AP"  # every evaluation has it

Row = dict[str, Any]  # "step", and the metrics of the variables after that many steps


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
        self._rows: dict[int, Row] = {}
        self._best_step: int | None = None  # the step in `workdir/best`, if it has a row
        self._latest: Row = {}  # metrics that this process computed last
        self._validation: ValidationLoss | None = None

    def resume(self, step: int) -> None:
        """Read the rows up to `step`, from which the training starts, and the step in `workdir/best`."""

        def read() -> bytes:
            return json.dumps([_truncate_rows(self._path, step), best_step(self._workdir)]).encode()

        rows, saved_step = json.loads(collectives.run_on_main(read))
        self._rows = {row["step"]: row for row in rows}
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
        known = self._latest if self._latest.get("step") == step else {}
        return _metrics({**known, **self._evaluate(step, state, wanted - known.keys(), quiet=False)})

    def overlays(self, step: int) -> dict[str, bytes]:
        """Return the images that this process's evaluation at `step` drew: name -> PNG. Empty without an evaluation."""
        if self._latest.get("step") != step or _PRECISION not in self._latest or not collectives.is_main():
            return {}
        return {path.stem: path.read_bytes() for path in (epath.Path(self._workdir) / FOLDER / OVERLAYS).glob("*.png")}

    def recorded_metrics(self, step: int) -> dict[str, float]:
        """Return the metrics recorded for `step`; empty if there are none."""
        return _metrics(self._rows.get(step, {}))

    def patience_exhausted(self) -> bool:
        """Return whether `train.patience` evaluations have passed without a better metric."""
        patience, metric = self._config.train.patience, self._config.train.best_metric
        best = self._best_row()
        evaluated = [step for step, row in self._rows.items() if row.get(metric, UNDEFINED) != UNDEFINED]
        return 0 < patience <= sum(best is None or step > best[0] for step in evaluated)

    def best(self) -> tuple[int, float] | None:
        """Return step and `train.best_metric` of the weights in `workdir/best`: the first step if values are equal."""
        if self._best_step is None:
            return None
        value = self._value(self._rows[self._best_step])
        return (self._best_step, value) if self._is_better(value, None) else None

    def _best_row(self) -> tuple[int, float] | None:
        """Return step and value of the best row, whether or not its weights are in `workdir/best`."""
        best: tuple[int, float] | None = None
        for step, row in sorted(self._rows.items()):
            if self._is_better(self._value(row), best):
                best = step, self._value(row)
        return best

    def _warn_if_best_is_lost(self) -> None:
        """Log a warning if the best row is of other weights than those in `workdir/best`."""
        best, best_row, metric = self.best(), self._best_row(), self._config.train.best_metric
        if best_row is None or (best is not None and best_row[1] == best[1]):
            return
        reference = f"step {best[0]} ({best[1]:.3f})" if best else "the next evaluation"
        logger.warning(
            "%s was best at step %d (%.3f), but its weights were not saved (train.best_metric was another one then, or"
            " the run has resumed from an earlier step); %s counts as the best in %s",
            *(metric, *best_row, reference, epath.Path(self._workdir) / BEST),
        )

    def _value(self, row: Row) -> float:
        """Return `train.best_metric` of a row; NaN if it was not evaluated or is undefined."""
        value = float(row.get(self._config.train.best_metric, UNDEFINED))
        return math.nan if value == UNDEFINED else value

    def _is_better(self, value: float, best: tuple[int, float] | None) -> bool:
        """Return whether a value of the metric is better than `best` (step, value); False for NaN."""
        sign = -1 if self._config.train.best_metric == VALIDATION_LOSS else 1
        return sign * value > sign * best[1] if best else not math.isnan(value)

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
        self._latest = {"step": step, **metrics}
        self._record({**self._latest, **self._rows.get(step, {})}, variables)
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

    def _record(self, row: Row, variables: Variables) -> None:
        """Save the variables if they are the best, then write the rows: a run killed in between evaluates again."""
        step = row["step"]
        if self._rows.get(step) == row:
            return
        better = self._is_better(self._value(row), self.best())
        self._rows[step] = row
        if better:
            self._best_step = step

        def write() -> bytes:
            if better:
                save_best(self._workdir, step, variables)
            _write_rows(self._path, [row for _, row in sorted(self._rows.items())])
            return b""

        collectives.run_on_main(write)


def _check_best_metric(config: Config, dataset: Dataset) -> None:
    """Raise ConfigError if `dataset` has no ground truth for `train.best_metric`."""
    metric = config.train.best_metric
    names = scorable_iou_types(config, dataset)
    if metric and metric != VALIDATION_LOSS and metric.split("/")[0] not in names:
        raise ConfigError(
            f"train.best_metric={metric}, but data.eval can only be scored on {', '.join(names)}: give another metric"
        )


def _metrics(row: Row) -> dict[str, float]:
    return {name: value for name, value in row.items() if name != "step"}


def _truncate_rows(path: epath.Path, step: int) -> list[Row]:
    """Drop the rows after `step`, and lines that a power failure damaged, from the file; return the other rows."""
    content = path.read_bytes().decode(errors="replace") if path.is_file() else ""
    rows = [_parse_row(line) for line in content.splitlines()]
    kept = [row for row in rows if row is not None and row["step"] <= step]
    if damaged := rows.count(None):
        logger.warning("%s: dropping %d damaged lines; their evaluations are lost", path, damaged)
    if len(kept) < len(rows):
        _write_rows(path, kept)
    return kept


def _parse_row(line: str) -> Row | None:
    """Return the row in a line; None if the line is damaged."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and type(row.get("step")) is int else None


def _write_rows(path: epath.Path, rows: Iterable[Row]) -> None:
    files.write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
