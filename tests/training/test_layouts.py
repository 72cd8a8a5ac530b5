"""A run that continues with another number of processes gives the same result: 1 x 4 devices, then 2 x 2.

The program of a device and its inputs are the same in all layouts. Only sums over devices are computed in another
order, which changes their last digit. `stable` gives a configuration in which this difference does not grow.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from support.launch import launch, write_recipe

from mrcnn_jax.checkpoints.manager import load_variables
from mrcnn_jax.config import Config

pytestmark = pytest.mark.slow

LAYOUTS = {"1x4": (1, 4), "2x2": (2, 2)}  # processes, devices of each
STEPS, SAVED = 9, 3
TOLERANCE = 1e-5


def stable(config: Config) -> Config:
    """Return a configuration without discrete choices that depend on the last digit of a number.

    Usually, of two boxes whose scores differ in the last digit, one is a proposal in one layout and the other in
    another, and the order of proposals determines which are sampled. Here all 341 anchors become proposals (`rpn`), and
    all proposals and objects are sampled (`roi`). Mask targets are not rounded, and box losses are smooth. Only IoU
    thresholds remain, and few boxes are that close to one.

    Batch norm of backbone, FPN and mask head also sums its statistics over all devices.
    """
    model = config.model
    model = replace(
        model,
        backbone=replace(model.backbone, norm="sync_bn"),
        fpn=replace(model.fpn, norm="sync_bn"),
        anchors=replace(model.anchors, aspect_ratios=(1.0,)),
        rpn=replace(
            model.rpn,
            pre_nms_top_k_train=256,
            pre_nms_top_k_test=256,
            post_nms_top_k_train=341,
            post_nms_top_k_test=341,
            nms_iou=1.0,
            smooth_l1_beta=1.0,
        ),
        roi=replace(model.roi, batch_size=352),
        box=replace(model.box, smooth_l1_beta=1.0),
        mask=replace(model.mask, norm="sync_bn", target="soft"),
    )
    shapes = config.data.shapes
    assert shapes is not None
    return replace(
        config,
        model=model,
        data=replace(config.data, shapes=replace(shapes, eval_images=5)),  # three slots of the second batch are empty
        optimizer=replace(config.optimizer, learning_rate=0.001),
        train=replace(config.train, steps=STEPS, checkpoint_every=SAVED, keep_checkpoints=3),
    )


class Runs:
    """Runs of one configuration, each in a folder named after its layouts."""

    def __init__(self, config: Config, folder: Path):
        self.folder = folder
        self.recipe = write_recipe(config, folder / "recipe.py")

    def train(self, name: str, layout: str) -> Path:
        """Train or resume the run `name` to its end; return its work directory."""
        processes, devices = LAYOUTS[layout]
        command = ["train.py", f"--config={self.recipe}", f"--workdir={self.folder / name}"]
        with launch(command, self.folder / f"{name} output", processes=processes, devices=devices) as job:
            said = job.succeed(timeout=1500)
        assert f"4 devices (cpu) in {processes} process" in said
        return self.folder / name

    def move(self, before: str, step: int, layout: str) -> Path:
        """Copy the run `before` with its checkpoints up to `step`, and finish it in another layout."""
        name = f"{before}-{layout}"
        shutil.copytree(self.folder / before, self.folder / name)
        for checkpoint in (self.folder / name / "checkpoints").iterdir():
            if int(checkpoint.name) > step:
                shutil.rmtree(checkpoint)
        shutil.rmtree(self.folder / name / "evaluation")
        return self.train(name, layout)


def check_equal(first: Path, second: Path) -> None:
    """Compare the losses of every step, the final variables, and the results of the evaluation."""
    rows, others = metrics(first), metrics(second)
    assert [row["step"] for row in rows] == [row["step"] for row in others] == list(range(1, STEPS + 1))
    for row, other in zip(rows, others, strict=True):
        for name in row:
            if name.startswith("loss"):
                assert abs(row[name] - other[name]) <= TOLERANCE * max(1, abs(row[name])), (row["step"], name)
    (_, variables), (_, expected) = load_variables(first), load_variables(second)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE), variables, expected)
    check_results(first / "evaluation", second / "evaluation")


def metrics(workdir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def check_results(first: Path, second: Path) -> None:
    """Compare detections and metrics."""
    found, others = (json.loads((folder / "results.json").read_text()) for folder in (first, second))
    assert len(found) == len(others) > 0
    for record, other in zip(found, others, strict=True):
        assert (record["image_id"], record["category_id"]) == (other["image_id"], other["category_id"])
        np.testing.assert_allclose(record["bbox"], other["bbox"], atol=1e-3)  # pixels
        assert abs(record["score"] - other["score"]) <= TOLERANCE
    assert json.loads((first / "metrics.json").read_text()) == json.loads((second / "metrics.json").read_text())


def test_run_moves_between_layouts(tiny_config: Config, tmp_path: Path) -> None:
    """Three steps in one process, six in two."""
    runs = Runs(stable(tiny_config), tmp_path)
    check_equal(runs.train("1x4", "1x4"), runs.move("1x4", SAVED, "2x2"))
