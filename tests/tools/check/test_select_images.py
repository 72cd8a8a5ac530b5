"""Selection of the images that the page shows."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from mrcnn_jax.tools.check import sources
from mrcnn_jax.tools.check.select_images import ImageChoice, select_images
from mrcnn_jax.tools.check.survey import Survey, survey


def survey_folder(folder: Any) -> Survey:
    folder.save()
    (found,) = survey(sources.find_files(folder.root).files, lambda results, total: results)
    return found


def grouped(choices: list[ImageChoice]) -> dict[str, list[ImageChoice]]:
    groups: dict[str, list[ImageChoice]] = {}
    for choice in choices:
        groups.setdefault(choice.group, []).append(choice)
    return groups


def copies(folder: Any, count: int) -> None:
    """Add copies of the first image under other names."""
    first = folder.content["images"][0]
    for i in range(count):
        name = f"copy{i}.png"
        (folder.root / "images" / name).write_bytes((folder.root / "images" / "0.png").read_bytes())
        folder.content["images"].append({**first, "id": 1000 + i, "file_name": name})


def test_selection_is_deterministic(coco_folder: Any) -> None:
    copies(coco_folder, 40)
    found = survey_folder(coco_folder)
    assert select_images(found) == select_images(found)
    whole = [choice.image for choice in select_images(found) if choice.group != "Smallest objects"]
    assert len(set(whole)) == len(whole)


def test_number_of_images(coco_folder: Any) -> None:
    copies(coco_folder, 200)
    for i in range(200):
        for j in range(i % 7):
            coco_folder.add(1000 + i, [j, 1, 5, 5], id=5000 + 10 * i + j, category_id=3 if i % 2 else 20)
            coco_folder.add(1000 + i, [j, 1, 5, 0], id=50000 + 10 * i + j)
    found = survey_folder(coco_folder)
    sizes = {group: len(choices) for group, choices in grouped(select_images(found)).items()}
    assert sizes.pop("One of each class") <= 2
    assert sizes == {
        "With findings": 12, "Most crowded": 4, "Smallest objects": 6, "Without instances": 2, "At random": 8
    }  # fmt: skip
    assert len(select_images(found, 1 / 4)) < len(select_images(found)) / 3


def test_one_image_of_each_finding_first(coco_folder: Any) -> None:
    copies(coco_folder, 30)
    for i in range(30):
        coco_folder.add(1000 + i, [1, 1, 5, 0])
    coco_folder.add(94, [1, 1, 5, 5], segmentation=[[1, 1, 6, 6]])
    (coco_folder.root / "images" / "3.png").write_bytes(b"")
    found = survey_folder(coco_folder)
    first = [
        found.content.images[choice.image].id for choice in select_images(found) if choice.group == "With findings"
    ][:3]
    assert set(first) == {97, 94, 1000}


def test_window_around_a_small_object(coco_folder: Any) -> None:
    image = np.zeros((800, 600, 3), np.uint8)
    cv2.imwrite(str(coco_folder.root / "images" / "large.png"), image)
    coco_folder.content["images"] = [{"id": 1, "file_name": "large.png", "height": 800, "width": 600}]
    coco_folder.content["annotations"].clear()
    coco_folder.add(1, [590, 400, 4, 2])
    coco_folder.add(1, [100, 100, 90, 90])
    coco_folder.add(1, [1, 1, 1, 1], iscrowd=1)
    (small,) = grouped(select_images(survey_folder(coco_folder)))["Smallest objects"]
    assert small.window == (552, 377, 600, 425)  # 48 pixels, moved into the image
    assert small.note == "boat, 8 square pixels"


def test_no_small_objects(coco_folder: Any) -> None:
    for annotation in coco_folder.content["annotations"]:
        annotation["area"] = 96**2
    assert "Smallest objects" not in grouped(select_images(survey_folder(coco_folder)))


def test_rarest_and_most_frequent_of_many_classes(coco_folder: Any) -> None:
    coco_folder.content["annotations"].clear()
    coco_folder.content["categories"] = [{"id": k, "name": f"class {k}"} for k in range(1, 61)]
    copies(coco_folder, 100)
    for k in range(1, 61):  # class k has k instances, one largest
        for i in range(k):
            coco_folder.add(1000 + k, [1, 1, 5 + i / 10, 5], category_id=k)
    shown = grouped(select_images(survey_folder(coco_folder)))["One of each class"]
    assert len(shown) == 24
    names = {choice.note for choice in shown}
    assert {f"class {k}" for k in range(1, 10)} <= names
    assert {f"class {k}" for k in range(50, 55)} <= names  # those after them are the most crowded images


def test_middle_of_a_long_image(coco_folder: Any) -> None:
    cv2.imwrite(str(coco_folder.root / "images" / "long.png"), np.zeros((30, 2000, 3), np.uint8))
    coco_folder.content["images"] = [{"id": 1, "file_name": "long.png", "height": 30, "width": 2000}]
    coco_folder.content["annotations"].clear()
    (shown,) = select_images(survey_folder(coco_folder))
    assert shown.window == (910, 0, 1090, 30)
