"""Tests of warnings about valid files: box formats and duplicates."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mrcnn_jax.data import load_split
from mrcnn_jax.data.annotations import inspect
from mrcnn_jax.data.plausibility import _mask_extent

ADVICE = "write bbox as x, y, width, height in pixels"


def warnings(folder: Any) -> list[str]:
    return inspect(folder.save()).warnings


def size_of(folder: Any, annotation: dict[str, Any]) -> tuple[int, int]:
    image = next(image for image in folder.content["images"] if image["id"] == annotation["image_id"])
    return image["height"], image["width"]


# How tools write a box of corner (x, y) and size (w, h) in an image of W x H.
CONVENTIONS = {
    "x0, y0, x1, y1": lambda x, y, w, h, W, H: [x, y, x + w, y + h],
    "center x, center y, width, height": lambda x, y, w, h, W, H: [x + w / 2, y + h / 2, w, h],
    "y0, x0, y1, x1": lambda x, y, w, h, W, H: [y, x, y + h, x + w],
    "y, x, height, width": lambda x, y, w, h, W, H: [y, x, h, w],
    "x, y, width, height as fractions of the image": lambda x, y, w, h, W, H: [x / W, y / H, w / W, h / H],
    "x0, y0, x1, y1 as fractions of the image": lambda x, y, w, h, W, H: [x / W, y / H, (x + w) / W, (y + h) / H],
    "center x, center y, width, height as fractions of the image": lambda x, y, w, h, W, H: [
        *((x + w / 2) / W, (y + h / 2) / H, w / W, h / H)
    ],
}


def spread(folder: Any, share: float = 1.0, written: Callable[..., list[float]] | None = None) -> None:
    """Boxes of many sizes, of which a share is `written` in another convention, with the right polygons."""
    folder.content["annotations"] = []
    for i in range(40):
        box = [20 + i % 5, 3 + i % 12, 12 + i % 7, 25 + i % 4]
        annotation = folder.add(94, box)
        if written is not None and i < share * 40:
            height, width = size_of(folder, annotation)
            annotation["bbox"] = written(*box, width, height)


@pytest.mark.parametrize("name", CONVENTIONS)
def test_boxes_in_another_format_are_recognized(coco_folder: Any, name: str) -> None:
    spread(coco_folder, 1.0, CONVENTIONS[name])
    (line,) = warnings(coco_folder)
    assert "boxes (" in line
    assert line.endswith(f" do not match the extent of their masks; they look like {name}: {ADVICE}")


@pytest.mark.parametrize(("share", "said"), [(0.0, ""), (0.025, ""), (0.5, "20 of 40 boxes (50%)")])
def test_few_wrong_boxes_give_no_warning(coco_folder: Any, share: float, said: str) -> None:
    spread(coco_folder, share, CONVENTIONS["center x, center y, width, height"])
    lines = warnings(coco_folder)
    assert [line.split(" do not")[0] for line in lines] == ([said] if said else [])


def test_invalid_boxes_give_no_format_warning(coco_folder: Any) -> None:
    """Without area, no numbers, of a crowd, with a mask that cannot be read."""
    for fields in (
        {"bbox": [40, 30, 0, 5]},
        {"bbox": [40, 30, float("nan"), 5]},
        {"bbox": "40 30 5 5"},
        {"bbox": [40, 30, 5, 5], "iscrowd": 1},
        {"bbox": [40, 30, 5, 5], "segmentation": {"size": [40, 60], "counts": [7]}},
        {"bbox": [40, 30, 5, 5], "segmentation": [[1, 2, None, 4, 5, 6]]},
    ):
        coco_folder.add(100, [1, 1, 5, 5]).update(fields)
    assert warnings(coco_folder) == []


def test_boxes_in_an_unknown_format(coco_folder: Any) -> None:
    spread(coco_folder, 1.0, lambda x, y, w, h, width, height: [1, 1, 3, 3])
    assert warnings(coco_folder) == [
        f"40 of 40 boxes (100%) do not match the extent of their masks; their format is not recognized: {ADVICE}"
    ]


def test_boxes_without_masks_are_compared_with_the_image_size(coco_folder: Any) -> None:
    for name, said in (
        ("x0, y0, x1, y1", "40 of 40 boxes (100%) reach beyond their images; they look like x0, y0, x1, y1"),
        ("center x, center y, width, height as fractions of the image", "no box has a number above 1; they look like"),
    ):
        spread(coco_folder, 1.0, lambda *box, name=name: CONVENTIONS[name](*[3 * n for n in box[:4]], 192, 192))
        if name == "x0, y0, x1, y1":
            spread(coco_folder, 1.0, lambda x, y, w, h, width, height: [40, 30, 50, 60])
        for annotation in coco_folder.content["annotations"]:
            annotation["segmentation"] = []
            annotation["keypoints"] = [annotation["id"]]  # else they are the same
        assert [line[: len(said)] for line in warnings(coco_folder)] == [said]


def test_boxes_and_masks_as_fractions(coco_folder: Any) -> None:
    spread(coco_folder)
    for annotation in coco_folder.content["annotations"]:
        annotation["bbox"] = [number / 64 for number in annotation["bbox"]]
        annotation["segmentation"] = [[number / 64 for number in annotation["segmentation"][0]]]
    (line,) = warnings(coco_folder)
    assert line == f"no box has a number above 1; they look like fractions of the image: {ADVICE}"


def test_valid_data_gives_no_warning(coco_folder: Any, shared_data: Callable[[str], Any]) -> None:
    assert warnings(coco_folder) == []
    coco = shared_data("coco_by")
    for path in (coco / "annotations.json", coco / "person_keypoints.json", shared_data("nuclei") / "annotations.json"):
        assert inspect(path).warnings == []


def test_the_extent_of_a_mask_is_that_of_its_pixels() -> None:
    rng = np.random.default_rng(0)
    for density in (0.002, 0.02, 0.9):
        for _ in range(20):
            mask = np.asfortranarray(rng.random((17, 23)) < density, np.uint8)
            packed = coco_mask.encode(mask)
            extent = _mask_extent({"size": [17, 23], "counts": packed["counts"].decode()})
            ys, xs = np.nonzero(mask)
            assert extent == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) if len(xs) else np.isnan(extent).all()
    assert _mask_extent([[3, 9, 5, 2, 4, 4], [1, 3, 2, 3, 2, 8], [0, 0]]) == (1, 2, 5, 9)
    assert _mask_extent({"size": [3, 2], "counts": [2, 2, 2]}) == (0, 0, 2, 3)  # a run that goes on in the next column
    for size, counts in ([[0, 5], [0, 0]], [[-3, -2], [2, 2, 2]], [[3, 2], []], [["3", 2], [6]], [[2**70, 1], [1]]):
        assert np.isnan(_mask_extent({"size": size, "counts": counts})).all()


def test_duplicates_are_reported(coco_folder: Any, caplog: pytest.LogCaptureFixture) -> None:
    content = coco_folder.content
    content["images"].append({**content["images"][2], "id": 7, "file_name": "./2.png"})
    content["categories"] = [*content["categories"], {"id": 30, "name": "Kite "}]
    content["annotations"].append({**content["annotations"][0], "id": 90, "area": 1})
    content["annotations"].append({**content["annotations"][0], "id": 91, "category_id": 20})  # another class
    content["annotations"].append({**content["annotations"][1], "id": 92, "segmentation": [[10, 2, 26, 2, 26, 27]]})
    said = [
        "categories with the same name (1): kite (ids 20, 30); merge them into one",
        "image files with several ids (1): 2.png (ids 98, 7); give each file one id",
        "duplicate annotations (1): 90 = 1 (image 100); remove one of each pair",
    ]
    config = coco_folder.config(max_instances=9)
    assert warnings(coco_folder) == said
    for _ in range(2):  # prepared, and read from the prepared records
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            load_split(config.data, "train")
        assert caplog.messages == [f"{coco_folder.root / 'coco.json'}: {line}" for line in said]
