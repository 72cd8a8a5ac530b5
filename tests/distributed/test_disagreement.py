"""Processes whose settings or data differ from those of process 0 exit before they compile anything."""

from __future__ import annotations

import json
import shutil

import pytest
from support.launch import launch, write_recipe

pytestmark = pytest.mark.medium


def extra_overrides(*overrides):
    """A prelude that adds configuration overrides to the arguments of process 1."""
    return f"""
from mrcnn_jax.cli import common
original = common.parse
def parse(parser, arguments):
    options, overrides = original(parser, arguments)
    return options, overrides + {list(overrides)!r} * process
common.parse = parse
"""


def refused(command, folder, *overrides):
    """Run `command` in two processes, the second with `overrides`. Both must fail; returns their output."""
    with launch(command, folder, processes=2, prelude=extra_overrides(*overrides)) as job:
        assert job.wait() == [2, 2], job.output(0) + job.output(1)
        output = job.output(0) + job.output(1)
    assert "Traceback" not in output
    assert output.count("error: ") == 1  # of process 0 only
    return output


def training(config, tmp_path):
    return ["train.py", f"--config={write_recipe(config, tmp_path / 'recipe.py')}", f"--workdir={tmp_path / 'run'}"]


def test_other_settings(tiny_config, tmp_path):
    overrides = "optimizer.learning_rate=0.2", "data.cache_dir=elsewhere"
    output = refused(training(tiny_config, tmp_path), tmp_path, *overrides)
    assert "optimizer.learning_rate is 0.2 in process 1 (" in output
    assert "and 0.02 in process 0 (" in output
    assert "cache_dir" not in output
    assert not (tmp_path / "run").exists()


def test_other_data(tiny_config, tmp_path):
    """A copy of the data in another place may be used, but not one with five images less."""
    from mrcnn_jax.data import load_split

    load_split(tiny_config.data, "train")
    root = tmp_path / "copy"
    shutil.copytree(tiny_config.data.root, root)
    content = json.loads((root / "train.json").read_text())
    for _ in range(5):
        removed = content["images"].pop()["id"]
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] != removed]
    (root / "train.json").write_text(json.dumps(content))
    output = refused(training(tiny_config, tmp_path), tmp_path, f"data.root={root}")
    assert "do not have the same data: data.train: images is 11 in process 1 (" in output
    assert "and 16 in process 0 (" in output
    assert "data.train: SHA-256 of the annotation file is " in output
    assert "data.eval" not in output


def test_evaluation_with_other_settings(finished_run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished_run.workdir, workdir)
    output = refused(["eval.py", f"--workdir={workdir}"], tmp_path, "eval.batch_size=2")
    assert "eval.batch_size is 2 in process 1 (" in output
