"""Comparison of the files of a dataset."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mrcnn_jax.tools.check import compare, sources
from mrcnn_jax.tools.check.survey import survey


def write_split(folder: Any, name: str, images: slice, **changes: Any) -> None:
    """Write a JSON with some of the images."""
    content = copy.deepcopy({**folder.content, **changes})
    content["images"] = content["images"][images]
    ids = {image["id"] for image in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in ids]
    (folder.root / name).parent.mkdir(exist_ok=True)
    (folder.root / name).write_text(json.dumps(content))


def warnings(folder: Any) -> list[str]:
    lines = compare.warnings(survey(sources.find_files(folder.root).files, lambda results, total: results))
    return [line.replace(f"{folder.root}/", "") for line in lines]


def test_disjoint_splits(coco_folder: Any) -> None:
    write_split(coco_folder, "train.json", slice(0, 4))
    write_split(coco_folder, "val.json", slice(4, 7))
    assert warnings(coco_folder) == []


def test_images_in_training_and_evaluation(coco_folder: Any) -> None:
    write_split(coco_folder, "annotations/instances_train2017.json", slice(0, 5))
    write_split(coco_folder, "annotations/instances_val2017.json", slice(3, 7))
    assert warnings(coco_folder) == [
        "annotations/instances_train2017.json and annotations/instances_val2017.json share images (2): 3.png (id 97),"
        " 4.png (id 96); metrics on training images are misleading: remove them from one of the two"
    ]


def test_two_files_of_the_same_split_may_share_images(coco_folder: Any) -> None:
    write_split(coco_folder, "instances_train.json", slice(0, 5))
    write_split(coco_folder, "person_keypoints_train.json", slice(2, 4))
    assert warnings(coco_folder) == []


def test_files_of_unknown_splits(coco_folder: Any) -> None:
    write_split(coco_folder, "all.json", slice(0, 7))
    write_split(coco_folder, "val.json", slice(4, 7))
    (line,) = warnings(coco_folder)
    assert line.startswith("all.json and val.json share 3 images; if one is for training")


def test_copies_under_another_name(coco_folder: Any) -> None:
    write_split(coco_folder, "train.json", slice(0, 4))
    shutil.copy(coco_folder.root / "images/2.png", coco_folder.root / "images/6.png")
    (coco_folder.root / "images/0.png").unlink()  # missing files are not compared
    coco_folder.content["images"][6].update(coco_folder.content["images"][2], file_name="6.png", id=94)
    write_split(coco_folder, "val.json", slice(4, 7))
    (line,) = warnings(coco_folder)
    assert "have the same images in different files (1): 2.png (id 98) = 6.png (id 94); metrics on" in line


def test_copies_within_one_file(coco_folder: Any) -> None:
    shutil.copy(coco_folder.root / "images/2.png", coco_folder.root / "images/6.png")
    coco_folder.content["images"][6].update(height=48, width=64)
    coco_folder.save()
    assert warnings(coco_folder) == [
        "coco.json: different files with the same content (1): 2.png (id 98) = 6.png (id 94); remove one of each pair"
        " unless both are intended"
    ]


def test_contradictory_categories(coco_folder: Any) -> None:
    write_split(coco_folder, "train.json", slice(0, 4))
    ids = [{"id": 20, "name": "boat"}, {"id": 3, "name": "kite"}]
    write_split(coco_folder, "val.json", slice(4, 7), categories=ids)
    named, numbered = warnings(coco_folder)
    assert "train.json and val.json name categories differently (2): 3 is boat and kite, 20 is kite and boat;" in named
    assert "train.json and val.json number categories differently (2): boat is 3 and 20, kite is 20 and 3" in numbered


def test_categories_of_one_split_only(coco_folder: Any) -> None:
    write_split(coco_folder, "train.json", slice(0, 4))
    more = [*coco_folder.content["categories"], {"id": 5, "name": "dog\n"}]
    write_split(coco_folder, "val.json", slice(4, 7), categories=more)
    write_split(
        coco_folder, "other_val.json", slice(4, 7), categories=[*more, {"id": 6, "name": "cow"}]
    )  # of another kind
    assert warnings(coco_folder) == ["val.json has categories that train.json lacks (1): 'dog\\n'"]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("annotations/instances_train2017.json", "train"),
        ("lvis_v1_val.json", "val"),
        ("valid/_annotations.coco.json", "val"),
        ("test/labels.json", "test"),
        ("trained.json", ""),
        ("data/annotations.json", ""),
    ],
)
def test_splits_by_name(path: str, expected: str) -> None:
    assert sources.split_of(Path(path)) == expected
