"""Conversion of PASCAL VOC, and of similar files of labeling tools."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from support.convert_folders import Command, photograph, pixels, save

from mrcnn_jax.tools.convert import voc, voc_xml
from mrcnn_jax.tools.convert.files import ConversionError

HEIGHT, WIDTH = 40, 60


def xml_object(name: str, *box: object, difficult: int = 0, extra: str = "") -> str:
    sides = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=False))
    return f"<object><name>{name}</name><difficult>{difficult}</difficult>{extra}<bndbox>{sides}</bndbox></object>"


def xml(*objects: str, size: tuple[int, int] | None = (HEIGHT, WIDTH), file_name: str = "x.jpg") -> str:
    size_element = f"<size><width>{size[1]}</width><height>{size[0]}</height><depth>3</depth></size>" if size else ""
    return f"<annotation><filename>{file_name}</filename>{size_element}{''.join(objects)}</annotation>"


def add(root: Path, stem: str, content: str) -> None:
    photograph(root / "JPEGImages" / f"{stem}.jpg", HEIGHT, WIDTH)
    (root / "Annotations").mkdir(exist_ok=True)
    (root / "Annotations" / f"{stem}.xml").write_text(content, encoding="utf-8")


def add_masks(root: Path, stem: str, instances: np.ndarray, classes: np.ndarray | None) -> None:
    palette = np.random.default_rng(0).integers(0, 256, 768).tolist()
    for folder, values in (("SegmentationObject", instances), ("SegmentationClass", classes)):
        if values is not None:
            image = Image.fromarray(values.astype(np.uint8), "L")
            image.putpalette(palette)
            save(root / folder / f"{stem}.png", image)


def add_list(root: Path, kind: str, name: str, *stems: str) -> None:
    (root / "ImageSets" / kind).mkdir(parents=True, exist_ok=True)
    (root / "ImageSets" / kind / f"{name}.txt").write_text("\n".join(stems) + "\n")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three images; objects 1 and 2 of the first have masks, and the last image has no masks."""
    root = tmp_path / "VOC2012"
    part = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
    add(
        root,
        "2007_000001",
        xml(
            xml_object("person", 5, 3, 14, 12, extra=part),
            xml_object("dog", 21, 11, 40, 30),
            xml_object("dog", 45, 1, 60, 8, difficult=1),
            xml_object("cat", 1, 31, 4, 34),
        ),
    )
    add(root, "2007_000002", xml(xml_object("dog", 1, 1, WIDTH, HEIGHT)))
    add(root, "2007_000003", xml())
    instances, classes = np.zeros((2, HEIGHT, WIDTH), int)
    instances[10:30, 20:40], classes[10:30, 20:40] = 1, 12  # not in the order of the objects
    instances[2:12, 4:14], classes[2:12, 4:14] = 2, 15
    instances[2:12, 4] = classes[2:12, 4] = 255
    add_masks(root, "2007_000001", instances, classes)
    whole = np.ones((HEIGHT, WIDTH), int)
    add_masks(root, "2007_000002", whole, whole * 12)
    add_list(root, "Segmentation", "train", "2007_000001")
    add_list(root, "Segmentation", "val", "2007_000002")
    add_list(root, "Main", "train", "2007_000001", "2007_000003")
    add_list(root, "Main", "dog_train", "2007_000001 1")
    return root


def test_boxes(root: Path, command: Command) -> None:
    printed = command.run("voc", root, "--boxes")
    content = command.content(root / "JPEGImages")
    assert [image["file_name"] for image in content["images"]] == [f"2007_00000{i}.jpg" for i in (1, 2, 3)]
    assert [category["name"] for category in content["categories"]] == list(voc.NAMES)
    assert [category["id"] for category in content["categories"]] == list(range(1, 21))
    found = [(a["category_id"], a["bbox"], a["iscrowd"]) for a in content["annotations"]]
    assert found == [
        (15, [4, 2, 10, 10], 0),
        (12, [20, 10, 20, 20], 0),
        (12, [44, 0, 16, 8], 1),
        (8, [0, 30, 4, 4], 0),
        (12, [0, 0, WIDTH, HEIGHT], 0),
    ]
    assert not any("segmentation" in annotation for annotation in content["annotations"])
    assert "--config.model.mask=None" in printed


def test_masks_are_matched_to_boxes_of_their_class(root: Path, command: Command) -> None:
    printed = command.run("voc", root)
    content = command.content(root / "JPEGImages")
    assert [image["file_name"] for image in content["images"]] == ["2007_000001.jpg", "2007_000002.jpg"]
    dog, person, crowd = [a for a in content["annotations"] if a["image_id"] == 1]
    assert [a["category_id"] for a in (dog, person, crowd)] == [12, 15, 12]
    assert [a["iscrowd"] for a in (dog, person, crowd)] == [0, 0, 1]
    assert dog["bbox"] == [20, 10, 20, 20]
    assert person["bbox"] == [5, 2, 9, 10]  # of the mask without its border
    rectangle = np.zeros((HEIGHT, WIDTH), bool)
    rectangle[:8, 44:] = True
    np.testing.assert_array_equal(pixels(crowd), rectangle)
    assert "box without an instance in SegmentationObject (1): 2007_000001.xml object 4" in printed
    assert "images without masks are left out (1); --boxes converts all images" in printed
    assert "model.mask" not in printed


def test_splits(root: Path, command: Command) -> None:
    for arguments, names in (
        (["--split=val"], ["2007_000002.jpg"]),
        (["--split=train"], ["2007_000001.jpg"]),
        (["--split=train", "--boxes"], ["2007_000001.jpg", "2007_000003.jpg"]),
    ):
        command.run("voc", root, *arguments)
        assert [image["file_name"] for image in command.content(root / "JPEGImages")["images"]] == names
        command.output.unlink()
    assert "there are train, val" in command.refused("voc", root, "--split=test")
    add_list(root, "Main", "odd", "2007_000001", "2009_1")
    assert "without an XML file (1): 2009_1" in command.refused("voc", root, "--split=odd", "--boxes")
    add_list(root, "Segmentation", "odd", "2007_000003")
    message = command.refused("voc", root, "--split=odd")
    assert "images without a mask in" in message
    assert "2007_000003.png; add it, or give --boxes" in message


def test_difficult_object_with_a_mask_becomes_a_crowd(root: Path, command: Command) -> None:
    path = root / "Annotations" / "2007_000002.xml"
    path.write_text(xml(xml_object("dog", 1, 1, WIDTH, HEIGHT, difficult=1)))
    command.run("voc", root)
    (last,) = [a for a in command.content(root / "JPEGImages")["annotations"] if a["image_id"] == 2]
    assert (last["iscrowd"], last["area"]) == (1, WIDTH * HEIGHT)


def test_mostly_occluded_instance_is_matched_by_its_class(root: Path, command: Command) -> None:
    """The visible part of an instance may be far smaller than its box."""
    objects = xml_object("cat", 1, 1, WIDTH, HEIGHT), xml_object("dog", 1, 1, WIDTH, HEIGHT, difficult=1)
    (root / "Annotations" / "2007_000002.xml").write_text(xml(*objects))
    fragment = np.zeros((HEIGHT, WIDTH), int)
    fragment[3:6, 3:6] = 1
    add_masks(root, "2007_000002", fragment, fragment * 12)
    printed = command.run("voc", root)
    (last,) = [a for a in command.content(root / "JPEGImages")["annotations"] if a["image_id"] == 2]
    assert (last["category_id"], last["iscrowd"], last["area"]) == (12, 1, 9)
    assert "2007_000002.xml object 1" in printed


def test_segmentation_class_determines_the_class_without_a_box(root: Path, command: Command) -> None:
    (root / "Annotations" / "2007_000002.xml").unlink()
    command.run("voc", root)
    (last,) = [a for a in command.content(root / "JPEGImages")["annotations"] if a["image_id"] == 2]
    assert (last["category_id"], last["iscrowd"]) == (12, 0)


def test_contradictory_classes_are_refused(tmp_path: Path, command: Command) -> None:
    """VOC's category names, but other values in SegmentationClass."""
    root = tmp_path / "mine"
    instances = np.zeros((HEIGHT, WIDTH), int)
    instances[5:15, 5:15] = 1
    add(root, "a", xml(xml_object("person", 6, 6, 15, 15)))
    add_masks(root, "a", instances, instances)
    message = command.refused("voc", root)
    assert "a.png value 1 is 'aeroplane', its box 'person'; if SegmentationClass has other values than VOC" in message
    (root / "SegmentationClass" / "a.png").unlink()
    (root / "SegmentationClass").rmdir()
    command.run("voc", root)
    assert [a["category_id"] for a in command.content(root / "JPEGImages")["annotations"]] == [15]


def test_boxes_determine_the_class_of_other_categories(tmp_path: Path, command: Command) -> None:
    root = tmp_path / "mine"
    instances = np.zeros((HEIGHT, WIDTH), int)
    instances[5:15, 5:15], instances[20:30, 20:50], instances[35:, :3] = 1, 2, 3
    add(
        root,
        "a",
        xml(xml_object("bolt", 6, 6, 15, 15), xml_object("nut", 21, 21, 45, 30), xml_object("nut", 1, 1, 3, 3)),
    )
    add_masks(root, "a", instances, instances)
    printed = command.run("voc", root)
    content = command.content(root / "JPEGImages")
    assert content["categories"] == [{"id": 1, "name": "bolt"}, {"id": 2, "name": "nut"}]
    assert [(a["category_id"], a["area"]) for a in content["annotations"]] == [(1, 100), (2, 300)]
    assert "left out, instance without class and box (1): a.png value 3" in printed
    assert "left out, box without an instance in SegmentationObject (1): a.xml object 3" in printed


def test_files_of_labeling_tools(tmp_path: Path, command: Command) -> None:
    """XML files among the images, Unicode names, missing or zero sizes, other image names, fractions."""
    root = tmp_path / "labeled"
    photograph(root / "a.jpg", HEIGHT, WIDTH)
    photograph(root / "b 1.png", HEIGHT, WIDTH)
    (root / "a.xml").write_text(xml(xml_object("Möwe 鳥", "1.5", "2.25", "11.5", "12.25"), size=None), encoding="utf-8")
    windows = xml(xml_object("boat", 1, 1, 10, 10), size=(0, 0), file_name="C:\\pictures\\b 1.png")
    (root / "other.xml").write_text(windows.replace("<difficult>0</difficult>", ""))
    command.run("voc", root)
    content = command.content(root)
    assert [image["file_name"] for image in content["images"]] == ["a.jpg", "b 1.png"]
    assert content["categories"] == [{"id": 1, "name": "Möwe 鳥"}, {"id": 2, "name": "boat"}]
    assert [a["bbox"] for a in content["annotations"]] == [[0.5, 1.25, 11, 11], [0, 0, 10, 10]]


def test_zero_based_boxes(tmp_path: Path, command: Command) -> None:
    add(tmp_path / "cvat", "a", xml(xml_object("boat", "0.0", "2.5", "10.25", str(HEIGHT))))
    printed = command.run("voc", tmp_path / "cvat")
    assert (
        "boxes begin before pixel 1, unlike VOC's: give --zero-based if they count from 0 (1): a.xml object 1"
        in printed
    )
    assert command.content(tmp_path / "cvat" / "JPEGImages")["annotations"][0]["bbox"] == [0, 1.5, 10.25, 38.5]
    command.output.unlink()
    assert "zero-based" not in command.run("voc", tmp_path / "cvat", "--zero-based")
    assert command.content(tmp_path / "cvat" / "JPEGImages")["annotations"][0]["bbox"] == [0, 2.5, 10.25, 37.5]


def test_given_category_ids(root: Path, command: Command, tmp_path: Path) -> None:
    names = tmp_path / "names.json"
    names.write_text('{"7": "dog", "300": "person", "4": "cat"}')
    command.run("voc", root, "--boxes", "--categories", names)
    content = command.content(root / "JPEGImages")
    assert [category["id"] for category in content["categories"]] == [4, 7, 300]
    assert [a["category_id"] for a in content["annotations"]] == [300, 7, 7, 4, 7]
    command.output.unlink()
    message = command.refused("voc", root, "--categories=dog,cat", "--boxes")
    assert "names that are not categories (1): " in message
    assert "2007_000001.xml: person; add them" in message


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((9, 9, 5, 12), "left out, box without area (1): 2007_000003.xml object 1"),
        ((70, 9, 80, 12), "left out, box outside the image (1): 2007_000003.xml object 1"),
        (("nan", 9, 80, 12), "left out, no box of four numbers (1): 2007_000003.xml object 1"),
        ((1, 9, "1e999", 12), "left out, no box of four numbers (1): 2007_000003.xml object 1"),
        ((1, 9, "", 12), "left out, no box of four numbers (1): 2007_000003.xml object 1"),
        ((1, 9), "left out, no box of four numbers (1): 2007_000003.xml object 1"),
        ((55, 9, 64, 12), "clipped, box extends beyond the image by more than a pixel (1): 2007_000003.xml object 1"),
    ],
)
def test_invalid_boxes(box: tuple[object, ...], message: str, root: Path, command: Command) -> None:
    (root / "Annotations" / "2007_000003.xml").write_text(xml(xml_object("dog", *box)))
    assert message in command.run("voc", root, "--boxes")
    last = [a for a in command.content(root / "JPEGImages")["annotations"] if a["image_id"] == 3]
    assert [a["bbox"] for a in last] == ([[54, 8, 6, 4]] if message.startswith("clipped") else [])


ENTITY_BOMB = "<!DOCTYPE a [<!ENTITY a 'ha'><!ENTITY b '&a;&a;&a;&a;&a;&a;&a;&a;'>]><annotation>&b;</annotation>"
EXTERNAL_ENTITY = (
    "<!DOCTYPE a [<!ENTITY x SYSTEM 'file:///etc/hostname'>]><annotation><filename>&x;</filename></annotation>"
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "XML files that cannot be read"),
        ("<annotation>", "XML files that cannot be read"),
        ("<?xml version='1.0' encoding='klingon'?><annotation/>", "XML files that cannot be read"),
        ("<annotation>&nothing;</annotation>", "XML files that cannot be read"),
        ("<svg/>", "files that are no VOC annotations (1): "),
        ("<annotation><object/></annotation>", "objects without a name (1): "),
        (ENTITY_BOMB, "XML files with a document type"),
        (EXTERNAL_ENTITY, "XML files with a document type"),
        ("<!DOCTYPE annotation SYSTEM 'http://localhost/a.dtd'><annotation/>", "XML files with a document type"),
        (xml(size=(WIDTH, HEIGHT)), f"says {WIDTH}x{HEIGHT}, the image {HEIGHT}x{WIDTH}; their boxes may be"),
    ],
)
def test_refused_files(content: str, message: str, root: Path, command: Command) -> None:
    (root / "Annotations" / "2007_000003.xml").write_text(content)
    printed = command.refused("voc", root, "--boxes")
    assert message in printed
    assert "2007_000003.xml" in printed


def test_missing_images_and_folders_are_refused(root: Path, command: Command) -> None:
    (root / "JPEGImages" / "2007_000002.jpg").unlink()
    message = command.refused("voc", root, "--boxes")
    assert "annotations without an image in" in message
    assert "2007_000002.xml, and there is no 'x.jpg'; add it, or give --images" in message
    assert f"did you mean {root}?" in command.refused("voc", root.parent)
    assert "no .xml files; is it the folder with" in command.refused("voc", root / "JPEGImages")
    assert "no folder" in command.refused("voc", root / "nowhere")


def test_images_elsewhere(root: Path, command: Command, tmp_path: Path) -> None:
    (root / "JPEGImages").rename(tmp_path / "pictures")
    command.run("voc", root, "--boxes", "--images", tmp_path / "pictures")
    assert len(command.content(tmp_path / "pictures")["images"]) == 3


def test_file_name_cannot_leave_the_folder(tmp_path: Path, command: Command) -> None:
    add(tmp_path / "set", "a", xml(xml_object("boat", 1, 1, 5, 5), file_name="../../secret.jpg"))
    photograph(tmp_path / "secret.jpg", HEIGHT, WIDTH)
    (tmp_path / "set" / "JPEGImages" / "a.jpg").rename(tmp_path / "set" / "JPEGImages" / "b.jpg")
    assert "annotations without an image" in command.refused("voc", tmp_path / "set")


VALID = xml(xml_object("dog", 1, 2, 30, 40), xml_object("cat", "3.5", 4, 50, "6", difficult=1)).encode()
FRAGMENTS = [
    b"<",
    b">",
    b"&",
    b"</object>",
    b"<bndbox>",
    b"nan",
    b"-1e308",
    b"\xff",
    b"\x00",
    b"<!DOCTYPE x>",
    b"]]>",
    b"",
]


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, len(VALID)), st.integers(0, 30), st.sampled_from(FRAGMENTS)), max_size=4))
def test_damaged_xml_is_read_or_refused(tmp_path: Path, damage: list[tuple[int, int, bytes]]) -> None:
    content = VALID
    for start, length, piece in damage:
        content = content[:start] + piece + content[start + length :]
    path = tmp_path / "a.xml"
    path.write_bytes(content)
    record = _read_or_none(path)
    if record is not None:
        assert all(obj.name and (obj.box is None or np.isfinite(obj.box).all()) for obj in record.objects)
        assert record.size is None or min(record.size) >= 1


def _read_or_none(path: Path) -> voc_xml.VOCAnnotation | None:
    """Return None for a file that is refused with ConversionError."""
    try:
        return voc_xml.read(path)
    except ConversionError:
        return None
