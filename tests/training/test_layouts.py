"""A run that moves from 1 process with 4 devices to 2 with 2 is the run that does not move.

The program of a device is the same in all layouts, and what it gets is equal to the bit. Only the sums over devices
are added up in another order, which changes their last digit. That a digit stays a digit over some steps is up to the
configuration, see `steady`.
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


def steady(config: Config) -> Config:
    """A configuration in which no choice hangs on the last digit of a number.

    Detection is chaotic: of two boxes whose scores differ in the last digit, one is a proposal in one layout and the
    other in another. And who changes places in the list of proposals gets another's noise, and may be sampled in its
    place. So nothing is chosen by scores here: all 341 anchors become proposals (`rpn`), and all proposals and objects
    are sampled (`roi`). Cells of masks are not rounded to 0 or 1, and losses of boxes have no kink. What is left are
    thresholds of overlaps, and few boxes come within a seventh digit of one.

    Batch norm of backbone, pyramid and mask head adds its statistics up over all devices, too.
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
        data=replace(config.data, shapes=replace(shapes, eval_images=5)),  # of the second batch three slots are empty
        optimizer=replace(config.optimizer, learning_rate=0.001),
        train=replace(config.train, steps=STEPS, checkpoint_every=SAVED, keep_checkpoints=3),
    )


class Runs:
    """Runs of one configuration, each in a folder named after the layouts that it went through."""

    def __init__(self, config: Config, folder: Path):
        self.folder = folder
        self.recipe = write_recipe(config, folder / "recipe.py")

    def train(self, name: str, layout: str) -> Path:
        """The workdir of the run `name`, trained, or trained on, to its end."""
        processes, devices = LAYOUTS[layout]
        command = ["train.py", f"--config={self.recipe}", f"--workdir={self.folder / name}"]
        with launch(command, self.folder / f"{name} says", processes=processes, devices=devices) as job:
            said = job.succeed(timeout=1500)
        assert f"4 devices (cpu) in {processes} process" in said
        return self.folder / name

    def move(self, before: str, step: int, layout: str) -> Path:
        """Take the run `before`, as it was when `step` was its last checkpoint, to its end in another layout."""
        name = f"{before}-{layout}"
        shutil.copytree(self.folder / before, self.folder / name)
        for checkpoint in (self.folder / name / "checkpoints").iterdir():
            if int(checkpoint.name) > step:
                shutil.rmtree(checkpoint)
        shutil.rmtree(self.folder / name / "evaluation")
        return self.train(name, layout)


def check_equal(first: Path, second: Path) -> None:
    """Losses of every step, final parameters and statistics, and what the evaluation found."""
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
    """The same detections, and so the same scores."""
    found, others = (json.loads((folder / "results.json").read_text()) for folder in (first, second))
    assert len(found) == len(others) > 0
    for record, other in zip(found, others, strict=True):
        assert (record["image_id"], record["category_id"]) == (other["image_id"], other["category_id"])
        np.testing.assert_allclose(record["bbox"], other["bbox"], atol=1e-3)  # pixels
        assert abs(record["score"] - other["score"]) <= TOLERANCE
    assert json.loads((first / "metrics.json").read_text()) == json.loads((second / "metrics.json").read_text())


def test_a_run_may_move_between_layouts(tiny_config: Config, tmp_path: Path) -> None:
    """Three steps in one process, six in two."""
    runs = Runs(steady(tiny_config), tmp_path)
    check_equal(runs.train("1x4", "1x4"), runs.move("1x4", SAVED, "2x2"))
