"""Measurements during the training: the loss on held-back images, average precision, the best checkpoint so far."""

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
from mrcnn_jax.training.validation import Validation

logger = logging.getLogger(__name__)

EVALUATIONS = "evaluations.jsonl"  # in the workdir
NOTHING = -1  # pycocotools' value of a precision or recall that nothing could be measured for
_PRECISION = "bbox/AP"  # every evaluation has it

Row = dict[str, Any]  # "step", and the metrics of the variables after so many steps


class Evaluations:
    """What is measured between steps and at the end, and what follows from it.

    `workdir/evaluations.jsonl` has a row for each step that was measured. A metric is written once: where the training
    goes on from an earlier checkpoint, `begin` drops the rows that will come again. Whether patience has run out
    depends on the rows alone; the best step is the one whose weights are in `workdir/best`. Both are the same in all
    processes.
    """

    def __init__(
        self,
        config: Config,
        workdir: epath.PathLike,
        dataset: Dataset,
        devices: Sequence[jax.Device],
        check: Callable[[], None] = lambda: None,
    ):
        """Measures on `dataset`, the split `config.data.eval`; `check` is called before each batch and may raise.

        Raises ConfigError if `config` cannot be evaluated on `dataset`.
        """
        check_evaluation(config, dataset)
        _check_best(config, dataset)
        self._config, self._workdir, self._dataset = config, workdir, dataset
        self._path = epath.Path(workdir) / EVALUATIONS
        self._devices, self._check = devices, check
        self._rows: dict[int, Row] = {}
        self._held: int | None = None  # the step in `workdir/best`, if there is a row of it
        self._now: Row = {}  # what this process has measured itself, and last
        self._validation: Validation | None = None

    def begin(self, step: int) -> None:
        """Read the rows of `workdir` up to `step`, from where the training goes on, and which of them is in `best`."""

        def read() -> bytes:
            return json.dumps([_keep_until(self._path, step), best_step(self._workdir)]).encode()

        rows, held = json.loads(collectives.run_on_main(read))
        self._rows = {row["step"]: row for row in rows}
        self._held = held if held in self._rows else None
        best, highest, metric = self.best(), self._highest(), self._config.train.best_metric
        if highest is not None and (best is None or highest[1] != best[1]) and collectives.is_main():
            now = f"those of step {best[0]} ({best[1]:.3f}) are" if best else "those of the next measurement will be"
            logger.warning(
                "%s was best at step %d (%.3f), whose weights were not kept (another step was the best in"
                " train.best_metric then, or the run went on from an earlier one); %s the ones to beat in %s",
                *(metric, *highest, now, epath.Path(self._workdir) / BEST),
            )

    def due(self, step: int) -> bool:
        """Whether something is to be measured after `step` steps that has not been measured yet."""
        return bool(self._missing(step))

    def measure(self, step: int, state: Any) -> dict[str, float]:
        """Measure what is due on the state after `step` steps; what was found. No tables are printed."""
        return self._measure(step, state, self._missing(step), quiet=True)

    def finish(self, step: int, state: Any) -> dict[str, float]:
        """The measurements of the final state, after `step` steps: average precision, and the loss if it is asked for.

        What this process has measured of it already is not measured again; what an earlier one has is.
        """
        wanted = {_PRECISION} | ({VALIDATION_LOSS} if self._config.train.validate_every else set())
        known = self._now if self._now.get("step") == step else {}
        found = {**known, **self._measure(step, state, wanted - known.keys(), quiet=False)}
        return {name: value for name, value in found.items() if name != "step"}

    def pictures(self, step: int) -> dict[str, bytes]:
        """Pictures of what this process's evaluation after `step` steps found: by name, PNG. None without one."""
        if self._now.get("step") != step or _PRECISION not in self._now or not collectives.is_main():
            return {}
        return {path.stem: path.read_bytes() for path in (epath.Path(self._workdir) / FOLDER / OVERLAYS).glob("*.png")}

    def row(self, step: int) -> dict[str, float]:
        """What the rows say of `step`."""
        return {name: value for name, value in self._rows.get(step, {}).items() if name != "step"}

    def exhausted(self) -> bool:
        """Whether `train.patience` has run out: the training ends here."""
        patience, metric = self._config.train.patience, self._config.train.best_metric
        best = self._highest()
        since = [step for step, row in self._rows.items() if row.get(metric, NOTHING) != NOTHING]
        return 0 < patience <= sum(best is None or step > best[0] for step in since)

    def best(self) -> tuple[int, float] | None:
        """Step and value of the best `train.best_metric` whose weights are kept: the first one, if it came again."""
        if self._held is None:
            return None
        value = self._value(self._rows[self._held])
        return (self._held, value) if self._is_better(value, None) else None

    def _highest(self) -> tuple[int, float] | None:
        """Step and value of the best `train.best_metric` of all rows, whether or not its weights are kept."""
        found: tuple[int, float] | None = None
        for step, row in sorted(self._rows.items()):
            if self._is_better(self._value(row), found):
                found = step, self._value(row)
        return found

    def _value(self, row: Row) -> float:
        """The metric `train.best_metric` in a row; NaN where it was not measured, or there was nothing to measure."""
        value = float(row.get(self._config.train.best_metric, NOTHING))
        return math.nan if value == NOTHING else value

    def _is_better(self, value: float, best: tuple[int, float] | None) -> bool:
        """Whether a value of the metric is better than the best so far; NaN never is."""
        sign = -1 if self._config.train.best_metric == VALIDATION_LOSS else 1
        return sign * value > sign * best[1] if best else not math.isnan(value)

    def _missing(self, step: int) -> set[str]:
        train = self._config.train
        every = {VALIDATION_LOSS: train.validate_every, _PRECISION: train.evaluate_every}
        due = {name for name, steps in every.items() if steps and step > 0 and step % steps == 0}
        return due - self._rows.get(step, {}).keys()

    def _measure(self, step: int, state: Any, names: set[str], *, quiet: bool) -> dict[str, float]:
        if not names:
            return {}
        variables = jax.device_get(state.inference_variables())
        found: dict[str, float] = {}
        if VALIDATION_LOSS in names:
            found |= self._validate(variables)
        if _PRECISION in names:
            found |= evaluate_model(
                self._config,
                variables,
                self._workdir,
                dataset=self._dataset,
                devices=self._devices,
                check=self._check,
                quiet=quiet,
            )
        self._now = {"step": step, **found}
        self._record({**self._now, **self._rows.get(step, {})}, variables)
        return found

    def _validate(self, variables: Variables) -> dict[str, float]:
        index, count = jax.process_index(), jax.process_count()
        if self._validation is None:
            self._validation = Validation(
                self._config.model,
                largest_divisor(self._devices, self._config.eval.batch_size // count),
                masks=self._dataset.has_masks,
                keypoints=bool(self._dataset.categories.keypoint_schema.names),
            )
        with eval_batches(self._dataset, self._config, process_index=index, process_count=count) as batches:
            return self._validation(variables, batches, self._check)

    def _record(self, row: Row, variables: Variables) -> None:
        """Keep the variables if they are the best, then write the rows: until then they would be measured again."""
        step = row["step"]
        if self._rows.get(step) == row:
            return
        better = self._is_better(self._value(row), self.best())
        self._rows[step] = row
        if better:
            self._held = step

        def write() -> bytes:
            if better:
                save_best(self._workdir, step, variables)
            _write(self._path, [row for _, row in sorted(self._rows.items())])
            return b""

        collectives.run_on_main(write)


def _check_best(config: Config, dataset: Dataset) -> None:
    """Raise ConfigError if the data cannot give `train.best_metric`."""
    metric = config.train.best_metric
    names = scorable_iou_types(config, dataset)
    if metric and metric != VALIDATION_LOSS and metric.split("/")[0] not in names:
        raise ConfigError(
            f"train.best_metric={metric}, but data.eval can score {', '.join(names)} only: take another metric"
        )


def _keep_until(path: epath.Path, step: int) -> list[Row]:
    """Drop the rows after `step`, and lines that a power failure has torn or filled with zeros; the other rows."""
    content = path.read_bytes().decode(errors="replace") if path.is_file() else ""
    rows = [_row(line) for line in content.splitlines()]
    kept = [row for row in rows if row is not None and row["step"] <= step]
    if torn := rows.count(None):
        logger.warning("%s: %d lines are damaged and dropped; what was measured then is not known any more", path, torn)
    if len(kept) < len(rows):
        _write(path, kept)
    return kept


def _row(line: str) -> Row | None:
    """The row in a line; None if it is none."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and type(row.get("step")) is int else None


def _write(path: epath.Path, rows: Iterable[Row]) -> None:
    files.write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
