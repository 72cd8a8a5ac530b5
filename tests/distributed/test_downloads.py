"""Of the processes of a run, only process 0 downloads weights; its error ends all of them."""

from __future__ import annotations

import dataclasses

import pytest
from support.launch import launch, write_recipe

pytestmark = pytest.mark.medium


@pytest.mark.parametrize("command", ["train.py", "eval.py"])
def test_process_0_downloads(command, tiny_config, download_server, tmp_path):
    arguments = ["--model=maskrcnn_resnet50_fpn"]
    if command == "train.py":
        config = dataclasses.replace(tiny_config, init="zoo:maskrcnn_resnet50_fpn")
        arguments = [f"--config={write_recipe(config, tmp_path / 'recipe.py')}", f"--workdir={tmp_path / 'run'}"]
    with launch([command, *arguments], tmp_path, processes=2) as job:
        assert job.wait() == [2, 2], job.output(0) + job.output(1)
        output = job.output(0) + job.output(1)
    path = "/models/maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth"
    assert download_server.requests == [(path, None)]
    assert output.count("error: ") == 1
    assert f"error: {download_server.url}{path}: HTTP 404 " in output
    assert "Traceback" not in output
