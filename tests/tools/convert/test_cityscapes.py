"""Conversion of Cityscapes, and COCO files of other conversions of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from support.convert_folders import Command, photograph, pixels, save

CITIES = ("aachen/aachen_000000_000019", "bochum/bochum_000000_000313")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    values = np.zeros((20, 30), np.uint16)
    values[:5] = 23  # sky
    values[5:9, :6], values[5:9, 6:12] = 26000, 26001
    values[9:15, 2:4] = 24017
    values[9:15, 20:25] = 26  # a group of cars
    values[15:17, :9] = 29000  # a caravan, which is not evaluated
    values[19] = 1  # the car with the camera
    for name in CITIES:
        photograph(tmp_path / "leftImg8bit" / "train" / f"{name}_leftImg8bit.png")
        save(tmp_path / "gtFine" / "train" / f"{name}_gtFine_instanceIds.png", values)
        save(tmp_path / "gtFine" / "train" / f"{name}_gtFine_labelIds.png", values.astype(np.uint8))
    return tmp_path


def test_instances_and_groups(root: Path, command: Command) -> None:
    command.run("cityscapes", root)
    content = command.content(root / "leftImg8bit" / "train")
    assert [image["file_name"] for image in content["images"]] == [f"{name}_leftImg8bit.png" for name in CITIES]
    assert [c["id"] for c in content["categories"]] == [24, 25, 26, 27, 28, 31, 32, 33]
    assert [c["name"] for c in content["categories"]][::7] == ["person", "bicycle"]
    first = [a for a in content["annotations"] if a["image_id"] == 1]
    found = [(a["category_id"], a["iscrowd"], a["bbox"]) for a in first]
    assert found == [
        (26, 1, [20, 9, 5, 6]),
        (24, 0, [2, 9, 2, 6]),
        (26, 0, [0, 5, 6, 4]),
        (26, 0, [6, 5, 6, 4]),
    ]
    assert pixels(first[1]).sum() == first[1]["area"] == 12


def test_images_of_another_format_are_converted(root: Path, command: Command) -> None:
    folder = root / "leftImg8bit" / "train"
    (folder / f"{CITIES[0]}_leftImg8bit.png").unlink()
    photograph(folder / f"{CITIES[0]}_leftImg8bit.jpg")
    command.run("cityscapes", root)
    assert command.content(folder)["images"][0]["file_name"] == f"{CITIES[0]}_leftImg8bit.jpg"


def test_unmatched_files_are_refused(root: Path, command: Command) -> None:
    assert "there are train" in command.refused("cityscapes", root, "--split=val")
    (root / "gtFine" / "train" / f"{CITIES[0]}_gtFine_instanceIds.png").unlink()
    (root / "leftImg8bit" / "train" / f"{CITIES[1]}_leftImg8bit.png").unlink()
    message = command.refused("cityscapes", root)
    assert f"(1): {CITIES[0]}; add it: gtFine_trainvaltest.zip has it" in message
    assert f"(1): {CITIES[1]}; add it: leftImg8bit_trainvaltest.zip has it" in message
    assert "no folder" in command.refused("cityscapes", root / "gtFine")


def test_split_without_instances_is_refused(root: Path, command: Command) -> None:
    """The published test split has such files."""
    for name in CITIES:
        save(root / "gtFine" / "train" / f"{name}_gtFine_instanceIds.png", np.full((20, 30), 3, np.uint16))
    assert "none of the 2 images has an instance" in command.refused("cityscapes", root)


@pytest.mark.parametrize("form", ["polygons", "rle"])
def test_other_conversions_can_be_read(form: str, root: Path, command: Command) -> None:
    """Polygons with float boxes, as in Detectron's tools, or RLE with additional fields, as in MMDetection's."""
    mask = np.zeros((20, 30), np.uint8, order="F")
    mask[5:9, 2:8] = 1
    rle = coco_mask.encode(mask)
    segmentations = {
        "polygons": [[2.0, 5.0, 8.0, 5.0, 8.0, 9.0, 2.0, 9.0]],
        "rle": {"size": rle["size"], "counts": rle["counts"].decode()},
    }
    name = f"{CITIES[0]}_leftImg8bit.png"
    fields = {"polygons": "seg_file_name", "rle": "segm_file"}
    image = {"id": 0, "file_name": name, "height": 20, "width": 30, fields[form]: f"{CITIES[0]}_gtFine_instanceIds.png"}
    annotation = {
        "id": 0,
        "image_id": 0,
        "category_id": 26,
        "bbox": [2.0, 5.0, 6.0, 4.0],
        "area": 24.0,
        "iscrowd": 0,
        "segmentation": segmentations[form],
    }
    categories = [{"id": 26, "name": "car"}, {"id": 24, "name": "person"}]
    command.output.parent.mkdir()
    command.output.write_text(json.dumps({"images": [image], "annotations": [annotation], "categories": categories}))
    command.content(root / "leftImg8bit" / "train")
