"""`mrcnn check`: exit status and messages, which are those of training."""

from __future__ import annotations

import dataclasses
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mrcnn_jax
from mrcnn_jax.cli import main as mrcnn
from mrcnn_jax.data import image_files, load_split, train_batches
from mrcnn_jax.errors import DataError


@pytest.fixture(autouse=True)
def in_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Changes the current folder, where pages are written."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def run(folder: Any, *arguments: str) -> int:
    folder.save()
    return mrcnn(["check", str(folder.root), *arguments])


def missing_files(folder: Any) -> None:
    for name in ("1.png", "5.png"):
        (folder.root / "images" / name).unlink()


def truncated_file(folder: Any) -> None:
    path = folder.root / "images" / "2.png"
    path.write_bytes(path.read_bytes()[:1000])


def wrong_size(folder: Any) -> None:
    folder.content["images"][3]["height"] = 65


def unknown_category(folder: Any) -> None:
    folder.add(98, [1, 1, 5, 5], category_id=7, id=77)


def duplicates(folder: Any) -> None:
    folder.add(98, [1, 1, 5, 5], id=3)
    folder.content["images"].append({**folder.content["images"][0], "file_name": "again.png"})


def unknown_image(folder: Any) -> None:
    folder.add(12345, [1, 1, 5, 5], id=78)


def all_problems(folder: Any) -> None:
    for corrupt in (missing_files, truncated_file, wrong_size, unknown_category, duplicates, unknown_image):
        corrupt(folder)


def add_dropped(folder: Any, count: int = 1) -> None:
    for i in range(count):
        folder.add(98, [1, 1, 5 + i / 8, 0], id=1000 + i)
        folder.add(99, [1, 1, 5 + i / 8, 5], id=2000 + i, segmentation=[[1, 1, 6, 6]])


PROBLEMS = (missing_files, truncated_file, wrong_size, unknown_category, duplicates, unknown_image, all_problems)


def test_clean_data(coco_folder: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(coco_folder) == 0
    printed = capsys.readouterr()
    page = Path("check-coco.html")
    assert page.is_file()
    assert printed.out.splitlines()[-1] == f"no problems found; images and histograms in {page}"
    assert printed.err == ""
    for text in ("7/7 images checked", "boat", "kite", "smallest 30x64, median 50x50, largest 64x64"):
        assert text in printed.out


@pytest.mark.parametrize("corrupt", PROBLEMS)
def test_refusals_are_those_of_training(
    coco_folder: Any, capsys: pytest.CaptureFixture[str], corrupt: Callable[[Any], None]
) -> None:
    corrupt(coco_folder)
    assert run(coco_folder) == 1
    printed = capsys.readouterr().out.splitlines()
    with pytest.raises(DataError) as refused:
        load_split(coco_folder.config().data, "train")
    lines = str(refused.value).splitlines()
    assert [line for line in printed if line.startswith(f"{coco_folder.root / 'coco.json'}: ")] == lines
    assert printed[-1].startswith("refused: training would not start (")


def test_dropped_annotations_are_those_of_training(
    coco_folder: Any, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    add_dropped(coco_folder)
    assert run(coco_folder) == 1
    printed = capsys.readouterr().out.splitlines()
    with caplog.at_level(logging.WARNING):
        load_split(coco_folder.config().data, "train")
    dropped = [message for message in caplog.messages if "dropped) in 1 annotation: " in message]
    assert len(dropped) == 2
    assert [line for line in printed if "dropped) in 1 annotation: " in line] == dropped
    assert printed[-1].startswith("training would start, but drop data (2 problems); ")


def test_lists_all_ids_where_training_lists_twenty(
    coco_folder: Any, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    add_dropped(coco_folder, 30)
    assert run(coco_folder) == 1
    printed = capsys.readouterr().out
    with caplog.at_level(logging.WARNING):
        load_split(coco_folder.config().data, "train")
    for annotation_id in (*range(1000, 1030), *range(2000, 2030)):
        assert f" {annotation_id} (image " in printed
    assert "and 10 more" in caplog.text
    assert "more" not in printed


def all_crowds(folder: Any) -> None:
    for annotation in folder.content["annotations"]:
        annotation["iscrowd"] = 1


def flat_boxes(folder: Any) -> None:
    for annotation in folder.content["annotations"]:
        annotation["bbox"][2:] = [0, 0]
    folder.content["annotations"][0]["iscrowd"] = 1


def crowds_and_flat_boxes(folder: Any) -> None:
    all_crowds(folder)
    for annotation in folder.content["annotations"][:3]:
        annotation["bbox"][2:] = [0, 0]


def no_annotations(folder: Any) -> None:
    folder.content["annotations"] = []


def no_categories(folder: Any) -> None:
    folder.content.update(annotations=[], categories=[])


def points_as_pairs(folder: Any) -> None:
    for annotation in folder.content["annotations"]:
        (flat,) = annotation["segmentation"]
        annotation["segmentation"] = [[flat[i], flat[i + 1]] for i in range(0, len(flat), 2)]


@pytest.mark.parametrize(
    ("corrupt", "message"),
    [
        (
            all_crowds,
            "no instance is left to train on: iscrowd=1 in 14 annotations; set iscrowd to 0 for single objects",
        ),
        (
            flat_boxes,
            "no instance is left to train on: bbox without area (annotation dropped) in 14 annotations; correct",
        ),
        (
            crowds_and_flat_boxes,
            "no instance is left to train on: iscrowd=1 in 11 annotations, bbox without area (annotation dropped)"
            " in 3 annotations; set iscrowd",
        ),
        (no_annotations, "no annotation of boat, kite, so there is nothing to train on; annotate the images"),
        (no_categories, "no categories, so there is nothing to train on; add the classes to 'categories'"),
        (
            points_as_pairs,
            "no instance has a mask to train on: polygon with fewer than 3 points (dropped) in 14 annotations;"
            " set model.mask=",
        ),
    ],
)
def test_no_instance_to_train_on(
    coco_folder: Any, capsys: pytest.CaptureFixture[str], corrupt: Callable[[Any], None], message: str
) -> None:
    """The message is that of training."""
    corrupt(coco_folder)
    assert run(coco_folder, "--accept-dropped") == 2
    printed = capsys.readouterr().out.splitlines()
    config = coco_folder.config()
    with pytest.raises(DataError) as refused:
        train_batches(load_split(config.data, "train"), config)
    assert str(refused.value).startswith(f"{coco_folder.root / 'coco.json'}: {message}")
    assert str(refused.value) in printed
    assert printed[-1].startswith("refused: training would not start (1 problem); ")


def test_boxes_train_without_valid_masks(coco_folder: Any) -> None:
    points_as_pairs(coco_folder)
    config = coco_folder.config()
    boxes_only = dataclasses.replace(config, model=dataclasses.replace(config.model, mask=None))
    with train_batches(load_split(config.data, "train"), boxes_only) as batches:
        assert next(batches).ground_truth.valid.sum(axis=1).tolist() == [2, 2]


@pytest.mark.parametrize("name", ["image_info_test2017.json", "image_info_unlabeled2017.json", "val.json"])
def test_other_splits_need_no_annotations(coco_folder: Any, name: str) -> None:
    no_annotations(coco_folder)
    coco_folder.save().rename(coco_folder.root / name)
    assert mrcnn(["check", str(coco_folder.root)]) == 0


def test_accept_dropped(coco_folder: Any) -> None:
    add_dropped(coco_folder)
    assert run(coco_folder, "--accept-dropped") == 0
    unknown_category(coco_folder)
    assert run(coco_folder, "--accept-dropped") == 1


def test_output(coco_folder: Any, tmp_path: Path) -> None:
    assert run(coco_folder, "--output", str(tmp_path / "page.html")) == 0
    assert (tmp_path / "page.html").is_file()
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "no folder or file nowhere; give the folder of a dataset, or a COCO JSON"),
        (["."], "no COCO JSON in .; give the JSON itself, with --images=FOLDER for its images"),
        ([".", "--images", "nowhere"], "no folder nowhere; give the folder with the images as --images"),
        (
            [".", "--output", "no/where.html"],
            "--output=no/where.html cannot be written to: there is no folder no: create it; give another --output",
        ),
    ],
)
def test_nothing_to_check(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert mrcnn(["check", *arguments]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_other_json_files_are_skipped(capsys: pytest.CaptureFixture[str]) -> None:
    Path("results.json").write_text("[]")
    Path("captions.json").write_text('{"images": [], "annotations": []}')
    assert mrcnn(["check", "."]) == 2
    assert capsys.readouterr().err == (
        "error: no COCO JSON in .; it has captions.json is something else: it has no list 'categories', results.json"
        " is a list, perhaps of results; give the JSON itself, with --images=FOLDER for its images\n"
    )


def test_given_file_is_not_skipped(capsys: pytest.CaptureFixture[str]) -> None:
    Path("results.json").write_text("[]")
    assert mrcnn(["check", "results.json"]) == 1
    assert "results.json is not a COCO instances file: it has no list 'images'" in capsys.readouterr().out


def test_invalid_json_beside_valid_files(coco_folder: Any, capsys: pytest.CaptureFixture[str]) -> None:
    (coco_folder.root / "val.json").write_text('{"images": [')
    assert run(coco_folder) == 1
    printed = capsys.readouterr().out
    assert "7/7 images checked" in printed
    assert f"{coco_folder.root / 'val.json'} is not valid JSON" in printed
    assert "is not valid JSON" in Path("check-coco.html").read_text()


def test_missing_image_folder(coco_folder: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (coco_folder.root / "images").rename(tmp_path / "elsewhere")
    assert run(coco_folder) == 1
    printed = capsys.readouterr().out
    path = coco_folder.root / "coco.json"
    assert f"{path}: none of its images (0.png, 1.png, 2.png, and 4 more) is in {coco_folder.root}; give" in printed
    assert "give their folder as --images=FOLDER" in printed
    assert run(coco_folder, "--images", str(tmp_path / "elsewhere")) == 0
    assert run(coco_folder, "--images", str(tmp_path)) == 1
    assert "this folder has none of the images: correct" in capsys.readouterr().out


def test_interrupted(coco_folder: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: Any) -> Any:
        yield image_files.ImageCheck()
        raise KeyboardInterrupt

    monkeypatch.setattr(image_files, "check_images", interrupted)
    assert run(coco_folder) == 130
    assert capsys.readouterr().err == "Ctrl-C: interrupted\n"
    assert not list(Path().iterdir())


@pytest.mark.medium
def test_command(coco_folder: Any) -> None:
    coco_folder.save()
    root = Path(mrcnn_jax.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "mrcnn_jax.cli", "check", str(coco_folder.root)],
        env={"PYTHONPATH": str(root), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("no problems found; images and histograms in check-coco.html\n")
