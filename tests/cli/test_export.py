"""`mrcnn export`: the release folder of a run, its model card, and the commands that take it in place of a run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mrcnn_jax.checkpoints.manager import load_variables
from mrcnn_jax.cli import main as mrcnn
from mrcnn_jax.config import from_json
from mrcnn_jax.data.dataset import load_split
from mrcnn_jax.inference.predictor import Predictor

pytestmark = pytest.mark.medium

ROOT = Path(__file__).resolve().parents[2]
DETECT = """
import sys, numpy as np, mrcnn_jax
predict = mrcnn_jax.Predictor.from_pretrained("release")
for index, one in enumerate(predict(sys.argv[1:])):
    np.savez(f"{index}.npz", boxes=one.boxes, scores=one.scores, masks=one.masks, classes=one.category_ids)
"""


@pytest.fixture(scope="module")
def images(finished_run):
    dataset = load_split(finished_run.config.data, "eval")
    return [str(dataset.image_path(index)) for index in range(len(dataset))]


@pytest.fixture(scope="module")
def folder(finished_run, tmp_path_factory):
    """A release folder, exported from a copy of the run that is deleted then."""
    place = tmp_path_factory.mktemp("export")
    shutil.copytree(finished_run.workdir, place / "copy")
    assert mrcnn(["export", str(place / "copy"), str(place / "release")]) == 0
    shutil.rmtree(place / "copy")
    return place / "release"


def test_another_process_without_the_run_detects_the_same_to_the_bit(folder, finished_run, images):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", DETECT, *images], cwd=folder.parent, env=environment, check=True)
    expected = Predictor.from_checkpoint(finished_run.workdir)(images)
    assert sum(map(len, expected)) > 0
    for index, ours in enumerate(expected):
        with np.load(folder.parent / f"{index}.npz") as theirs:
            np.testing.assert_array_equal(theirs["boxes"], ours.boxes)
            np.testing.assert_array_equal(theirs["scores"], ours.scores)
            np.testing.assert_array_equal(theirs["masks"], ours.masks)
            np.testing.assert_array_equal(theirs["classes"], ours.category_ids)


def test_folder_has_no_path_of_the_author(folder, finished_run):
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    config = from_json((folder / "config.json").read_text())
    assert config.model == load_variables(finished_run.workdir)[0].model
    assert (config.data.root, config.data.cache_dir, config.init) == ("", "", "")
    place = str(Path(finished_run.config.data.root).parent)
    assert not [path.name for path in folder.iterdir() if place.encode() in path.read_bytes()]


def test_model_card(folder, finished_run):
    text = (folder / "README.md").read_text()
    row = json.loads((finished_run.workdir / "evaluations.jsonl").read_text().splitlines()[-1])
    header = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)[1]
    yaml = pytest.importorskip("yaml", reason="the extra `test` is not installed")
    assert yaml.safe_load(header)["library_name"] == "mrcnn_jax"
    assert yaml.safe_load(header)["license"] == "unknown"
    assert f"after step {row['step']}:" in text
    assert f"| masks | {100 * row['segm/AP']:.1f} | {100 * row['segm/AP50']:.1f} | " in text
    assert "| steps of these weights | 10 of 10 |" in text
    assert "16 images with " in text
    assert "with 5 classes" in text
    assert not re.search(r"\{\w*\}", text)


def test_precision_of_another_checkpoint_is_not_in_the_card(finished_run, tmp_path):
    """The run has checkpoints of two steps, and was evaluated after the last one."""
    assert mrcnn(["export", str(finished_run.workdir), str(tmp_path / "a"), "--checkpoint=9"]) == 0
    text = (tmp_path / "a" / "README.md").read_text()
    assert "were not evaluated" in text
    assert "| steps of these weights | 9 of 10 |" in text


def test_card_of_a_model_without_a_run_tells_nothing_of_its_training(folder, tmp_path):
    """Exported again from the folder."""
    assert mrcnn(["export", str(folder), str(tmp_path / "b")]) == 0
    text = (tmp_path / "b" / "README.md").read_text()
    assert "not recorded" in text
    assert "steps" not in text
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "b" / name).read_bytes() == (folder / name).read_bytes()


def test_commands_take_the_folder(folder, finished_run, images, tmp_path, capsys):
    for model, output in ((folder, "ours"), (finished_run.workdir, "theirs")):
        assert mrcnn(["predict", f"--model={model}", images[0], f"--output={tmp_path / output}", "--save=coco"]) == 0
    ours, theirs = ((tmp_path / output / "results.json").read_bytes() for output in ("ours", "theirs"))
    assert ours == theirs
    data = finished_run.config.data
    settings = [f"--config.data.root={data.root}", f"--config.data.cache_dir={data.cache_dir}"]
    assert mrcnn(["eval", f"--model={folder}", f"--workdir={tmp_path / 'eval'}", *settings]) == 0
    files = (where / "evaluation" / "metrics.json" for where in (tmp_path / "eval", finished_run.workdir))
    ours, theirs = (json.loads(path.read_text()) for path in files)
    assert ours == theirs


def test_commands_refuse_the_folder_by_name(folder, finished_run, images, tmp_path, capsys):
    broken = tmp_path / "broken"
    broken.mkdir()
    shutil.copy(folder / "config.json", broken)
    assert mrcnn(["predict", f"--model={broken}", images[0], f"--output={tmp_path / 'out'}"]) == 2
    assert f"error: {broken} has no model.safetensors" in capsys.readouterr().err
    assert mrcnn(["export", str(finished_run.workdir), str(finished_run.workdir)]) == 2
    assert "contains other files (checkpoints, data.json, evaluation, and " in capsys.readouterr().err
    assert mrcnn(["export", str(finished_run.workdir), str(broken)]) == 2
    assert "is not an earlier export (it has no model.safetensors)" in capsys.readouterr().err
