"""Tests of the validation of a whole COCO JSON: `inspect` and `read` refuse it with the same message."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mrcnn_jax.data import load_split
from mrcnn_jax.data.annotations import AnnotationFile, inspect, read
from mrcnn_jax.data.findings import Refusal, describe_refusals
from mrcnn_jax.data.segmentation_checks import MASK_OUTSIDE_BOX
from mrcnn_jax.errors import DataError, format_value

CATEGORIES = [{"id": 20, "name": "kite"}, {"id": 3, "name": "boat"}]
WHOLE = "write integers of at most 64 bits, without quotes or decimals"
FIELDS = "add the fields"
TILES = "cut them into tiles, or scale them down"


def change(entry: dict[str, Any], changes: dict[str, Any]) -> None:
    """Set fields; take away those that become `...`."""
    for name, value in changes.items():
        if value is ...:
            del entry[name]
        else:
            entry[name] = value


def inspected(coco_folder: Any, image_ids: tuple[int, ...] = (), folder: Path | None = None) -> AnnotationFile:
    """What is left of the folder's JSON, whose refusals carry the words that `read` raises."""
    path = coco_folder.save()
    found = inspect(path, image_ids, folder)
    if not found.refusals:
        assert read(path, image_ids, folder) == found
        return found
    with pytest.raises(DataError) as error:
        read(path, image_ids, folder)
    assert str(error.value).splitlines() == describe_refusals(path, found.refusals)
    return found


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        *[
            ({"id": value}, ("ids that are not integers", f"number 3 of 'images': id {text}", WHOLE))
            for value, text in (
                ("98", "98"),
                (98.0, "98.0"),
                (True, "true"),
                (None, "null"),
                ([98], "a list"),
                (float("nan"), "NaN"),
                (2**63, str(2**63)),
                (-(2**63) - 1, str(-(2**63) - 1)),
            )
        ],
        ({"id": 99}, ("duplicate image ids", "image 99", "give each entry a unique id", 99)),
        ({"id": ...}, ("entries of 'images' with missing fields", "number 3 of 'images': id", FIELDS)),
        ({"height": ...}, ("entries of 'images' with missing fields", "image 98: height", FIELDS, 98)),
        ({"file_name": ...}, ("images without file_name or coco_url", "image 98", "add file_name", 98)),
        ({"file_name": None}, ("images without file_name or coco_url", "image 98", "add file_name", 98)),
        *[
            (
                {"file_name": name},
                (
                    "file names that are not paths inside the image folder",
                    f"image 98 has {text}",
                    "write paths relative to the image folder, without '..'",
                    98,
                ),
            )
            for name, text in (
                ("/etc/passwd", "/etc/passwd"),
                ("../2.png", "../2.png"),
                ("a/../../2.png", "a/../../2.png"),
                ("..\\2.png", "..\\2.png"),
                ("..", ".."),
                ("", ""),
                ("a\0.png", r"'a\x00.png'"),
                (7, "7"),
                (["2.png"], "a list"),
            )
        ],
        (
            {"file_name": "\ud800.png"},
            (
                "file names that are not valid Unicode",
                r"image 98 has '\ud800.png'",
                "rename the files, and correct file_name",
                98,
            ),
        ),
        *[
            (
                {"height": height, "width": width},
                (
                    "image sizes (height x width) that are not positive integers",
                    f"image 98 is {text}",
                    "write height and width in pixels",
                    98,
                ),
            )
            for height, width, text in (
                (0, 64, "0x64"),
                (48, -64, "48x-64"),
                (48.0, 64, "48.0x64"),
                ("48", 64, "48x64"),
                (True, 64, "truex64"),
                (48, None, "48xnull"),
                (48, float("inf"), "48xInfinity"),
                ([48], {}, "a listxan object"),
            )
        ],
        *[
            (
                {"height": height, "width": width},
                ("images of more than 178956970 pixels", f"image 98 is {height}x{width}", TILES, 98),
            )
            for height, width in ((20_000, 20_000), (1, 10**12))
        ],
    ],
)
def test_image_that_cannot_be_used_is_refused(
    coco_folder: Any, changes: dict[str, Any], refusal: tuple[Any, ...]
) -> None:
    change(coco_folder.content["images"][2], changes)
    content = inspected(coco_folder)
    assert content.refusals[0] == Refusal(*refusal)
    assert [image.id for image in content.images] == [100, 99, 97, 96, 95, 94]
    known = any(type(image.get("id")) is int and image["id"] == 98 for image in coco_folder.content["images"])
    # Where the image is nameless nobody knows its annotations; where it is known, they are not mentioned.
    assert len(content.refusals) == (1 if known else 3)


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        *[
            ({"id": value}, ("ids that are not integers", f"number 5 of 'annotations': id {text}", WHOLE, 98))
            for value, text in (("5", "5"), (5.0, "5.0"), (False, "false"), (None, "null"))
        ],
        ({"image_id": "98"}, ("ids that are not integers", "annotation 5: image_id 98", WHOLE, None, 5)),
        ({"category_id": 3.0}, ("ids that are not integers", "annotation 5: category_id 3.0", WHOLE, 98, 5)),
        ({"id": 4}, ("duplicate annotation ids", "annotation 4", "give each entry a unique id", 98, 4)),
        (
            {"image_id": 7},
            (
                "annotations of images that the file does not have",
                "annotation 5 (image 7)",
                "add the images, or remove the annotations",
                7,
                5,
            ),
        ),
        *[
            (
                {field: ...},
                (
                    "entries of 'annotations' with missing fields",
                    f"annotation 5: {field}",
                    FIELDS,
                    None if field == "image_id" else 98,
                    5,
                ),
            )
            for field in ("image_id", "category_id", "bbox")
        ],
        (
            {"category_id": 7},
            (
                "unknown category ids",
                "annotation 5 (image 98) has category_id 7",
                "add the category to 'categories', or correct category_id",
                98,
                5,
            ),
        ),
        (
            {"segmentation": {"size": [64, 48], "counts": [3072]}},
            (
                "RLE whose size (height x width) differs from its image",
                "annotation 5 (image 98) has an RLE of 64x48, not 48x64",
                "encode the masks again, or correct height and width of the image",
                98,
                5,
            ),
        ),
    ],
)
def test_annotation_that_does_not_fit_is_refused(
    coco_folder: Any, changes: dict[str, Any], refusal: tuple[Any, ...]
) -> None:
    change(coco_folder.content["annotations"][4], changes)
    content = inspected(coco_folder)
    assert content.refusals == [Refusal(*refusal)]
    assert sum(len(image.annotations) for image in content.images) == 13
    assert len(content.images) == 7


@pytest.mark.parametrize("name", ["images", "annotations", "categories"])
@pytest.mark.parametrize("entry", [None, 7, "text", [1], [["id", 1]]])
def test_entries_that_are_no_objects_are_refused(coco_folder: Any, name: str, entry: Any) -> None:
    coco_folder.content = {**coco_folder.content, name: [*coco_folder.content[name], entry]}
    (refusal,) = inspected(coco_folder).refusals
    count = len(coco_folder.content[name])
    assert refusal.kind == f"entries of {name!r} that are not objects"
    assert refusal.item == f"number {count} of {name!r} ({format_value(entry)})"
    assert refusal.advice.startswith("write objects with id, ")


def test_duplicate_category_is_refused(coco_folder: Any) -> None:
    coco_folder.content["categories"] = [*CATEGORIES, {"id": 3, "name": "ship"}]
    (refusal,) = inspected(coco_folder).refusals
    assert refusal == Refusal("duplicate category ids", "category 3", "give each entry a unique id")


def test_of_a_category_that_is_refused_the_annotations_are_not_mentioned(coco_folder: Any) -> None:
    coco_folder.content["categories"] = [{"id": 20, "name": "kite"}, {"id": 3, "name": None}]
    content = inspected(coco_folder)
    assert [refusal.item for refusal in content.refusals] == ["category 3"]
    assert {a["category_id"] for image in content.images for a in image.annotations} == {20}


def test_all_refusals_are_reported_together(coco_folder: Any) -> None:
    coco_folder.content["images"][2]["height"] = 0
    coco_folder.content["annotations"][0]["category_id"] = 7
    coco_folder.content["annotations"][1]["image_id"] = 7
    coco_folder.add(97, [1, 1, 5, 5], category_id=8)
    path = coco_folder.save()
    with pytest.raises(DataError) as error:
        load_split(coco_folder.config().data, "train")
    assert str(error.value).splitlines() == [
        f"{path}: image sizes (height x width) that are not positive integers (1): image 98 is 0x64; write"
        " height and width in pixels",
        f"{path}: annotations of images that the file does not have (1): annotation 2 (image 7); add the images, or"
        " remove the annotations",
        f"{path}: unknown category ids (2): annotation 1 (image 100) has category_id 7, annotation 15 (image 97)"
        " has category_id 8; add the category to 'categories', or correct category_id",
    ]


def test_errors_of_unselected_images_are_ignored(coco_folder: Any) -> None:
    images, annotations = coco_folder.content["images"], coco_folder.content["annotations"]
    images[0]["height"] = 0
    images[1]["file_name"] = "/etc/passwd"
    images[2]["id"] = "98"
    images[3] = 7
    annotations[0]["category_id"] = 7
    annotations[2]["bbox"] = None
    annotations[4]["image_id"] = {}
    annotations[6] = []
    annotations[8]["id"] = 11
    content = inspected(coco_folder, (95, 94))
    assert [(image.id, len(image.annotations)) for image in content.images] == [(95, 2), (94, 2)]
    assert not content.problems
    annotations[10]["category_id"] = 7
    images[6]["width"] = None
    assert [refusal.image_id for refusal in inspected(coco_folder, (95, 94)).refusals] == [94, 95]


def test_lvis_names_its_files_by_their_address(coco_folder: Any) -> None:
    for image in coco_folder.content["images"]:
        image["coco_url"] = f"http://images.cocodataset.org/train2017/{image.pop('file_name')}"
    for annotation in coco_folder.content["annotations"]:
        del annotation["iscrowd"]
    flat = inspected(coco_folder, folder=coco_folder.root / "images")
    assert [image.file_name for image in flat.images] == [f"{i}.png" for i in range(7)]
    (coco_folder.root / "images").rename(coco_folder.root / "train2017")
    nested = inspected(coco_folder, folder=coco_folder.root)
    assert [image.file_name for image in nested.images] == [f"train2017/{i}.png" for i in range(7)]
    assert sum(len(image.annotations) for image in nested.images) == 14
    (coco_folder.root / "train2017").rename(coco_folder.root / "images")
    dataset = load_split(coco_folder.config().data, "train")
    assert dataset.image_path(2) == coco_folder.root / "images" / "2.png"


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("2.png", "2.png"),
        ("http://host/../2.png", "2.png"),
        ("http://host/a/..", None),
        ("", None),
        (7, None),
        ("http://host/\ud800", None),
    ],
)
def test_coco_url_cannot_name_a_file_outside_the_folder(coco_folder: Any, url: Any, name: str | None) -> None:
    image = coco_folder.content["images"][2]
    del image["file_name"]
    image["coco_url"] = url
    content = inspected(coco_folder, folder=coco_folder.root / "images")
    assert [i.file_name for i in content.images if i.id == 98] == ([name] if name else [])
    assert len(content.refusals) == (name is None)


def test_published_files_are_read_as_they_are(shared_data: Callable[[str], Path]) -> None:
    coco = shared_data("coco_by")
    for path in (coco / "annotations.json", coco / "person_keypoints.json", shared_data("nuclei") / "annotations.json"):
        content = read(path)
        assert content.images
        assert not content.problems
    lvis = read(shared_data("coco_eval_oracle") / "lvis" / "lvis_val_100.json")
    assert len(lvis.images) == 100
    # Eleven of its outlines lie nowhere near their boxes.
    assert {(problem.kind, problem.image_id) for problem in lvis.problems} == {
        (MASK_OUTSIDE_BOX, image_id) for image_id in (179898, 443426, 464824)
    }
    assert (len(lvis.problems), sum(len(image.annotations) for image in lvis.images)) == (11, 977)


def test_garbage_collection_is_restored(coco_folder: Any) -> None:
    import gc

    path = coco_folder.save()
    inspect(path)
    assert gc.isenabled()
    with pytest.raises(DataError):
        inspect(path.with_name("none.json"))
    assert gc.isenabled()
