"""Prediction on files: pictures, results, and files that cannot be read."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mrcnn_jax.evaluation.postprocess import Prediction
from mrcnn_jax.predict_files import picture_paths, predict_files


class Fake:
    """Finds the left half of every picture; yields in pairs swapped, as batches of several shapes do."""

    def stream(self, images):
        held = []
        for index, image in enumerate(images):
            height, width = image.shape[:2]
            held.append((index, self.prediction(height, width)))
            if len(held) == 2:
                yield from reversed(held)
                held = []
        yield from held

    def prediction(self, height, width):
        return Prediction(
            image_size=(height, width),
            boxes=np.array([[0, 0, width // 2, height]], np.float32),
            scores=np.array([0.8], np.float32),
            labels=np.array([1], np.int32),
            category_ids=np.array([17]),
            names=("cat",),
            mask_probabilities=np.ones((1, 28, 28), np.float32),
        )


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / name for name in ("a.jpg", "broken.png", "b.png", "missing.png", "c.webp")]
    for i, path in enumerate(paths):
        if path.stem == "broken":
            path.write_bytes(b"no image")
        elif path.stem != "missing":
            cv2.imwrite(str(path), np.full((600 + i, 700, 3), 50 * i, np.uint8))
    return paths


def test_pictures_and_results_of_the_readable_files(files, tmp_path, capsys):
    output = tmp_path / "out" / "deep"
    failures = predict_files(Fake(), files, output)
    assert len(failures) == 2
    assert "broken.png" in failures[0]
    assert "missing.png" in failures[1]
    assert sorted(path.name for path in output.iterdir()) == ["a.jpg", "b.png", "c.png", "results.json"]
    results = json.loads((output / "results.json").read_text())
    assert [record["image_id"] for record in results] == [1, 3, 5]
    assert [Path(record["file_name"]).name for record in results] == ["a.jpg", "b.png", "c.webp"]
    assert {(record["category_id"], record["category"]) for record in results} == {(17, "cat")}
    mask = coco_mask.decode(results[1]["segmentation"])
    assert mask.shape == (602, 700)
    assert mask[300].tolist() == [1] * 350 + [0] * 350
    drawn = cv2.imread(str(output / "b.png"))
    assert drawn.shape == (602, 700, 3)
    assert np.all(drawn[300, 600] == 100)  # outside the instance nothing changes
    assert np.any(drawn[300, 100] != 100)
    assert "5/5 images" in capsys.readouterr().out


def test_nothing_readable_leaves_an_empty_result(files, tmp_path):
    assert len(predict_files(Fake(), files[1:2], tmp_path / "out")) == 1
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == []


def test_pictures_of_the_same_name_do_not_overwrite_each_other():
    paths = [Path("x/a.png"), Path("y/a.png"), Path("a.webp"), Path("A.PNG"), Path("a.JPEG")]
    names = [path.name for path in picture_paths(paths, Path("out"))]
    assert names == ["a.png", "a-2.png", "a-3.png", "A-4.png", "a.jpg"]
