"""Predictor and commands on a finished run give the same detections."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from mrcnn_jax.checkpoints.workdir import read_config
from mrcnn_jax.data.dataset import load_split
from mrcnn_jax.inference.predictor import Predictor

pytestmark = pytest.mark.medium

ROOT = Path(__file__).resolve().parents[2]


def command(monkeypatch, name, *arguments):
    """Run a top-level command in this process; its exit status."""
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / name), run_name="__main__")
    return stop.value.code or 0


def evaluated(run):
    return json.loads((run.workdir / "evaluation" / "results.json").read_text())


def same_records(ours, theirs):
    """Compare detections; programs for other batch sizes sum float32 in another order."""
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        assert a["category_id"] == b["category_id"]
        np.testing.assert_allclose(a["score"], b["score"], rtol=1e-4)
        np.testing.assert_allclose(a["bbox"], b["bbox"], atol=1e-2)
        assert a["segmentation"]["size"] == b["segmentation"]["size"]


def test_predictor_equals_evaluation(finished_run):
    dataset = load_split(read_config(finished_run.workdir).data, "eval")
    predict = Predictor.from_checkpoint(finished_run.workdir)
    found = predict([dataset.image_path(i) for i in range(len(dataset))])
    records = [r for image_id, p in zip(dataset.ids, found, strict=True) for r in p.to_coco(image_id)]
    same_records(records, evaluated(finished_run))


def test_eval_command_repeats_the_report(finished_run, monkeypatch, capsys):
    before = evaluated(finished_run)
    arguments = [f"--workdir={finished_run.workdir}", "--config.eval.overlays=2", "--report"]
    assert command(monkeypatch, "eval.py", *arguments) == 0
    printed = capsys.readouterr().out
    page = Path(finished_run.workdir, "evaluation", "report.html").read_text()
    assert page.count('href="data:image') == 4
    assert printed.index("Boxes (bbox), 4 images") < printed.index("Masks (segm), 4 images")
    assert tables(printed) == tables(finished_run.output)
    assert evaluated(finished_run) == before


def tables(output):
    """Both tables with their headings."""
    return output[output.index("Boxes") :].splitlines()[:27]


def test_predict_command_continues_after_an_unreadable_file(finished_run, tmp_path, monkeypatch, capsys):
    dataset = load_split(read_config(finished_run.workdir).data, "eval")
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    images = [tmp_path / "broken.jpg", dataset.image_path(0)]
    output = tmp_path / "out"
    status = command(monkeypatch, "predict.py", f"--workdir={finished_run.workdir}", *images, f"--output={output}")
    assert status == 1
    assert "broken.jpg" in capsys.readouterr().err
    assert (output / dataset.file_names[0]).is_file()
    results = json.loads((output / "results.json").read_text())
    assert {record["image_id"] for record in results} == {2}
    same_records(results, [r for r in evaluated(finished_run) if r["image_id"] == dataset.ids[0]])


def test_predict_command_with_folders_and_videos(finished_run, tmp_path, monkeypatch):
    dataset = load_split(read_config(finished_run.workdir).data, "eval")
    folder, output = dataset.image_path(0).parent, tmp_path / "out"
    writer = cv2.VideoWriter(str(tmp_path / "video.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 12, (64, 64))
    for i in (0, 1, 2, 3, 0):
        writer.write(cv2.imread(str(dataset.image_path(i))))
    writer.release()
    arguments = [folder, tmp_path / "video.avi", f"--output={output}", "--save=json,overlay,mask", "--threshold=0"]
    assert command(monkeypatch, "predict.py", f"--workdir={finished_run.workdir}", *arguments) == 0
    summary = json.loads((output / "summary.json").read_text())
    assert (summary["images"], summary["frames"], summary["failures"]) == (4, 5, [])
    assert len(list((output / "video.frames").glob("*.mask.png"))) == 5
    video = cv2.VideoCapture(str(output / "video.mp4"))
    assert (video.get(cv2.CAP_PROP_FRAME_COUNT), video.get(cv2.CAP_PROP_FPS)) == (5, 12)
    first = json.loads((output / dataset.file_names[0]).with_suffix(".json").read_text())
    expected = [r for r in evaluated(finished_run) if r["image_id"] == dataset.ids[0]]
    found = [(instance["score"], instance["category_id"]) for instance in first["instances"]]
    assert found == [(pytest.approx(r["score"], abs=1e-5), r["category_id"]) for r in expected]
    assert not (output / "results.json").exists()


def test_commands_reject_a_folder_without_a_run(tmp_path, monkeypatch, capsys):
    assert command(monkeypatch, "eval.py", f"--workdir={tmp_path}") == 2
    assert command(monkeypatch, "predict.py", f"--workdir={tmp_path}", "a.png", f"--output={tmp_path}") == 2
    assert capsys.readouterr().err.count("is not a workdir of train.py") == 2
    assert command(monkeypatch, "eval.py", f"--workdir={tmp_path}", "--nonsense=1") == 2
    assert "--nonsense" in capsys.readouterr().err
