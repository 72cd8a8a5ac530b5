"""The check command: what it exits with, what it names, and that training says the same."""

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
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages are written to the current folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def run(folder: Any, *arguments: str) -> int:
    folder.save()
    return mrcnn(["check", str(folder.root), *arguments])


def absent(folder: Any) -> None:
    for name in ("1.png", "5.png"):
        (folder.root / "images" / name).unlink()


def cut_off(folder: Any) -> None:
    path = folder.root / "images" / "2.png"
    path.write_bytes(path.read_bytes()[:1000])


def other_size(folder: Any) -> None:
    folder.content["images"][3]["height"] = 65


def unknown_category(folder: Any) -> None:
    folder.add(98, [1, 1, 5, 5], category_id=7, id=77)


def duplicates(folder: Any) -> None:
    folder.add(98, [1, 1, 5, 5], id=3)
    folder.content["images"].append({**folder.content["images"][0], "file_name": "again.png"})


def stranger(folder: Any) -> None:
    folder.add(12345, [1, 1, 5, 5], id=78)


def everything(folder: Any) -> None:
    for breaking in (absent, cut_off, other_size, unknown_category, duplicates, stranger):
        breaking(folder)


def drop_some(folder: Any, count: int = 1) -> None:
    for i in range(count):
        folder.add(98, [1, 1, 5 + i / 8, 0], id=1000 + i)
        folder.add(99, [1, 1, 5 + i / 8, 5], id=2000 + i, segmentation=[[1, 1, 6, 6]])


BROKEN = (absent, cut_off, other_size, unknown_category, duplicates, stranger, everything)


def test_clean_data(coco_folder: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(coco_folder) == 0
    printed = capsys.readouterr()
    page = Path("check-coco.html")
    assert page.is_file()
    assert printed.out.splitlines()[-1] == f"nothing is wrong; pictures and histograms in {page}"
    assert printed.err == ""
    for text in ("7/7 images checked", "boat", "kite", "smallest 30x64, median 50x50, largest 64x64"):
        assert text in printed.out


@pytest.mark.parametrize("breaking", BROKEN)
def test_refusals_are_those_of_training(
    coco_folder: Any, capsys: pytest.CaptureFixture[str], breaking: Callable[[Any], None]
) -> None:
    breaking(coco_folder)
    assert run(coco_folder) == 1
    printed = capsys.readouterr().out.splitlines()
    with pytest.raises(DataError) as refused:
        load_split(coco_folder.config().data, "train")
    lines = str(refused.value).splitlines()
    assert [line for line in printed if line.startswith(f"{coco_folder.root / 'coco.json'}: ")] == lines
    assert printed[-1].startswith("refused: training does not start, for ")


def test_what_is_dropped_is_what_training_drops(
    coco_folder: Any, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    drop_some(coco_folder)
    assert run(coco_folder) == 1
    printed = capsys.readouterr().out.splitlines()
    with caplog.at_level(logging.WARNING):
        load_split(coco_folder.config().data, "train")
    said = [message for message in caplog.messages if ": dropped" in message]
    assert len(said) == 2
    assert [line for line in printed if ": dropped" in line] == said
    assert printed[-1].startswith("training starts, without 2 faulty annotations (whole or in part); ")


def test_all_culprits_are_named_where_training_names_twenty(
    coco_folder: Any, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    drop_some(coco_folder, 30)
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
    ("breaking", "said"),
    [
        (all_crowds, "no instance is left to train on: all 14 have iscrowd=1; set iscrowd to 0 for single objects"),
        (flat_boxes, "no instance is left to train on: box without area (14); correct the annotations"),
        (crowds_and_flat_boxes, "no instance is left to train on: iscrowd=1 (11), box without area (3); set iscrowd"),
        (no_annotations, "no instance to learn from: nothing is annotated as boat, kite; annotate the images"),
        (no_categories, "no categories; there is nothing to learn: name the classes in 'categories'"),
        (
            points_as_pairs,
            "no instance has a mask to learn from: polygon with fewer than 3 points (14); set model.mask=",
        ),
    ],
)
def test_nothing_to_learn_from(
    coco_folder: Any, capsys: pytest.CaptureFixture[str], breaking: Callable[[Any], None], said: str
) -> None:
    """The check and the training refuse with the same line."""
    breaking(coco_folder)
    assert run(coco_folder, "--accept-dropped") == 2
    printed = capsys.readouterr().out.splitlines()
    config = coco_folder.config()
    with pytest.raises(DataError) as refused:
        train_batches(load_split(config.data, "train"), config)
    assert str(refused.value).startswith(f"{coco_folder.root / 'coco.json'}: {said}")
    assert str(refused.value) in printed
    assert printed[-1].startswith("refused: training does not start, for 1 reason; ")


def test_boxes_are_learned_where_all_masks_are_lost(coco_folder: Any) -> None:
    points_as_pairs(coco_folder)
    config = coco_folder.config()
    boxes_only = dataclasses.replace(config, model=dataclasses.replace(config.model, mask=None))
    with train_batches(load_split(config.data, "train"), boxes_only) as batches:
        assert next(batches).ground_truth.valid.sum(axis=1).tolist() == [2, 2]


@pytest.mark.parametrize("name", ["image_info_test2017.json", "image_info_unlabeled2017.json", "val.json"])
def test_what_is_not_for_training_needs_no_annotations(coco_folder: Any, name: str) -> None:
    no_annotations(coco_folder)
    coco_folder.save().rename(coco_folder.root / name)
    assert mrcnn(["check", str(coco_folder.root)]) == 0


def test_accept_dropped(coco_folder: Any) -> None:
    drop_some(coco_folder)
    assert run(coco_folder, "--accept-dropped") == 0
    unknown_category(coco_folder)
    assert run(coco_folder, "--accept-dropped") == 1


def test_the_page_goes_where_it_is_told_to(coco_folder: Any, tmp_path: Path) -> None:
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
            "--output=no/where.html cannot be written to: there is no folder no: make it; give another --output",
        ),
    ],
)
def test_nothing_to_check(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert mrcnn(["check", *arguments]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_other_json_files_are_no_data(capsys: pytest.CaptureFixture[str]) -> None:
    Path("results.json").write_text("[]")
    Path("captions.json").write_text('{"images": [], "annotations": []}')
    assert mrcnn(["check", "."]) == 2
    assert capsys.readouterr().err == (
        "error: no COCO JSON in .; it has captions.json is something else: it has no list 'categories', results.json"
        " is a list, perhaps of results; give the JSON itself, with --images=FOLDER for its images\n"
    )


def test_a_file_that_was_asked_for_is_not_passed_over(capsys: pytest.CaptureFixture[str]) -> None:
    Path("results.json").write_text("[]")
    assert mrcnn(["check", "results.json"]) == 1
    assert "results.json is not a COCO instances file: it has no list 'images'" in capsys.readouterr().out


def test_a_broken_file_does_not_hide_the_others(coco_folder: Any, capsys: pytest.CaptureFixture[str]) -> None:
    (coco_folder.root / "val.json").write_text('{"images": [')
    assert run(coco_folder) == 1
    printed = capsys.readouterr().out
    assert "7/7 images checked" in printed
    assert f"{coco_folder.root / 'val.json'} is not JSON" in printed
    assert "is not JSON" in Path("check-coco.html").read_text()


def test_images_that_are_nowhere(coco_folder: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (coco_folder.root / "images").rename(tmp_path / "elsewhere")
    assert run(coco_folder) == 1
    printed = capsys.readouterr().out
    path = coco_folder.root / "coco.json"
    assert f"{path}: none of its images (0.png, 1.png, 2.png, and 4 more) is in {coco_folder.root}; give" in printed
    assert "give their folder as --images=FOLDER" in printed
    assert run(coco_folder, "--images", str(tmp_path / "elsewhere")) == 0
    assert run(coco_folder, "--images", str(tmp_path)) == 1
    assert "it has none of the images: give their folder as" in capsys.readouterr().out


def test_interrupted(coco_folder: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: Any) -> Any:
        yield image_files.Examined()
        raise KeyboardInterrupt

    monkeypatch.setattr(image_files, "examine", interrupted)
    assert run(coco_folder) == 130
    assert capsys.readouterr().err == "Ctrl-C: interrupted\n"
    assert not list(Path().iterdir())


def test_without_rich_the_numbers_are_plain_lines(
    coco_folder: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    coco_folder.content["categories"] = [*coco_folder.content["categories"], {"id": 4, "name": "dog"}]
    monkeypatch.setitem(sys.modules, "rich", None)
    assert run(coco_folder) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert {"boat 7 in 7 images", "dog none", "images 7"} <= set(lines)


@pytest.mark.medium
def test_as_a_command(coco_folder: Any) -> None:
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
    assert done.stdout.endswith("nothing is wrong; pictures and histograms in check-coco.html\n")
