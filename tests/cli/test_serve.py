"""`mrcnn serve`: its arguments, and a service of a trained network in a process of its own."""

from __future__ import annotations

import importlib.util
import re
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from support import launch
from support.service import Client, wait_until

from mrcnn_jax.cli import main as mrcnn
from mrcnn_jax.data.dataset import load_split
from mrcnn_jax.inference.predictor import Predictor


@pytest.mark.parametrize("argument", ["--queue=0", "--timeout=nan", "--max-pixels=-1", "--max-bytes=a", "--max-wait=0"])
def test_limits_are_positive_numbers(argument, capsys):
    with pytest.raises(SystemExit, match="2"):
        mrcnn(["serve", "--model=maskrcnn_resnet50_fpn", argument])
    name, value = argument.split("=")
    assert re.search(rf"argument {name}: .*{value}", capsys.readouterr().err)


@pytest.mark.parametrize("port", ["70000", "taken"])
def test_addresses_that_cannot_be_used_are_refused_before_the_model_is_loaded(port, capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1]) if port == "taken" else port
        assert mrcnn(["serve", "--model=no_such_model", f"--port={port}"]) == 2
    assert f"error: --host=127.0.0.1 --port={port}: " in capsys.readouterr().err


def test_missing_packages_are_named(monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvicorn" else find(name))
    assert mrcnn(["serve", "--model=maskrcnn_resnet50_fpn"]) == 2
    assert "mrcnn serve needs uvicorn: pip install 'mrcnn-jax[serve]'" in capsys.readouterr().err


@pytest.mark.medium
@pytest.mark.parametrize("setting", ["flip=True", "scales=(64,)", "resize=detectron2"])
def test_settings_that_need_other_shapes_are_refused(setting, finished_run, capsys):
    arguments = [f"--model={finished_run.workdir}", "--port=0", f"--config.eval.{setting}"]
    assert mrcnn(["serve", *arguments]) == 2
    assert "need other shapes of images than the buckets: give --config" in capsys.readouterr().err


@pytest.mark.medium
@pytest.mark.parametrize("setting", ["--batch-size=3", "--config.model.box.score_threshold=0.5"])
def test_settings_of_exported_programs_cannot_be_changed(setting, finished_run, tmp_path, capsys):
    path = tmp_path / "model.zip"
    assert mrcnn(["export", str(finished_run.workdir), str(path), "--batch-size=2"]) == 0
    assert mrcnn(["serve", f"--model={path}", "--port=0", setting]) == 2
    assert "has programs for batches of 1 and 2, which cannot be changed" in capsys.readouterr().err


@pytest.mark.medium
def test_answers_equal_those_of_the_predictor_and_sigterm_loses_none(finished_run, tmp_path):
    dataset = load_split(finished_run.config.data, "eval")
    files = [dataset.image_path(index) for index in range(4)]
    expected = Predictor.from_checkpoint(finished_run.workdir)(files)
    assert sum(map(len, expected)) > 0
    arguments = [f"--model={finished_run.workdir}", "--port=0", "--batch-size=4", "--max-wait=3000"]
    command = ["-m", "mrcnn_jax.cli", "serve", *arguments]
    with launch.launch(command, tmp_path / "job") as job, ThreadPoolExecutor(4) as pool:
        job.wait_for("http://")
        client = Client(int(re.search(r"http://127\.0\.0\.1:(\d+)/\n", job.output())[1]))
        wait_until(lambda: client.get("/ready").status == 200, launch.PATIENCE)
        answers = pool.map(lambda path: client.predict(path.read_bytes(), "?threshold=0"), files)
        for answer, prediction in zip(answers, expected, strict=True):
            compare(answer.json, prediction)
        # Three images wait three seconds for a fourth one.
        waiting = [pool.submit(client.predict, path.read_bytes(), "?threshold=0") for path in files[:3]]
        wait_until(lambda: client.metric("mrcnn_queue_length") == 3)
        job.send(signal.SIGTERM)
        for future, prediction in zip(waiting, expected, strict=False):
            compare(future.result(60).json, prediction)
        assert job.wait() == [0], job.output()
        printed = r"http://\S+\nready; a batch of 4 takes as long as [\d.]+ single images\n"
        assert re.fullmatch(printed, job.output()), job.output()


def compare(answer: dict[str, Any], expected: Any) -> None:
    assert (answer["height"], answer["width"]) == expected.image_size
    found = answer["detections"]
    assert [one["category"] for one in found] == list(expected.names)
    # Programs for other batch sizes round differently.
    np.testing.assert_allclose([one["score"] for one in found], expected.scores, atol=1e-5)
    corners = np.array([one["bbox"] for one in found])
    corners[:, 2:] += corners[:, :2]
    np.testing.assert_allclose(corners, expected.boxes, atol=1e-3)
    for one, mask in zip(found, expected.masks, strict=True):
        assert np.mean(coco_mask.decode(one["segmentation"]) != mask) < 1e-3
