"""`eval.py` and `predict.py` with weights of reference implementations, in files or published; `mrcnn weights`."""

from __future__ import annotations

import dataclasses
import json
import os
import runpy
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from support.published import publish

from mrcnn_jax.cli import main as mrcnn
from mrcnn_jax.config import Config, DataConfig, ShapesConfig, SplitConfig, presets, to_json
from mrcnn_jax.data.dataset import load_split
from mrcnn_jax.inference import detector
from mrcnn_jax.inference.predictor import Predictor
from mrcnn_jax.models.mask_rcnn import build_model, variable_shapes
from mrcnn_jax.runtime import compilation_cache
from mrcnn_jax.structures import Detections
from mrcnn_jax.weights import torchvision_names
from mrcnn_jax.weights.detectron2_names import export_state
from mrcnn_jax.weights.io import weight_files

pytestmark = pytest.mark.medium

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def case(tmp_path, monkeypatch):
    """A recipe with a synthetic dataset, a small Detectron2 model for it, and its weights in a file.

    The network is replaced by one that detects nothing and records its input.
    """
    data = DataConfig(
        root=str(tmp_path / "data"),
        train=SplitConfig("train.json", "train"),
        eval=SplitConfig("val.json", "val"),
        shapes=ShapesConfig(train_images=1, eval_images=2, image_size=48),
        cache_dir=str(tmp_path / "cache"),
        shortest_edge_eval=60,
        longest_edge=90,
    )
    categories = load_split(data, "eval").categories
    base = presets.detectron2()
    model = dataclasses.replace(
        base,
        num_classes=len(categories.ids),
        category_ids=categories.ids,
        category_names=categories.names,
        backbone=dataclasses.replace(base.backbone, name="resnet18", width=8),
        fpn=dataclasses.replace(base.fpn, channels=16),
        box=dataclasses.replace(base.box, hidden=8),
        mask=dataclasses.replace(base.mask, channels=8),
    )
    monkeypatch.setattr(presets, "detectron2_model", {"small_R_18": model}.__getitem__)
    shapes = variable_shapes(build_model(model))
    state = export_state(jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes))
    weight_files.write(tmp_path / "weights.npz", state)
    recipe = tmp_path / "recipe.py"
    settings = to_json(Config(data=data))
    recipe.write_text(f"from mrcnn_jax.config import from_json\ndef get_config(): return from_json('''{settings}''')\n")

    inputs = []

    def detect(images, image_sizes):
        inputs.append(images)
        return Detections(
            *(np.zeros(shape, np.float32) for shape in [(1, 1, 4), (1, 1), (1, 1), (1, 1, 28, 28), (1, 1, 0, 3)]),
            valid=np.zeros((1, 1), bool),
            truncated=np.zeros(1, bool),
        )

    monkeypatch.setattr(detector, "compile_detect", lambda *_: detect)
    monkeypatch.setattr(compilation_cache, "enable", lambda: None)
    monkeypatch.chdir(tmp_path)
    weights = ["--weights=weights.npz", "--model=small_R_18"]
    return weights, recipe, inputs


def command(monkeypatch, name, *arguments):
    """Run a top-level script in this process; return its exit status."""
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / name), run_name="__main__")
    return stop.value.code or 0


def test_evaluation_of_reference_weights(case, monkeypatch, capsys):
    weights, recipe, inputs = case
    assert command(monkeypatch, "eval.py", *weights, f"--config={recipe}", "--config.eval.overlays=1") == 0
    assert [images.shape for images in inputs] == [(1, 64, 64, 3)] * 2  # 60 x 60, one image per batch: exact mode
    assert "runs/small_R_18/evaluation" in capsys.readouterr().out
    assert json.loads(Path("runs/small_R_18/evaluation/metrics.json").read_text())["bbox/AP"] == 0
    assert len(list(Path("runs/small_R_18/evaluation/overlays").iterdir())) == 1
    buckets = [
        "--config.eval.resize=bucket",
        "--config.data.buckets=((96, 96),)",
        "--config.eval.batch_size=1",
        "--workdir=elsewhere",
    ]
    assert command(monkeypatch, "eval.py", *weights, f"--config={recipe}", *buckets) == 0
    assert inputs[2].shape[1:] == (96, 96, 3)
    assert Path("elsewhere/evaluation/metrics.json").is_file()


def test_prediction_with_reference_weights(case, monkeypatch):
    weights, _, inputs = case
    image = next(Path("data/val").iterdir())
    assert command(monkeypatch, "predict.py", *weights, image, "--output=found") == 0
    assert inputs[0].shape == (1, 800, 800, 3)
    assert json.loads(Path("found/results.json").read_text()) == []


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("eval.py", [], "no model: give --model=RUN"),
        ("eval.py", ["--weights=a.pth"], "--model missing"),
        ("eval.py", ["--model=maskrcnn_resnet50_fpm"], "the nearest names are maskrcnn_resnet50_fpn"),
        ("eval.py", ["--model=runs/mine"], "(there is no folder runs/mine)"),
        ("eval.py", ["--weights=a.pth", "--model=mask_rcnn_R_50"], "mask_rcnn_R_50_DC5"),
        ("eval.py", ["--workdir=a", "--config=b.py"], "--config=FILE needs --model=NAME"),
        ("eval.py", ["--weights=a.pth", "--model=maskrcnn"], "maskrcnn_resnet50_fpn_v2"),
        ("eval.py", ["--weights=a.pth", "--model=maskrcnn_resnet50_fpn"], "a.pth"),
        ("predict.py", ["a.jpg", "--output=b"], "no model: give --model=RUN"),
        ("predict.py", ["a.jpg", "--output=b", "--workdir=c", "--weights=d.pth"], "--workdir names a second model"),
    ],
)
def test_invalid_arguments(name, arguments, message, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(compilation_cache, "enable", lambda: None)
    assert command(monkeypatch, name, *arguments) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.fixture
def published(case, download_server, monkeypatch):
    """Serve the weights of the small model as `maskrcnn_resnet50_fpn`; returns the server."""
    model = dataclasses.replace(
        presets.torchvision(),
        **{
            name: getattr(presets.detectron2_model("small_R_18"), name)
            for name in ("num_classes", "category_ids", "category_names", "fpn", "backbone")
        },
    )
    model = dataclasses.replace(
        model,
        box=dataclasses.replace(model.box, hidden=8),
        mask=dataclasses.replace(model.mask, channels=8),
    )
    monkeypatch.setattr(presets, "torchvision_model", {"maskrcnn_resnet50_fpn": model}.__getitem__)
    shapes = variable_shapes(build_model(model))
    weight_files.write(
        "published.npz",
        torchvision_names.export_state(jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)),
    )
    publish(download_server, monkeypatch.setattr, "maskrcnn_resnet50_fpn", Path("published.npz").read_bytes())
    return download_server


def test_prediction_with_published_weights(published, case, monkeypatch, capsys):
    """The first call downloads, the second one asks no server; --output has a default."""
    image = next(Path("data/val").iterdir())
    for _ in range(2):
        assert command(monkeypatch, "predict.py", "--model=maskrcnn_resnet50_fpn", image) == 0
    assert [path for path, _ in published.requests] == ["/models/maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth"]
    assert sorted(os.listdir("results")) == [image.name, "results.json", "summary.json"]
    assert len(case[2]) == 2
    published.files.clear()
    shutil.rmtree("caches")
    assert command(monkeypatch, "predict.py", "--model=maskrcnn_resnet50_fpn", image) == 2
    assert "HTTP 404" in capsys.readouterr().err


def test_evaluation_of_published_weights(published, case, monkeypatch):
    _, recipe, inputs = case
    assert command(monkeypatch, "eval.py", "--model=maskrcnn_resnet50_fpn", f"--config={recipe}") == 0
    assert len(inputs) == 2
    assert Path("runs/maskrcnn_resnet50_fpn/evaluation/metrics.json").is_file()


def test_predictor_of_published_weights(published, case):
    predict = Predictor.from_pretrained("maskrcnn_resnet50_fpn")
    assert (predict.config.name, predict.config.eval.resize) == ("maskrcnn_resnet50_fpn", "torchvision")
    predict([np.zeros((30, 40, 3), np.uint8)])
    assert Predictor.from_pretrained("maskrcnn_resnet50_fpn", exact=False).config.eval.resize == "bucket"


def test_fetch_and_list(published, capsys):
    def cached():
        assert mrcnn(["weights", "list"]) == 0
        heading, *lines = capsys.readouterr().out.splitlines()
        assert heading.split()[0] == "name"
        (line,) = [line for line in lines if line.startswith("maskrcnn_resnet50_fpn ")]
        assert line.split()[1:-1] == ["torchvision", "BSD-3-Clause", "178", "COCO", "37.9", "34.6", "-"]
        assert any(line.startswith("  RegNet: new_baselines/mask_rcnn_regnetx_4gf") for line in lines)
        return line.split()[-1]

    assert cached() == "no"
    assert mrcnn(["weights", "fetch", "maskrcnn_resnet50_fpn"]) == 0
    assert "/models/maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth" in capsys.readouterr().out
    assert cached() == "yes"
    assert len(published.requests) == 1


def test_weights_of_another_model(case, monkeypatch, capsys):
    weights, recipe, _ = case
    monkeypatch.setattr(presets, "torchvision_model", lambda name: presets.torchvision())
    assert command(monkeypatch, "eval.py", weights[0], "--model=maskrcnn", f"--config={recipe}") == 2
    assert "weights.npz" in capsys.readouterr().err
