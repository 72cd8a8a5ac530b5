"""`mrcnn config`: a table of valid recipes, and errors of invalid ones."""

from __future__ import annotations

import argparse
import ast
import re
import runpy
import shutil
import sys
from pathlib import Path

import pytest

from mrcnn_jax.checkpoints.workdir import absolute_path
from mrcnn_jax.cli import common
from mrcnn_jax.cli import config as command
from mrcnn_jax.cli import main as mrcnn
from mrcnn_jax.config import apply_overrides, load_config, presets
from mrcnn_jax.data.records import default_cache
from mrcnn_jax.runtime.files import cache_root
from mrcnn_jax.weights import zoo

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
RECIPES = sorted(CONFIGS.glob("*.py"))
BAD = {
    "broken": "def get_config(:\n",
    "other": "def get_config():\n    return 3\n",
    "contradiction": (
        "from mrcnn_jax.config import Config, ModelConfig\n\n"
        "def get_config():\n    return Config(model=ModelConfig(features='c4'))\n"
    ),
}


@pytest.fixture
def fake_count(monkeypatch):
    """Replaces the parameter count, which takes seconds for all networks."""
    monkeypatch.setattr(command, "count_parameters", lambda model: 12_345_678)


def test_every_recipe_has_a_line(fake_count, capsys):
    assert mrcnn(["config"]) == 0
    heads, ruler, *lines = capsys.readouterr().out.split("\n\n")[0].splitlines()
    assert heads.split() == ["recipe", "network", "parameters", "training", "published"]
    assert set(ruler) == {"-", " "}
    assert [line.split()[0].removesuffix("*") for line in lines] == [path.stem for path in RECIPES]
    assert all("12.3 M" in line for line in lines)


def test_tilde_is_the_home_directory(fake_count, capsys, tmp_path, monkeypatch):
    """Shells do not expand it in `--flag=~/folder`."""
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copy(CONFIGS / "quickstart.py", tmp_path / "own.py")
    assert mrcnn(["config", "~/own.py"]) == 0
    assert "quickstart" in capsys.readouterr().out
    assert load_config("~/own.py") == load_config(tmp_path / "own.py")
    parser = argparse.ArgumentParser()
    common.add_model(parser)
    given = parser.parse_args(["--workdir=~/run", "--weights=~/a.pth"])
    assert (given.workdir, given.weights) == (f"{tmp_path}/run", f"{tmp_path}/a.pth")
    assert absolute_path("~/run") == tmp_path / "run"
    monkeypatch.setenv("MRCNN_JAX_CACHE", "~/cache")
    assert default_cache() == tmp_path / "cache" / "datasets"
    assert cache_root() == tmp_path / "cache"


def test_invalid_recipes(fake_count, capsys, tmp_path):
    paths = [CONFIGS / "quickstart.py"]
    for name, text in BAD.items():
        paths.append(tmp_path / f"{name}.py")
        paths[-1].write_text(text)
    paths.append(tmp_path / "missing.py")
    assert mrcnn(["config", *(str(path) for path in paths)]) == 1
    printed = capsys.readouterr()
    assert "quickstart  " in printed.out
    broken, other, contradiction, missing = printed.err.splitlines()
    assert broken.startswith(f"{paths[1]}: SyntaxError: ")
    assert other == f"{paths[2]}: ConfigError: {paths[2]}: get_config() must return a Config, got int"
    assert contradiction.startswith(f"{paths[3]}: ConfigError: model.")
    assert missing.startswith(f"{paths[4]}: ConfigError: no configuration file")


def test_only_invalid_recipes(capsys, tmp_path):
    assert mrcnn(["config", str(tmp_path / "missing.py")]) == 1
    assert not capsys.readouterr().out


@pytest.mark.medium
def test_command(monkeypatch, capsys):
    """Run by `python -m`; the number of parameters is that of Detectron2."""
    monkeypatch.setattr(sys, "argv", ["mrcnn", "config", str(CONFIGS / "mask_rcnn_r50_fpn_1x.py")])
    with pytest.raises(SystemExit) as status:
        runpy.run_module("mrcnn_jax.cli", run_name="__main__")
    assert status.value.code == 0
    cells = re.split(r"  +", capsys.readouterr().out.splitlines()[2])
    assert cells[:3] == ["mask_rcnn_r50_fpn_1x", "R50-FPN, box mask", "44.3 M"]
    assert cells[3:] == ["90k x 16, sgd 0.02, 60k 80k", "box AP 38.6, mask AP 35.2"]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("mask_rcnn_X_101_32x8d_FPN", "X101-32x8d-FPN, box mask"),
        ("mask_rcnn_R_50_C4", "R50-C4, box mask"),
        ("faster_rcnn_R_101_DC5", "R101-DC5, box"),
        ("keypoint_rcnn_R_50_FPN", "R50-FPN, box 17 keypoints"),
        ("mask_rcnn_R_50_FPN_gn", "R50-FPN gn, box mask"),
    ],
)
def test_network_summary(name, line):
    assert command.network(presets.detectron2_model(name)) == line


def test_training_summary():
    config = presets.coco("any", presets.detectron2(), "2x")
    assert command.training(config) == "180k x 16, sgd 0.02, 120k 160k"
    config = apply_overrides(config, ["train.steps=1500", "optimizer.milestones=()", "optimizer.name=adamw"])
    assert command.training(config) == "1,500 x 16, adamw 0.02, constant"
    assert command.training(apply_overrides(config, ["optimizer.schedule=cosine"])).endswith(", cosine")


def test_star_marks_recipes_that_need_weights():
    config = presets.coco("frozen", presets.detectron2(), "1x")
    assert command.name(config) == "frozen*"
    assert command.name(apply_overrides(config, ["init=weights.npz"])) == "frozen"
    free = ["model.backbone.norm=gn", "model.backbone.frozen_stages=0"]
    assert command.name(apply_overrides(config, free)) == "frozen"


def test_published_metrics():
    assert (
        command.published("Title.\n\nPublished: box AP 1.0,\nmask AP 2.0 (somewhere).\nMore.")
        == "box AP 1.0, mask AP 2.0"
    )
    assert command.published("Title.") == "-"


@pytest.mark.parametrize("path", [path for path in RECIPES if "rcnn_r50" in path.stem or "101" in path.stem])
def test_docstrings_of_coco_recipes(path):
    text = " ".join((ast.get_docstring(ast.parse(path.read_text())) or "").split())
    assert re.match(r"(box|mask|keypoint) AP \d\d\.\d", command.published(text))
    for head in ("Training: batch size ", "Status: ", "Initial weights (`init`): ", f"--config={path.stem} "):
        assert head in text
    config = load_config(path)
    assert config.name == path.stem
    if config.init:
        assert f"`{config.init}`" in text
        assert not zoo.find(config.init.removeprefix("zoo:")).is_detector
    assert f"batch size {config.train.batch_size}, SGD {config.optimizer.learning_rate:g}" in text
    if "epochs" not in text:
        milestones = " and ".join(f"{step:,}" for step in config.optimizer.milestones)
        assert f"{config.train.steps:,} steps, / 10 at {milestones}; shortest edge" in text
