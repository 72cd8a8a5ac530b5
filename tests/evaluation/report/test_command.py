"""The command: anybody's results in, a page out; what cannot be used is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mrcnn_jax.data import DataError, annotations
from mrcnn_jax.evaluation.report import __main__ as command


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "own"))


def run(folder: Path, *more: str) -> int:
    arguments = [str(folder / "results.json"), str(folder / "annotations.json"), f"--images={folder / 'images'}"]
    return command.main([*arguments, f"--output={folder / 'page.html'}", *more])


def change(path: Path, act: Any) -> None:
    path.write_text(json.dumps(act(json.loads(path.read_text()))))


def test_boxes_of_another_program(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing but what COCO asks of boxes."""
    needed = ("image_id", "category_id", "bbox", "score")
    change(folder / "results.json", lambda records: [{name: record[name] for name in needed} for record in records])
    assert run(folder) == 0
    written = (folder / "page.html").read_text()
    assert "AP of boxes" in written
    assert "AP of masks" not in written
    assert str(folder / "page.html") in capsys.readouterr().out


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (lambda records: {"annotations": records}, "is no list of result records"),
        (lambda records: [{**record, "score": None} for record in records], "score"),
        (lambda records: [{"image_id": 1, "category_id": 3, "bbox": [0, 0, 1, 1]}], "without a usable score (1): 0"),
        (lambda records: [{**records[0], "bbox": [1, 2, 3]}], "without a usable bbox (1): 0"),
        (lambda records: [{**records[0], "segmentation": [[1, 2, 3]]}], "without a usable segmentation (1): 0"),
        (lambda records: [], "has no records"),
        (lambda records: [{**records[0], "image_id": 77}], "ids [77]"),
        (lambda records: [{"image_id": 100, "category_id": 3, "score": 0.5}], "has nothing of"),
    ],
)
def test_results_that_cannot_be_used(folder: Path, capsys: pytest.CaptureFixture[str], act: Any, said: str) -> None:
    change(folder / "results.json", act)
    assert run(folder) == 2
    error = capsys.readouterr().err
    assert said in error
    assert str(folder / "results.json") in error
    assert not (folder / "page.html").exists()


def test_files_that_are_not_there(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "--images=/no/such/folder") == 2
    assert "no folder /no/such/folder; make it, or give another --images" in capsys.readouterr().err
    (folder / "results.json").write_text("[{]")
    assert run(folder) == 2
    assert f"{folder / 'results.json'} is no JSON" in capsys.readouterr().err
    (folder / "results.json").unlink()
    assert run(folder) == 2
    assert str(folder / "results.json") in capsys.readouterr().err


def test_annotations_are_refused_in_the_words_of_training(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def quoted(content: Any) -> Any:
        content["annotations"][0]["iscrowd"] = "0"
        return content

    change(folder / "annotations.json", quoted)
    assert run(folder) == 2
    with pytest.raises(DataError) as refused:
        annotations.read(folder / "annotations.json")
    assert capsys.readouterr().err == f"error: {refused.value}\n"
    assert 'has "0"; write the number 1' in str(refused.value)
