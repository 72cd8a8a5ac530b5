"""Processes that were started with other settings or other data than process 0 end before anything is compiled."""

from __future__ import annotations

import json
import shutil

import pytest
from support.launch import launch, write_recipe

pytestmark = pytest.mark.medium


def overriding(*overrides):
    """A prelude: process 1 gets these arguments, too."""
    return f"""
from mrcnn_jax.cli import common
parse = common.parse
def more(parser):
    arguments, overrides = parse(parser)
    return arguments, overrides + {list(overrides)!r} * process
common.parse = more
"""


def refused(command, folder, *overrides):
    """Start `command` in two processes, the second with `overrides`; what they said. Both must be refused."""
    with launch(command, folder, processes=2, prelude=overriding(*overrides)) as job:
        assert job.wait() == [2, 2], job.output(0) + job.output(1)
        said = job.output(0) + job.output(1)
    assert "Traceback" not in said
    assert said.count("error: ") == 1  # once for all
    return said


def training(config, tmp_path):
    return ["train.py", f"--config={write_recipe(config, tmp_path / 'recipe.py')}", f"--workdir={tmp_path / 'run'}"]


def test_other_settings(tiny_config, tmp_path):
    said = refused(training(tiny_config, tmp_path), tmp_path, "optimizer.learning_rate=0.2", "data.cache_dir=elsewhere")
    assert "optimizer.learning_rate is 0.2 in process 1 (" in said
    assert "and 0.02 in process 0 (" in said
    assert "cache_dir" not in said
    assert not (tmp_path / "run").exists()


def test_another_copy_of_the_data(tiny_config, tmp_path):
    """A place of its own is allowed; five images less are not."""
    from mrcnn_jax.data import load_split

    load_split(tiny_config.data, "train")
    root = tmp_path / "copy"
    shutil.copytree(tiny_config.data.root, root)
    content = json.loads((root / "train.json").read_text())
    for _ in range(5):
        gone = content["images"].pop()["id"]
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] != gone]
    (root / "train.json").write_text(json.dumps(content))
    said = refused(training(tiny_config, tmp_path), tmp_path, f"data.root={root}")
    assert "do not have the same data: data.train: images is 11 in process 1 (" in said
    assert "and 16 in process 0 (" in said
    assert "data.train: SHA-256 of the annotation file is " in said
    assert "data.eval" not in said


def test_evaluation_with_other_settings(finished_run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished_run.workdir, workdir)
    said = refused(["eval.py", f"--workdir={workdir}"], tmp_path, "eval.batch_size=2")
    assert "eval.batch_size is 2 in process 1 (" in said
