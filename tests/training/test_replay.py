"""Steps that are not finite: skipped, counted, saved in a file, and replayed."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from support import linear

from mrcnn_jax.checkpoints.manager import Checkpointer
from mrcnn_jax.cli import main as mrcnn
from mrcnn_jax.config import to_json
from mrcnn_jax.distributed import collectives
from mrcnn_jax.errors import NonFiniteLossError
from mrcnn_jax.training import nonfinite_dump, replay
from mrcnn_jax.training import train as train_module
from mrcnn_jax.training.nonfinite_dump import FailedStepFile, load_failed_step, save_failed_step

pytestmark = pytest.mark.medium

ROOT = Path(__file__).resolve().parents[2]
POISONED = (3, 6)  # batches (from 0) with a bad image
SLOT = 2  # of the bad image
# Sums in another order on two devices and in replay, amplified by batch norm.
ROUNDING = 1e-4


class Stopped(NamedTuple):
    """A run that skipped one bad step and ended at the next."""

    error: NonFiniteLossError
    output: str
    states: dict[int, Any]  # by their step
    batches: dict[int, Any]
    workdir: Path
    warnings: list[str]


class PoisonedBatches:
    """Batches, to some of which `poison` adds a bad image."""

    def __init__(self, batches, start: int, poison, seen: dict[int, Any]):
        self._batches, self._step, self._poison, self._seen = batches, start, poison, seen

    def __next__(self):
        batch = jax.tree.map(np.array, next(self._batches))
        if self._step in POISONED:
            self._poison(batch)
        self._seen[self._step] = batch
        self._step += 1
        return batch

    def __iter__(self):
        return self

    def __enter__(self):
        self._batches.__enter__()
        return self

    def __exit__(self, *error):
        self._batches.__exit__(*error)


def no_size(batch):
    """Make the loss of the linear model infinite."""
    batch.image_sizes[SLOT] = linear.POISON


def unknown_class(batch):
    """Make the loss of the network NaN."""
    batch.ground_truth.classes[SLOT] = np.where(batch.ground_truth.valid[SLOT], 99, 0)


def poisoned_run(config, workdir, poison) -> Stopped:
    """Train with averaged weights until the second bad step."""
    train = dataclasses.replace(config.train, checkpoint_every=1, max_skipped=1, ema_decay=0.9)
    states, batches, warnings = {}, {}, []
    open_batches, save = train_module.train_batches, Checkpointer.save

    def poisoned_batches(dataset, config, *, start_step, **others):
        return PoisonedBatches(
            open_batches(dataset, config, start_step=start_step, **others), start_step, poison, batches
        )

    def save_and_keep(self, step, state):
        states[step] = jax.device_get(state)
        save(self, step, state)

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as output:
        patch.setattr(train_module, "train_batches", poisoned_batches)
        patch.setattr(Checkpointer, "save", save_and_keep)
        patch.setattr("mrcnn_jax.training.loop.logger.warning", lambda text, *values: warnings.append(text % values))
        with pytest.raises(NonFiniteLossError) as error:
            train_module.train(dataclasses.replace(config, train=train), workdir)
    return Stopped(error.value, output.getvalue(), states, batches, workdir, warnings)


@pytest.fixture(scope="module")
def stopped(tiny_config, tmp_path_factory) -> Stopped:
    """A run of the linear model. It has running statistics, which a bad step must not change."""
    with pytest.MonkeyPatch.context() as patch:
        linear.replace_network(patch.setattr)
        return poisoned_run(tiny_config, tmp_path_factory.mktemp("poisoned"), no_size)


@pytest.fixture(scope="module")
def saved(stopped) -> FailedStepFile:
    return load_failed_step(stopped.error.saved)


@pytest.fixture(scope="module")
def stopped_network(tiny_config, tmp_path_factory) -> Stopped:
    """A run of a network with batch norm, whose last step is replayed."""
    model = tiny_config.model
    model = dataclasses.replace(model, backbone=dataclasses.replace(model.backbone, norm="bn"))
    config = dataclasses.replace(tiny_config, model=model)
    return poisoned_run(config, tmp_path_factory.mktemp("poisoned_network"), unknown_class)


@pytest.fixture(scope="module")
def saved_network(stopped_network) -> FailedStepFile:
    return load_failed_step(stopped_network.error.saved)


def bad_image_id(stopped: Stopped) -> Any:
    """Return the id of the bad image of the last step."""
    return stopped.error.image_ids[SLOT]


def test_bad_step_is_skipped_and_changes_nothing(stopped):
    before, after, next_one = (stopped.states[step] for step in (3, 4, 5))
    for name in ("params", "model_state", "opt_state", "ema"):
        assert jax.tree.leaves(getattr(before, name))
        jax.tree.map(np.testing.assert_array_equal, getattr(before, name), getattr(after, name))
    assert (int(before.step), int(after.step)) == (3, 4)
    assert (int(before.skipped), int(after.skipped), int(next_one.skipped)) == (0, 1, 1)
    moved = jax.tree.map(lambda a, b: bool(np.not_equal(a, b).any()), after.params, next_one.params)
    assert all(jax.tree.leaves(moved))
    running = jax.tree.map(lambda a, b: bool(np.not_equal(a, b).any()), after.model_state, next_one.model_state)
    assert all(jax.tree.leaves(running))


def test_bad_step_is_logged_and_counted(stopped):
    (warning,) = stopped.warnings
    assert warning.startswith("step 4 is skipped")
    assert "skipped so far: 1, train.max_skipped=1" in warning
    lines = [json.loads(line) for line in (stopped.workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["skipped"] for line in lines] == [0, 0, 0, 1, 1, 1]
    assert ["loss" in line for line in lines] == [True, True, True, False, True, True]
    said = stopped.output.splitlines()
    assert ["skipped 1" in line for line in said if line.startswith("step ")] == [False] * 3 + [True] * 3


def test_error_names_step_images_and_file(stopped):
    error, path = stopped.error, stopped.workdir / "failures" / "step_000007.npz"
    assert (error.step, error.saved) == (7, str(path))
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert f"mrcnn replay {path}" in str(error)
    assert str(error.image_ids) in str(error)
    assert "loss_linear inf" in str(error)
    assert sorted(stopped.states) == [1, 2, 3, 4, 5, 6]  # the bad step is in no checkpoint


def test_average_of_a_run_follows_its_weights(stopped):
    """The recursion on the saved states; a skipped step does not change the average."""
    for step in (1, 2, 4, 5):
        before, after = stopped.states[step], stopped.states[step + 1]
        kept = np.float32(min(0.9, (1 + step) / (10 + step)))
        expected = jax.tree.map(
            lambda old, new, kept=kept: old + (1 - kept) * (new - old), before.ema["params"], after.params
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), after.ema["params"], expected)


def test_file_contents(stopped, saved):
    state = stopped.states[6]
    jax.tree.map(np.testing.assert_array_equal, saved.failed_step.state["params"], state.params)
    jax.tree.map(np.testing.assert_array_equal, saved.failed_step.state["model_state"], state.model_state)
    assert int(saved.failed_step.state["step"]) == 6
    jax.tree.map(np.testing.assert_array_equal, saved.failed_step.batch, stopped.batches[6])
    assert saved.failed_step.image_ids == stopped.error.image_ids
    assert saved.failed_step.devices == 2
    assert to_json(saved.config) == (stopped.workdir / "config.json").read_text()


@pytest.mark.slow
def test_replay_finds_image_and_loss(stopped_network, saved_network, capsys):
    assert mrcnn(["replay", stopped_network.error.saved]) == 1
    said = capsys.readouterr().out
    assert (
        said.splitlines()[-1]
        == f"reproduced: loss_class not finite. Not finite alone: image {bad_image_id(stopped_network)}"
    )
    assert "the state before the step is finite" in said
    assert said.count("<- loss_class not finite") == 1
    metrics, _ = replay.replay_batch(saved_network)
    for name, value in saved_network.failed_step.metrics.items():
        if name.startswith("loss"):
            np.testing.assert_allclose(metrics[name], value, rtol=ROUNDING, err_msg=name)
    assert sum(np.isfinite(value) for name, value in metrics.items() if name.startswith("loss_")) == 4


@pytest.mark.slow
def test_replay_of_a_good_step(saved_network, capsys):
    truth = saved_network.failed_step.batch.ground_truth
    good = truth._replace(classes=np.minimum(truth.classes, 1))
    step = saved_network.failed_step._replace(batch=saved_network.failed_step.batch._replace(ground_truth=good))
    assert not replay.replay(saved_network._replace(failed_step=step))
    assert capsys.readouterr().out.splitlines()[-1].startswith("all finite here")


@pytest.mark.slow
def test_replay_distinguishes_bad_parameters_from_bad_images(saved_network, capsys):
    state = jax.tree.map(np.copy, saved_network.failed_step.state)
    state["params"]["box_head"]["logits"]["bias"][0] = np.nan
    assert replay.replay(saved_network._replace(failed_step=saved_network.failed_step._replace(state=state)))
    said = capsys.readouterr().out
    assert "params: 1 of" in said
    assert "  box_head/logits/bias: 1 of " in said
    assert "gradients: " in said
    assert "so the images are not the cause" in said.splitlines()[-1]


def rewritten(path: Path, target: Path, **changes: Any) -> Path:
    """Copy an archive with some members changed, or removed if the new value is None."""
    with np.load(path) as arrays:
        members = {**arrays, **changes}
    np.savez(target, **{name: array for name, array in members.items() if array is not None})
    return target


def about(path: Path, **changes: Any) -> np.ndarray:
    with np.load(path) as arrays:
        return np.array(json.dumps({**json.loads(str(arrays["about"])), **changes}))


def damaged(path: Path, target: Path, kind: str) -> Path:
    content = path.read_bytes()
    if kind == "missing":
        return target
    if kind == "text":
        target.write_text("hello")
    elif kind == "cut":
        target.write_bytes(content[: len(content) // 2])
    elif kind == "flipped":
        with zipfile.ZipFile(path) as archive:
            place = archive.getinfo("batch/images.npy").header_offset + 2000
        target.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    elif kind == "pickle":
        np.savez(target, about=np.array([{}], object))
    elif kind == "incomplete":
        return rewritten(path, target, key=None)
    elif kind == "later":
        return rewritten(path, target, about=about(path, format=2))
    else:
        return rewritten(path, target, about=about(path, config='{"nonsense": 1}'))
    return target


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "No such file"),
        ("text", "not an .npz archive"),
        ("cut", "truncated"),
        ("flipped", "CRC"),
        ("pickle", "allow_pickle=False"),
        ("incomplete", "no 'key'"),
        ("later", "it has format 2, of mrcnn_jax"),
        ("other", "unknown configuration field"),
    ],
)
def test_invalid_file_is_reported_in_one_line(stopped, tmp_path, capsys, kind, message):
    path = damaged(Path(stopped.error.saved), tmp_path / "step.npz", kind)
    assert mrcnn(["replay", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {path} ")
    assert message in line


def test_file_that_cannot_be_written(stopped, saved, tmp_path, caplog):
    (tmp_path / "failures").write_text("in the way")
    step = saved.failed_step._replace(state=stopped.states[6])
    assert save_failed_step(tmp_path, saved.config, step) == ""
    assert f"the failed step could not be written to {tmp_path / 'failures' / 'step_000007.npz'}" in caplog.text


def test_batches_of_several_processes_are_joined(stopped, saved, tmp_path, monkeypatch):
    """As if each of two processes had half of the batch."""
    halves = [jax.tree.map(lambda x, half=half: x[2 * half : 2 * half + 2], saved.failed_step.batch) for half in (0, 1)]
    other = nonfinite_dump.leaves_by_path({"batch": halves[1]})
    monkeypatch.setattr(collectives, "gather", lambda content: [content, other])
    ours = saved.failed_step._replace(state=stopped.states[6], batch=halves[0])
    loaded = load_failed_step(save_failed_step(tmp_path, saved.config, ours))
    jax.tree.map(np.testing.assert_array_equal, loaded.failed_step.batch, saved.failed_step.batch)


@pytest.mark.slow
def test_command_needs_no_packages_for_data(stopped_network):
    """In a subprocess in which they cannot be imported."""
    blocked = ["cv2", "grain", "tensorflow_datasets", "array_record", "pycocotools", "PIL", "orbax"]
    script = f"""
        import sys
        sys.modules.update(dict.fromkeys({blocked}))
        from mrcnn_jax.cli import main
        sys.exit(main(["replay", *sys.argv[1:]]))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), stopped_network.error.saved],
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "xla")},
        cwd=ROOT.parent,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 1, done.stderr
    assert f"Not finite alone: image {bad_image_id(stopped_network)}" in done.stdout.splitlines()[-1]
