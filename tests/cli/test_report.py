"""`mrcnn report`: reports on results of other programs, and messages for unusable files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mrcnn_jax.cli import main as mrcnn
from mrcnn_jax.data import annotations
from mrcnn_jax.errors import DataError


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "own"))


def run(folder: Path, *more: str) -> int:
    arguments = [str(folder / "results.json"), str(folder / "annotations.json"), f"--images={folder / 'images'}"]
    return mrcnn(["report", *arguments, f"--output={folder / 'page.html'}", *more])


def edit(path: Path, function: Any) -> None:
    path.write_text(json.dumps(function(json.loads(path.read_text()))))


def test_boxes_of_another_program(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Records with only the required fields of boxes."""
    required = ("image_id", "category_id", "bbox", "score")
    edit(folder / "results.json", lambda records: [{name: record[name] for name in required} for record in records])
    assert run(folder) == 0
    written = (folder / "page.html").read_text()
    assert "AP of boxes" in written
    assert "AP of masks" not in written
    assert str(folder / "page.html") in capsys.readouterr().out


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda records: {"results": records, "others": records}, "is not a list of result records"),
        (lambda records: {"annotations": records[0]}, "is not a list of result records"),
        (lambda records: [records], "is not a list of result records"),
        (lambda records: [{**record, "score": None} for record in records], "score"),
        (lambda records: [{"image_id": 1, "category_id": 3, "bbox": [0, 0, 1, 1]}], "without a usable score (1): 0"),
        (lambda records: [{**records[0], "bbox": [1, 2, 3]}], "without a usable bbox (1): 0"),
        (
            lambda records: [{**records[0], "segmentation": [[1, 2, 3]]}],
            "nor polygons (1): 0 (image 100), counted from 0",
        ),
        (lambda records: [], "has no records"),
        (lambda records: [{**records[0], "image_id": 77}], "ids [77]"),
        (
            lambda records: [{**records[0], "bbox": [], "segmentation": None, "keypoints": None}],
            "without bbox, segmentation or keypoints (1):",
        ),
        (lambda records: [{**records[0], "category_id": 1}] * 2, "no category id in"),
        (lambda records: [{**records[0], "segmentation": {"size": [9, 9], "counts": "00"}}], "(1): 0 (image 100)"),
    ],
)
def test_unusable_results(folder: Path, capsys: pytest.CaptureFixture[str], function: Any, message: str) -> None:
    edit(folder / "results.json", function)
    assert run(folder) == 2
    error = capsys.readouterr().err
    assert message in error
    assert str(folder / "results.json") in error
    assert not (folder / "page.html").exists()


def test_missing_files(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "--images=/no/such/folder") == 2
    assert "--images=/no/such/folder: no such directory" in capsys.readouterr().err
    (folder / "results.json").write_text("[{]")
    assert run(folder) == 2
    assert f"{folder / 'results.json'} is not valid JSON" in capsys.readouterr().err
    (folder / "results.json").unlink()
    assert run(folder) == 2
    assert str(folder / "results.json") in capsys.readouterr().err


def test_ignored_results_are_on_the_page(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Half of the results have category id 0, as from programs that count from 0; one has no mask."""

    def altered(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
        masked = [{**record, "category_id": 0} for record in records]
        return [*records[1:], {**records[0], "segmentation": []}, *masked]

    edit(folder / "results.json", altered)
    count = len(json.loads((folder / "results.json").read_text()))
    assert run(folder) == 0
    page = (folder / "page.html").read_text()
    assert f"{count // 2} of {count} results are of categories that the annotations do not have: left out (" in page
    assert f"1 of {count // 2} results have no masks: left out of the table of masks" in page


def test_keypoint_results(folder: Path) -> None:
    """Without boxes and masks; the results equal the ground truth."""
    truth = json.loads((folder / "annotations.json").read_text())
    names = ("image_id", "category_id", "keypoints")
    people = [entry for entry in truth["annotations"] if "keypoints" in entry]
    edit(folder / "results.json", lambda _: [{**{name: one[name] for name in names}, "score": 0.9} for one in people])
    assert run(folder) == 0
    page = (folder / "page.html").read_text()
    assert "AP of keypoints" in page
    assert "AP of boxes" not in page
    assert "<b>1.000</b>" in page


def test_annotation_errors_are_those_of_training(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def quoted(content: Any) -> Any:
        content["annotations"][0]["iscrowd"] = "0"
        return content

    edit(folder / "annotations.json", quoted)
    assert run(folder) == 2
    with pytest.raises(DataError) as refused:
        annotations.read(folder / "annotations.json")
    assert capsys.readouterr().err == f"error: {refused.value}\n"
    assert 'has iscrowd "0"; write the number 1' in str(refused.value)
