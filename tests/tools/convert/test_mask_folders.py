"""Conversion of folders of images and masks, and files that do not match."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from support.convert_folders import Command, photograph, pixels, save

BLOBS = np.zeros((20, 30), np.uint8)
BLOBS[2:6, 3:9] = 5
BLOBS[10:14, 20:25] = 5  # a second component of the same instance
BLOBS[6:10, 3:9] = 9
BLOBS[18, 29] = 255


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """a.jpg and deeper/b.png, with their masks."""
    images, masks = tmp_path / "images", tmp_path / "masks"
    photograph(images / "a.jpg")
    photograph(images / "deeper" / "b.png")
    save(masks / "a.png", BLOBS)
    save(masks / "deeper" / "b.png", BLOBS[:, ::-1])
    (images / ".hidden.png").write_text("of a file manager")
    (images / "notes.txt").write_text("not an image")
    return images, masks


def test_instances(folders: tuple[Path, Path], command: Command) -> None:
    printed = command.run("masks", *folders, "--values=instances", "--categories=zell kern")
    content = command.content(folders[0])
    assert [image["file_name"] for image in content["images"]] == ["a.jpg", "deeper/b.png"]
    assert content["categories"] == [{"id": 1, "name": "zell kern"}]
    assert "2 images (0 without an instance), 6 instances" in printed
    first = [annotation for annotation in content["annotations"] if annotation["image_id"] == 1]
    for annotation, value in zip(first, (5, 9, 255), strict=True):
        np.testing.assert_array_equal(pixels(annotation), value == BLOBS)
        assert annotation["area"] == (value == BLOBS).sum()
    assert first[0]["bbox"] == [3, 2, 22, 12]


def test_classes(folders: tuple[Path, Path], command: Command, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("0 background\n5 boot am See\n\n9 Möwe\n255 dot\n", encoding="utf-8")
    command.run("masks", *folders, "--values=classes", "--categories", names)
    content = command.content(folders[0])
    assert content["categories"] == [
        {"id": 5, "name": "boot am See"},
        {"id": 9, "name": "Möwe"},
        {"id": 255, "name": "dot"},
    ]
    first = [annotation for annotation in content["annotations"] if annotation["image_id"] == 1]
    assert [annotation["category_id"] for annotation in first] == [5, 5, 9, 255]
    np.testing.assert_array_equal(pixels(first[0]) | pixels(first[1]), BLOBS == 5)
    assert [annotation["bbox"] for annotation in first[:2]] == [[3, 2, 6, 4], [20, 10, 5, 4]]


def test_ignored_pixels_become_a_crowd_of_every_category(folders: tuple[Path, Path], command: Command) -> None:
    command.run("masks", *folders, "--values=classes", "--categories=a,b,c,d,cat,f,g,h,dog", "--ignore=255")
    content = command.content(folders[0])
    crowds = [a for a in content["annotations"] if a["image_id"] == 1 and a["iscrowd"]]
    assert [crowd["category_id"] for crowd in crowds] == list(range(1, 10))
    assert all(np.array_equal(pixels(crowd), BLOBS == 255) for crowd in crowds)
    command.output.unlink()
    command.run("masks", *folders, "--values=instances", "--ignore=255")
    content = command.content(folders[0])
    assert [a["iscrowd"] for a in content["annotations"]] == [0, 0, 1] * 2
    assert content["categories"] == [{"id": 1, "name": "object"}]


def test_colors_with_names(tmp_path: Path, command: Command) -> None:
    colors = np.zeros((20, 30, 3), np.uint8)
    colors[:4, :4], colors[8:, 8:] = (255, 0, 128), (0, 255, 0)
    photograph(tmp_path / "images" / "a.png")
    save(tmp_path / "masks" / "a.png", colors)
    names = tmp_path / "names.json"
    names.write_text(json.dumps({"#00FF00": "tree", "#ff0080": "car", "#000000": "background"}))
    folders = tmp_path / "images", tmp_path / "masks"
    command.run("masks", *folders, "--values=classes", "--categories", names)
    content = command.content(tmp_path / "images")
    assert content["categories"] == [{"id": 1, "name": "tree"}, {"id": 2, "name": "car"}]
    assert [(a["category_id"], a["area"]) for a in content["annotations"]] == [(1, 12 * 22), (2, 16)]
    command.output.unlink()
    message = command.refused("masks", *folders, "--values=classes", "--categories=tree,car")
    assert "masks with colors in place of integers (1): " in message
    assert 'a.png; name the colors in a file for --categories, as {"#ff0080": "cat"}' in message
    names.write_text(json.dumps({"#ff0080": "car"}))
    message = command.refused("masks", *folders, "--values=classes", "--categories", names)
    assert "a.png: #00ff00; name them in --categories" in message
    command.run("masks", *folders, "--values=classes", "--categories", names, "--ignore=#00ff00")
    assert [a["iscrowd"] for a in command.content(tmp_path / "images")["annotations"]] == [0, 1]


def test_file_for_each_instance(tmp_path: Path, command: Command) -> None:
    """The layout of the 2018 Data Science Bowl, and two separate folders."""
    parts = [np.zeros((20, 30), np.uint8) for _ in range(3)]
    for i, part in enumerate(parts):
        part[4 * i : 4 * i + 6, 2:9] = 255
    photograph(tmp_path / "stage1" / "0a" / "images" / "0a.png")
    photograph(tmp_path / "images" / "0a.png")
    for i, part in enumerate(parts):
        save(tmp_path / "stage1" / "0a" / "masks" / f"{i}.png", part)
        save(tmp_path / "masks" / "0a" / f"{i}.png", part)
    for images, masks in (("stage1", "stage1"), ("images", "masks")):
        command.run("masks", tmp_path / images, tmp_path / masks, "--values=files", "--categories=nucleus")
        content = command.content(tmp_path / images)
        assert len(content["annotations"]) == 3
        for annotation, part in zip(content["annotations"], parts, strict=True):
            np.testing.assert_array_equal(pixels(annotation), part > 0)
        command.output.unlink()


def test_images_and_masks_in_one_folder(tmp_path: Path, command: Command) -> None:
    photograph(tmp_path / "all" / "a.png")
    save(tmp_path / "all" / "a_gt.png", BLOBS)
    arguments = ("masks", tmp_path / "all", tmp_path / "all", "--values=instances")
    assert "give the --suffix" in command.refused(*arguments)
    command.run(*arguments, "--suffix=_gt")
    assert [image["file_name"] for image in command.content(tmp_path / "all")["images"]] == ["a.png"]


def test_masks_in_a_folder_among_the_images(tmp_path: Path, command: Command) -> None:
    photograph(tmp_path / "images" / "a.png")
    save(tmp_path / "images" / "masks" / "a.png", BLOBS)
    command.run("masks", tmp_path / "images", tmp_path / "images" / "masks", "--values=instances")
    assert len(command.content(tmp_path / "images")["images"]) == 1


def test_empty_mask_is_a_background_image(folders: tuple[Path, Path], command: Command) -> None:
    save(folders[1] / "a.png", BLOBS * 0)
    assert "2 images (1 without an instance), 3 instances" in command.run("masks", *folders, "--values=instances")
    assert len(command.content(folders[0])["images"]) == 2


def test_only_empty_masks_are_refused(folders: tuple[Path, Path], command: Command) -> None:
    for name in ("a.png", "deeper/b.png"):
        save(folders[1] / name, BLOBS * 0)
    assert "none of the 2 images has an instance" in command.refused("masks", *folders, "--values=instances")


def test_size_of_a_rotated_photograph(tmp_path: Path, command: Command) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "images" / "a.jpg", Image.new("RGB", (20, 30)), exif=exif)  # displayed 20 high, 30 wide
    save(tmp_path / "masks" / "a.png", BLOBS)
    command.run("masks", tmp_path / "images", tmp_path / "masks", "--values=instances")
    assert command.content(tmp_path / "images")["images"][0]["height"] == 20
    command.output.unlink()
    save(tmp_path / "masks" / "a.png", BLOBS.T)
    message = command.refused("masks", tmp_path / "images", tmp_path / "masks", "--values=instances")
    assert "a.png is 30x20, the image 20x30; save the mask in the size of its image after EXIF rotation" in message


def test_masks_without_several_instances_are_noted(folders: tuple[Path, Path], command: Command) -> None:
    for name in ("a.png", "deeper/b.png"):
        save(folders[1] / name, (BLOBS > 0).astype(np.uint8) * 255)
    assert "use --values=classes" in command.run("masks", *folders, "--values=instances")


def test_all_errors_are_reported_together(folders: tuple[Path, Path], command: Command) -> None:
    images, masks = folders
    for name in ("c", "d", "e"):
        photograph(images / f"{name}.png")
    save(masks / "c.png", BLOBS[:10])
    save(masks / "d.jpg", BLOBS)
    (masks / "e.png").write_bytes(b"\x89PNG")
    message = command.refused("masks", *folders, "--values=instances")
    assert len(message.splitlines()) == 3
    assert "c.png is 10x30, the image 20x30" in message
    assert "d.jpg (JPEG); save masks as PNG" in message
    assert "masks that cannot be read (1): " in message


def test_unmatched_files_are_refused(folders: tuple[Path, Path], command: Command) -> None:
    photograph(folders[0] / "c.png")
    save(folders[1] / "deeper" / "d.png", BLOBS)
    message = command.refused("masks", *folders, "--values=instances")
    assert "images without a mask in" in message
    assert "(1): c.png; add it" in message
    assert "masks without an image in" in message
    assert "(1): deeper/d.png; add it" in message


def test_suffix_is_suggested(folders: tuple[Path, Path], command: Command) -> None:
    for mask in list(folders[1].rglob("*.png")):
        mask.rename(mask.with_name(f"{mask.stem}_instanceIds.png"))
    message = command.refused("masks", *folders, "--values=instances")
    assert message.endswith("no mask is named like its image; give --suffix=_instanceIds\n")
    command.run("masks", *folders, "--values=instances", "--suffix=_instanceIds")


def test_images_that_differ_only_in_the_suffix_are_refused(folders: tuple[Path, Path], command: Command) -> None:
    photograph(folders[0] / "a.png")
    assert "only in the suffix (1): a.jpg and a.png" in command.refused("masks", *folders, "--values=instances")


def test_unreadable_image_is_refused(folders: tuple[Path, Path], command: Command) -> None:
    (folders[0] / "a.jpg").write_bytes(b"")
    assert "images that cannot be read (1): a.jpg" in command.refused("masks", *folders, "--values=instances")


@pytest.mark.parametrize("values", ["instances", "classes", "files"])
def test_folders_without_images_are_refused(values: str, tmp_path: Path, command: Command) -> None:
    assert "no folder" in command.refused("masks", tmp_path / "a", tmp_path / "b", f"--values={values}")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert "no images" in command.refused("masks", tmp_path / "a", tmp_path / "b", f"--values={values}")


def test_classes_need_names(folders: tuple[Path, Path], command: Command) -> None:
    message = command.refused("masks", *folders, "--values=classes")
    assert "a.png has 5, 9, 255; give --categories=NAME" in message
    message = command.refused("masks", *folders, "--values=classes", "--categories=a,b,c,d,cat")
    assert "values that have no name (2): " in message
    assert "a.png: 9, 255" in message
    arguments = ("--values=classes", "--categories=a,b,c,d,cat", "--ignore=5")
    assert "--ignore=5 is also the category 'cat'" in command.refused("masks", *folders, *arguments)


def test_photograph_among_the_masks_is_refused(folders: tuple[Path, Path], command: Command) -> None:
    for name in ("images/c.png", "masks/c.png"):
        photograph(folders[0].parent / name, 200, 300)
    message = command.refused("masks", *folders, "--values=instances")
    assert "masks with too many regions (1): " in message
    assert "is it a photograph" in message


def test_instances_have_one_category(folders: tuple[Path, Path], command: Command) -> None:
    message = command.refused("masks", *folders, "--values=instances", "--categories=cat,dog")
    assert "did you mean classes?" in message


def test_files_mark_one_instance_each(tmp_path: Path, command: Command) -> None:
    photograph(tmp_path / "images" / "a.png")
    photograph(tmp_path / "images" / "b.png")
    folders = tmp_path / "images", tmp_path / "masks"
    save(tmp_path / "masks" / "a" / "0.png", BLOBS * 0)
    save(tmp_path / "masks" / "a" / "1.png", BLOBS)
    save(tmp_path / "masks" / "b" / "0.png", BLOBS == 5)
    message = command.refused("masks", *folders, "--values=files")
    assert "0.png has 0 values except 0" in command.refused("masks", *folders, "--values=files")
    (tmp_path / "masks" / "a" / "0.png").unlink()
    message = command.refused("masks", *folders, "--values=files")
    assert "1.png has 3 values except 0; with --values=files, each file marks one instance" in message
    (tmp_path / "masks" / "a" / "1.png").unlink()
    assert "images without a mask in" in command.refused("masks", *folders, "--values=files")
    assert "which --values=files does not have" in command.refused("masks", *folders, "--values=files", "--ignore=255")


@pytest.mark.medium
def test_nuclei_are_reproduced_exactly(shared_data: object, tmp_path: Path, command: Command) -> None:
    """Label masks drawn from a real COCO JSON are converted back to the same masks."""
    source = shared_data("nuclei")  # type: ignore[operator]
    truth = COCO(str(source / "annotations.json"))
    expected = {}
    for image in truth.dataset["images"]:
        values = np.zeros((image["height"], image["width"]), np.uint16)
        for i, annotation in enumerate(truth.loadAnns(truth.getAnnIds(image["id"])), 1):
            values[truth.annToMask(annotation) > 0] = i
        expected[image["file_name"]] = values
        save(tmp_path / "masks" / Path(image["file_name"]).with_suffix(".png").name, values)
    command.run("masks", source / "images", tmp_path / "masks", "--values=instances", "--categories=nucleus")
    content = command.content(source / "images")
    names = {image["id"]: image["file_name"] for image in content["images"]}
    assert set(names.values()) == expected.keys()
    actual = {name: np.zeros_like(values) for name, values in expected.items()}
    for annotation in content["annotations"]:
        values = actual[names[annotation["image_id"]]]
        values[pixels(annotation)] = values.max() + 1
    for name, values in expected.items():
        np.testing.assert_array_equal(actual[name], values)
    assert len(content["annotations"]) == len(truth.dataset["annotations"]) == 1751
