"""The quickstart recipe learns: train, evaluate and predict with the commands, with fewer steps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from support.golden_models import share_found

from mrcnn_jax.checkpoints.manager import load_variables
from mrcnn_jax.data.image_files import decode
from mrcnn_jax.inference import detector

ROOT = Path(__file__).resolve().parent.parent
STEPS = 150


def command(name, *arguments, cwd):
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    subprocess.run([sys.executable, ROOT / name, *arguments], cwd=cwd, env=environment, check=True)


@pytest.mark.optimized  # convolutions in bfloat16 are many times slower without
def test_quickstart_learns(tmp_path):
    settings = [f"--config.train.steps={STEPS}", "--config.data.shapes.train_images=400"]
    settings += ["--config.data.shapes.eval_images=50", "--config.eval.overlays=2"]
    command("train.py", f"--config={ROOT}/configs/quickstart.py", *settings, cwd=tmp_path)
    run = tmp_path / "runs" / "quickstart"

    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == STEPS
    assert lines[-1]["loss"] < 0.7 * lines[0]["loss"]
    trained = json.loads((run / "evaluation" / "metrics.json").read_text())
    # An untrained network scores below 0.001; the whole recipe of 500 steps reaches more than 0.5.
    assert trained["segm/AP50"] > 0.1
    assert len(list((run / "evaluation" / "overlays").glob("*.png"))) == 2

    command("eval.py", "--workdir=runs/quickstart", cwd=tmp_path)
    assert json.loads((run / "evaluation" / "metrics.json").read_text()) == pytest.approx(trained, abs=1e-3)

    pictures = sorted((tmp_path / "runs" / "data" / "shapes" / "val").glob("*.png"))[:3]
    command("predict.py", "--workdir=runs/quickstart", *pictures, "--output=found", cwd=tmp_path)
    found = json.loads((tmp_path / "found" / "results.json").read_text())
    assert {record["category"] for record in found} <= {"circle", "square", "triangle", "star", "cross"}
    assert len(list((tmp_path / "found").glob("*.png"))) == len(pictures)

    pictures = sorted((tmp_path / "runs" / "data" / "shapes" / "val").glob("*.png"))[:40]
    check_bfloat16_detections(run, np.stack([decode(picture.read_bytes()) for picture in pictures]))


def check_bfloat16_detections(run, images):
    """Compare the detections of a trained network in bfloat16 with those in float32."""
    config, variables = load_variables(run)
    sizes = np.tile(np.int32(images.shape[1:3]), (len(images), 1))
    wide, narrow = (
        jax.device_get(detector.compile_detect(replace(config.model, compute_dtype=dtype), variables)(images, sizes))
        for dtype in ("float32", "bfloat16")
    )
    found, count = share_found(*((one.boxes, one.scores, one.classes, one.valid) for one in (wide, narrow)))
    assert count > 50
    assert found >= 0.95 * count, f"{found} of {count}"
    assert not np.array_equal(wide.scores, narrow.scores), "it was computed in float32"
