"""Whole runs of a tiny Mask R-CNN: output files, resuming, kills."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import signal
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest
from support import linear
from support.launch import LINEAR, launch, write_recipe

from mrcnn_jax.checkpoints.manager import Checkpointer, load_variables
from mrcnn_jax.checkpoints.workdir import read_config
from mrcnn_jax.data.synthetic import generate
from mrcnn_jax.errors import ConfigError
from mrcnn_jax.training.train import train

pytestmark = pytest.mark.medium

SUMMARY = re.compile(r"step 10, box AP -?\d\.\d{3}, mask AP -?\d\.\d{3}")
KILL = """
import os, signal
from mrcnn_jax.training.logs.metrics_log import MetricsLog

log_step = MetricsLog.step

def step(self, number, metrics):  # as soon as the loss of step 7 is known
    log_step(self, number, metrics)
    if number == 7:
        os.kill(os.getpid(), signal.SIGKILL)

MetricsLog.step = step
"""


def test_output_of_a_finished_run(finished_run):
    workdir = finished_run.workdir
    config = read_config(workdir)
    assert config.model.num_classes == len(config.model.category_ids) == len(config.model.category_names) > 0
    assert int(finished_run.state.step) == 10
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["10", "9"]
    assert list((workdir / "tensorboard").iterdir())
    assert len(list(workdir.rglob("overlays/*.png"))) == 2
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 11))
    losses = {"loss", "loss_rpn_class", "loss_rpn_box", "loss_class", "loss_box", "loss_mask"}
    assert (
        losses | {"learning_rate", "grad_norm", "images_per_second", "data_wait_fraction", "peak_memory_gib"}
        <= lines[0].keys()
    )
    assert finished_run.output.index("Boxes (bbox)") < finished_run.output.index("Masks (segm)")
    assert SUMMARY.search(finished_run.output.splitlines()[-1])


def test_data_may_move_but_not_change_before_resuming(finished_run, tmp_path):
    config, workdir, root = finished_run.config, tmp_path / "run", tmp_path / "moved"
    shutil.copytree(finished_run.workdir, workdir)
    shutil.copytree(config.data.root, root)  # with new modification times
    data = dataclasses.replace(config.data, root=str(root), cache_dir=str(tmp_path / "cache"))
    moved = dataclasses.replace(config, data=data)
    state = train(moved, workdir)
    assert int(state.step) == 10
    assert read_config(workdir).data == data
    image = root / "train" / "000001.png"
    pixels = cv2.imread(str(image))
    pixels[0, 0] ^= 1
    cv2.imwrite(str(image), pixels)
    with pytest.raises(ConfigError, match=r"other training data: SHA-256 of the image files was .*, is "):
        train(moved, workdir)


def test_readme_of_a_run_describes_all_files_and_metrics(finished_run):
    text = (finished_run.workdir / "README.md").read_text()
    files = [path for folder in ("", "evaluation") for path in (finished_run.workdir / folder).iterdir()]
    assert len(files) >= 10
    for path in files:
        assert f"`{path.name}/" in text if path.is_dir() else f"`{path.name}`" in text or path.name == "README.md"
    metrics = json.loads((finished_run.workdir / "metrics.jsonl").read_text().splitlines()[-1])
    for name in metrics.keys() - {"step"}:
        assert name.startswith("loss") or f"`{name}`" in text


def test_overlays_are_in_tensorboard(finished_run):
    (events,) = [path.read_bytes() for path in (finished_run.workdir / "tensorboard").glob("*.10")]
    pictures = [path.stem for path in finished_run.workdir.rglob("overlays/*.png")]
    assert all(f"found/{name}".encode() in events for name in pictures)
    assert events.count(b"\xff\xd8\xff\xe0") == len(pictures) == 2  # JPEG


def test_finished_run_is_only_evaluated(finished_run, capsys):
    before = (finished_run.workdir / "metrics.jsonl").read_bytes()
    state = train(finished_run.config, finished_run.workdir)
    said = capsys.readouterr().out
    assert "step 10/10" not in said
    assert SUMMARY.search(said.splitlines()[-1])
    assert (finished_run.workdir / "metrics.jsonl").read_bytes() == before
    jax.tree.map(np.testing.assert_array_equal, state, jax.device_get(finished_run.state))


def test_checkpoint_has_the_trained_parameters(finished_run):
    config, variables = load_variables(finished_run.workdir)
    assert config == read_config(finished_run.workdir)
    jax.tree.map(np.testing.assert_array_equal, variables["params"], jax.device_get(finished_run.state.params))


def test_killed_run_ends_like_an_uninterrupted_one(tiny_config, tmp_path):
    """SIGKILL after step 7 (the checkpoint of step 6 may be incomplete), then the same command again.

    With a linear model; `test_chaos.py` does it with the network.
    """
    recipe, workdir = write_recipe(tiny_config, tmp_path / "recipe.py"), tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        linear.replace_network(patch.setattr)
        expected = train(tiny_config, tmp_path / "whole")
    command = ["train.py", f"--config={recipe}", f"--workdir={workdir}"]
    with launch(command, tmp_path / "killed", devices=2, prelude=LINEAR + KILL) as job:
        assert job.wait() == [-signal.SIGKILL], job.output()
    saved = {path.name for path in (workdir / "checkpoints").iterdir()}
    assert "3" in saved
    assert not saved & {"9", "10"}

    with launch(command, tmp_path / "resumed", devices=2, prelude=LINEAR) as job:
        said = job.succeed()
    assert re.search(r"step [36] of 10", said)
    assert SUMMARY.search(said)
    with Checkpointer(workdir, keep=2) as checkpointer:
        state = checkpointer.restore_latest(jax.eval_shape(lambda: expected))
    jax.tree.map(np.testing.assert_array_equal, state, jax.device_get(expected))
    assert losses_of(workdir) == losses_of(tmp_path / "whole")


def losses_of(workdir: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines}


def test_eval_data_with_other_categories_are_rejected_before_training(tiny_config, tmp_path):
    root = tmp_path / "shapes"
    generate.write_dataset(tiny_config.data.shapes, root)
    annotations = json.loads((root / "val.json").read_text())
    annotations["categories"][0]["name"] = "another name"
    (root / "val.json").write_text(json.dumps(annotations))
    data = dataclasses.replace(tiny_config.data, root=str(root), shapes=None)
    with pytest.raises(ConfigError, match="another name"):
        train(dataclasses.replace(tiny_config, data=data), tmp_path / "run")
    assert not (tmp_path / "run").exists()
