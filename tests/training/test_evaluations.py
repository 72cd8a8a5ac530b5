"""Evaluations during training: schedule, best checkpoint, patience, resuming."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from mrcnn_jax.checkpoints.manager import load_variables
from mrcnn_jax.config import EvalConfig
from mrcnn_jax.data import load_split
from mrcnn_jax.data.pipeline import eval_batches
from mrcnn_jax.errors import ConfigError
from mrcnn_jax.training import evaluations as module
from mrcnn_jax.training import validation
from mrcnn_jax.training.evaluations import EVALUATIONS, PeriodicEvaluator
from mrcnn_jax.training.train import train, with_categories
from mrcnn_jax.training.validation import ValidationLoss

pytestmark = pytest.mark.medium


@pytest.fixture(scope="module")
def eval_dataset(tiny_config):
    return load_split(tiny_config.data, "eval")


@pytest.fixture(scope="module")
def config(tiny_config, eval_dataset):
    """The tiny recipe with its categories."""
    return with_categories(tiny_config, eval_dataset.categories)


def with_train(config, **settings):
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **settings))


class State:
    """A state whose variables contain the step."""

    def __init__(self, step):
        self._step = step

    def inference_variables(self):
        return {"params": {"step": np.int32(self._step)}, "frozen": {}}


class FakeEvaluation:
    """Replaces the evaluation by the values `precision[step]` and `loss[step]`, and records the calls."""

    def __init__(self, monkeypatch, precision=None, loss=None):
        self.precision, self.loss, self.calls = precision or {}, loss or {}, []
        monkeypatch.setattr(module, "evaluate_model", self._evaluate)
        monkeypatch.setattr(module, "ValidationLoss", lambda *_, **__: self._validate)

    def _evaluate(self, config, variables, workdir, **_):
        step = int(variables["params"]["step"])
        self.calls.append(("AP", step))
        return {"bbox/AP": self.precision.get(step, 0.0)}

    def _validate(self, variables, batches, check):
        step = int(variables["params"]["step"])
        self.calls.append(("loss", step))
        return {"validation/loss": self.loss.get(step, 1.0)}


def rows(workdir):
    return [json.loads(line) for line in (workdir / EVALUATIONS).read_text().splitlines()]


def make_evaluator(config, workdir, eval_dataset, step=0):
    evaluator = PeriodicEvaluator(config, workdir, eval_dataset, jax.local_devices())
    evaluator.resume(step)
    return evaluator


def run(config, workdir, eval_dataset, steps, begin=0):
    """Evaluate as the training loop does, until patience is exhausted, then the final state."""
    evaluator = make_evaluator(config, workdir, eval_dataset, begin)
    step = begin
    while step < steps and not evaluator.patience_exhausted():
        if evaluator.is_due(step):
            evaluator.evaluate(step, State(step))
            if evaluator.patience_exhausted():
                break
        step += 1
    return evaluator, step, evaluator.evaluate_final(step, State(step))


def test_each_metric_has_its_own_interval(config, tmp_path, eval_dataset, monkeypatch):
    fake = FakeEvaluation(monkeypatch)
    run(with_train(config, validate_every=2, evaluate_every=3), tmp_path, eval_dataset, steps=8)
    assert fake.calls == [
        *[("loss", 2), ("AP", 3), ("loss", 4), ("loss", 6), ("AP", 6)],
        *[("loss", 8), ("AP", 8)],
    ]
    assert [set(row) - {"step"} for row in rows(tmp_path)] == [
        *[{"validation/loss"}, {"bbox/AP"}, {"validation/loss"}],
        *[{"validation/loss", "bbox/AP"}] * 2,
    ]
    assert [row["step"] for row in rows(tmp_path)] == [2, 3, 4, 6, 8]


def test_only_the_final_state_is_evaluated_by_default(config, tmp_path, eval_dataset, monkeypatch):
    fake = FakeEvaluation(monkeypatch)
    evaluator, _, found = run(config, tmp_path, eval_dataset, steps=8)
    assert fake.calls == [("AP", 8)]
    assert found == {"bbox/AP": 0.0}
    assert evaluator.best() is None
    assert not (tmp_path / "best").exists()


def best_step(workdir):
    """Return the step in the best checkpoint, after checking that it is that of its folder."""
    (folder,) = (workdir / "best").iterdir()
    (workdir / "config.json").write_text("{}")
    _, variables = load_variables(workdir, "best")
    assert folder.name == str(variables["params"]["step"])
    return int(folder.name)


def test_highest_precision_is_the_best_and_the_first_of_equal_ones(config, tmp_path, eval_dataset, monkeypatch):
    FakeEvaluation(monkeypatch, precision={2: 0.1, 4: 0.3, 6: 0.3, 8: 0.2})
    best = with_train(config, evaluate_every=2, best_metric="bbox/AP")
    evaluator, _, _ = run(best, tmp_path, eval_dataset, steps=8)
    assert evaluator.best() == (4, 0.3)
    assert best_step(tmp_path) == 4


def test_lowest_loss_is_the_best_and_nan_never(config, tmp_path, eval_dataset, monkeypatch):
    FakeEvaluation(monkeypatch, loss={2: math.nan, 4: 3.0, 6: math.nan, 8: 2.0})
    best = with_train(config, validate_every=2, best_metric="validation/loss")
    evaluator, _, _ = run(best, tmp_path, eval_dataset, steps=8)
    assert evaluator.best() == (8, 2.0)  # the final evaluation counts, too
    assert best_step(tmp_path) == 8


def test_patience(config, tmp_path, eval_dataset, monkeypatch):
    fake = FakeEvaluation(monkeypatch, precision={2: 0.1, 4: 0.3, 6: 0.2, 8: 0.3, 10: 0.9})
    patient = with_train(config, evaluate_every=2, best_metric="bbox/AP", patience=2)
    _, step, found = run(patient, tmp_path, eval_dataset, steps=20)
    assert step == 8
    assert found == {"bbox/AP": 0.3}
    assert fake.calls == [("AP", step) for step in (2, 4, 6, 8)]  # the final state is not evaluated twice
    before = (tmp_path / EVALUATIONS).read_text()
    again, step, _ = run(patient, tmp_path, eval_dataset, steps=20, begin=8)
    assert (step, again.best(), again.patience_exhausted()) == (8, (4, 0.3), True)
    assert (tmp_path / EVALUATIONS).read_text() == before
    _, step, _ = run(with_train(patient, patience=3), tmp_path, eval_dataset, steps=20, begin=8)
    assert step == 16  # with more patience: up to the best step 10, and three more evaluations


def test_rows_after_the_restored_step_are_computed_again(config, tmp_path, eval_dataset, monkeypatch):
    fake = FakeEvaluation(monkeypatch, precision={2: 0.1, 4: 0.9, 6: 0.3})
    best = with_train(config, evaluate_every=2, best_metric="bbox/AP")
    run(best, tmp_path, eval_dataset, steps=6)
    fake.precision[4] = 0.2
    evaluator, _, _ = run(best, tmp_path, eval_dataset, steps=6, begin=3)
    assert [row["bbox/AP"] for row in rows(tmp_path)] == [0.1, 0.2, 0.3]
    assert evaluator.best() == (6, 0.3)
    assert best_step(tmp_path) == 6
    make_evaluator(best, tmp_path, eval_dataset, step=2)
    assert [row["step"] for row in rows(tmp_path)] == [2]


def test_best_metric_may_change(config, tmp_path, eval_dataset, monkeypatch, caplog):
    """The best weights by the new metric have been overwritten."""
    FakeEvaluation(monkeypatch, precision={2: 0.9, 4: 0.1, 6: 0.2, 8: 0.3}, loss={2: 3.0, 4: 2.0, 6: 2.5, 8: 2.6})
    both = with_train(config, validate_every=2, evaluate_every=2)
    first, _, _ = run(with_train(both, best_metric="validation/loss"), tmp_path, eval_dataset, steps=4)
    assert first.best() == (4, 2.0)
    precise = with_train(both, best_metric="bbox/AP", patience=2)
    evaluator = make_evaluator(precise, tmp_path, eval_dataset, step=4)
    assert evaluator.best() == (4, 0.1)
    assert best_step(tmp_path) == 4
    assert "bbox/AP was best at step 2 (0.900), but its weights were not saved" in caplog.text
    assert "step 4 (0.100) counts as the best" in caplog.text
    assert not evaluator.patience_exhausted()
    evaluator, step, _ = run(precise, tmp_path, eval_dataset, steps=20, begin=4)
    assert step == 6  # two evaluations after step 2 were not better
    assert evaluator.best() == (6, 0.2)
    assert best_step(tmp_path) == 6


def test_best_metric_set_later_starts_with_the_next_evaluation(config, tmp_path, eval_dataset, monkeypatch, caplog):
    FakeEvaluation(monkeypatch, precision={2: 0.9, 4: 0.1, 6: 0.2, 8: 0.15})
    run(with_train(config, evaluate_every=2), tmp_path, eval_dataset, steps=4)
    evaluator, _, _ = run(
        with_train(config, evaluate_every=2, best_metric="bbox/AP"), tmp_path, eval_dataset, steps=8, begin=4
    )
    assert "the next evaluation counts as the best" in caplog.text
    assert evaluator.best() == (6, 0.2)
    assert best_step(tmp_path) == 6


def test_undefined_precision_is_never_the_best(config, tmp_path, eval_dataset, monkeypatch):
    """pycocotools returns -1 if there are no annotated objects."""
    FakeEvaluation(monkeypatch, precision={2: -1, 4: -1, 6: -1, 8: -1})
    patient = with_train(config, evaluate_every=2, best_metric="bbox/AP", patience=2)
    evaluator, step, _ = run(patient, tmp_path, eval_dataset, steps=8)
    assert step == 8
    assert evaluator.best() is None
    assert not (tmp_path / "best").exists()


@pytest.mark.parametrize(
    "tail", [b'{"step": 6, "bbox/AP": 0.', b"\0" * 300, b'"torn"\n[1]\n{"bbox/AP": 1}\n', b"\xff\xfe"]
)
def test_damaged_rows_are_dropped(tail, config, tmp_path, eval_dataset, monkeypatch, caplog):
    FakeEvaluation(monkeypatch, precision={2: 0.1, 4: 0.3})
    best = with_train(config, evaluate_every=2, best_metric="bbox/AP")
    run(best, tmp_path, eval_dataset, steps=4)
    with (tmp_path / EVALUATIONS).open("ab") as file:
        file.write(tail)
    assert make_evaluator(best, tmp_path, eval_dataset, step=8).best() == (4, 0.3)
    assert f"{tmp_path / EVALUATIONS}: " in caplog.text
    assert [row["step"] for row in rows(tmp_path)] == [2, 4]


@pytest.mark.parametrize("where", ["save_best", "write_rows"])
def test_killed_before_the_row_is_written(where, config, tmp_path, eval_dataset, monkeypatch):
    """Before or after the best checkpoint is saved: the step is evaluated again."""
    fake = FakeEvaluation(monkeypatch, precision={2: 0.1, 4: 0.3})
    best = with_train(config, evaluate_every=2, best_metric="bbox/AP")
    original, seen = getattr(module, where), []

    def killed(*arguments):
        seen.append(arguments)
        if len(seen) == 2:  # for step 4
            raise SystemError("killed")
        return original(*arguments)

    monkeypatch.setattr(module, where, killed)
    with pytest.raises(SystemError):
        run(best, tmp_path, eval_dataset, steps=6)
    assert [row["step"] for row in rows(tmp_path)] == [2]
    fake.calls.clear()
    run(best, tmp_path, eval_dataset, steps=6, begin=4)
    assert fake.calls == [("AP", 4), ("AP", 6)]
    assert [row["step"] for row in rows(tmp_path)] == [2, 4, 6]
    assert best_step(tmp_path) == 4


def test_metric_without_ground_truth_is_rejected(config, tmp_path, eval_dataset):
    masks = with_train(config, evaluate_every=2, best_metric="segm/AP")
    PeriodicEvaluator(masks, tmp_path, eval_dataset, jax.local_devices())
    without = dataclasses.replace(eval_dataset, has_masks=False)
    with pytest.raises(ConfigError, match=r"best_metric=segm/AP, but data\.eval can only be scored on bbox"):
        PeriodicEvaluator(masks, tmp_path, without, jax.local_devices())


def test_validation_loss_of_several_processes():
    """The sum over the count of all processes, not a mean of their means."""
    assert validation._mean([(6.0, 3.0), (1.0, 1.0)]) == 7 / 4
    assert validation._mean([(0.0, 0.0), (0.0, 0.0)]) == 0


SETTINGS = {
    "validate_every": 2,
    "evaluate_every": 4,
    "best_metric": "validation/loss",
    "checkpoint_every": 100,
    "keep_checkpoints": 100,
}


class EvaluatedRun(NamedTuple):
    """A run with evaluations."""

    workdir: Path
    state: Any
    counts: list[tuple[int, int]]  # step of an evaluation, compilations during it
    validation: ValidationLoss


@pytest.fixture(scope="module")
def evaluated_run(tiny_config, tmp_path_factory):
    """The tiny recipe with evaluations."""
    compilations, counts, used = [], [], []

    def listen(event, _, **__):
        if event == "/jax/core/compile/backend_compile_duration":
            compilations.append(event)

    def counting(self, step, state, original=PeriodicEvaluator.evaluate):
        before = len(compilations)
        found = original(self, step, state)
        counts.append((step, len(compilations) - before))
        used.append(self._validation)
        return found

    jax.monitoring.register_event_duration_secs_listener(listen)
    workdir = tmp_path_factory.mktemp("runs") / "measured"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PeriodicEvaluator, "evaluate", counting)
        state = train(with_train(tiny_config, **SETTINGS), workdir)
    assert len(set(used)) == 1
    return EvaluatedRun(workdir, jax.device_get(state), counts, used[0])


def test_evaluations_do_not_change_the_training(evaluated_run, finished_run):
    jax.tree.map(np.testing.assert_array_equal, evaluated_run.state, jax.device_get(finished_run.state))


def test_validation_loss_does_not_depend_on_batches_and_devices(config, eval_dataset, evaluated_run):
    """Sums and counts are added before the division; empty slots do not count."""
    _, variables = load_variables(evaluated_run.workdir)

    def losses(batch_size, validation):
        divided = dataclasses.replace(config, eval=EvalConfig(batch_size=batch_size))
        asked = []
        with eval_batches(eval_dataset, divided) as batches:
            found = validation(variables, batches, lambda: asked.append(1))
        assert len(asked) == -(-len(eval_dataset) // batch_size)
        return found

    alone = ValidationLoss(config.model, jax.local_devices()[:1], masks=False, keypoints=False)
    one, two = losses(3, alone), losses(4, evaluated_run.validation)
    parts = {f"validation/loss_{name}" for name in ("rpn_class", "rpn_box", "class", "box")}
    assert one.keys() == {"validation/loss", *parts}
    assert two.keys() == one.keys() | {"validation/loss_mask"}
    for name in parts:
        assert one[name] == pytest.approx(two[name], rel=1e-5)  # float32 sums of a thousand terms in another order
    assert two["validation/loss"] == pytest.approx(sum(two[name] for name in (*parts, "validation/loss_mask")))


def test_evaluations_compile_once(evaluated_run):
    """The loss at step 2, the detections at step 4 unless already compiled in this process, nothing later."""
    counts = evaluated_run.counts
    assert [step for step, _ in counts] == [2, 4, 6, 8]
    assert counts[0][1] > 0
    assert [count for _, count in counts[2:]] == [0, 0]


def test_evaluations_are_recorded(evaluated_run):
    workdir = evaluated_run.workdir
    found = rows(workdir)
    assert [row["step"] for row in found] == [2, 4, 6, 8, 10]
    assert ["bbox/AP" in row for row in found] == [False, True, False, True, True]
    assert all(0 < row["validation/loss"] < 100 for row in found)
    best = min(found, key=lambda row: row["validation/loss"])["step"]
    assert [path.name for path in (workdir / "best").iterdir()] == [str(best)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "killed", [pytest.param(1, id="in the first evaluation"), pytest.param(3, id="in the evaluation of the end")]
)
def test_killed_during_an_evaluation(killed, evaluated_run, tiny_config, tmp_path, monkeypatch, capsys):
    """Killed in evaluation number `killed`, of step 4 or of the final state; then the same call again."""
    original, seen = module.evaluate_model, []

    def evaluate(*arguments, **options):
        seen.append(1)
        if len(seen) == killed:
            raise SystemError("killed")
        return original(*arguments, **options)

    monkeypatch.setattr(module, "evaluate_model", evaluate)
    with pytest.raises(SystemError):
        train(with_train(tiny_config, **SETTINGS), tmp_path)
    state = train(with_train(tiny_config, **SETTINGS), tmp_path)
    workdir, expected = evaluated_run.workdir, evaluated_run.state
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), expected)
    assert rows(tmp_path) == rows(workdir)
    best = [path.name for path in (tmp_path / "best").iterdir()]
    assert best == [path.name for path in (workdir / "best").iterdir()]
    last = capsys.readouterr().out.splitlines()[-1]
    assert f"validation loss {rows(workdir)[-1]['validation/loss']:.3f}, best validation/loss" in last
    assert last.endswith(f"at step {best[0]}")
