"""Statistics of a dataset."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mrcnn_jax.data import image_files
from mrcnn_jax.evaluation.coco_ground_truth import load_ground_truth
from mrcnn_jax.tools.check import sources
from mrcnn_jax.tools.check.survey import Survey, area_groups, class_rows, summary_rows, survey


def survey_folder(folder: Any) -> Survey:
    folder.save()
    (found,) = survey(sources.find_files(folder.root).files, lambda results, total: results)
    return found


def test_counts(coco_folder: Any) -> None:
    coco_folder.content["categories"] = [*coco_folder.content["categories"], {"id": 4, "name": "dog"}]
    coco_folder.add(98, [0, 0, 9, 9], iscrowd=1, segmentation={"size": [48, 64], "counts": [0, 9, 3063]})
    coco_folder.content["images"].append({"id": 7, "file_name": "0.png", "height": 40, "width": 60})
    found = survey_folder(coco_folder)
    texts = dict(summary_rows(found))
    assert texts["images"] == "8, 1 without instances"
    assert texts["instances"] == "14, 1 more with iscrowd=1"
    assert texts["classes"] == "3, 1 without instances"
    assert texts["masks"] == "14 as polygons, 1 as RLE"
    assert texts["keypoints"] == "none"
    assert texts["instances per image"] == "median 2, most 2 (image 100)"
    assert texts["width / height"] == "least 0.67, median 1.00, greatest 2.13"
    assert class_rows(found) == [("boat", 3, 7, 7), ("kite", 20, 7, 7), ("dog", 4, 0, 0)]
    assert found.sizes.tolist()[-1] == [40, 60]
    assert found.status == "clean"


def test_areas_of_the_file_are_used(coco_folder: Any) -> None:
    coco_folder.content["annotations"].clear()
    for area in (32**2 - 1, 32**2, 96**2 - 1, 96**2):
        coco_folder.add(98, [1, 1, 5, 5], area=area)
    for area in (None, "large", 0, -4.0):  # of the box: 25
        coco_folder.add(98, [1, 1, 5, 5], area=area)
    del coco_folder.add(98, [1, 1, 5, 5])["area"]
    found = survey_folder(coco_folder)
    assert found.annotations.areas.tolist()[4:] == [25] * (len(found.annotations.areas) - 4)
    small, medium, large = area_groups(found.annotations)
    assert (small, medium, large) == (1 + len(found.annotations.areas) - 4, 2, 1)


@pytest.mark.parametrize("packed", [False, True])
def test_missing_area_is_that_of_the_mask(coco_folder: Any, packed: bool) -> None:
    """As in the evaluation: the pixels of the mask by pycocotools."""
    triangle = [1, 1, 21, 1, 1, 21]
    rle = coco_mask.frPyObjects([triangle], 48, 64)[0]
    mask = {"size": [48, 64], "counts": rle["counts"].decode()} if packed else [triangle]
    coco_folder.content["annotations"].clear()
    coco_folder.add(98, [1, 1, 20, 20], area=0, segmentation=mask)
    assert survey_folder(coco_folder).annotations.areas.tolist() == [coco_mask.area(rle)]
    (annotation,) = load_ground_truth(coco_folder.root / "coco.json").anns.values()
    assert annotation["area"] == coco_mask.area(rle)


def test_keypoints(coco_folder: Any) -> None:
    coco_folder.add_keypoints()
    coco_folder.content["annotations"][1]["keypoints"] = [0] * 9
    assert dict(summary_rows(survey_folder(coco_folder)))["keypoints"] == (
        "3 keypoints; 6 instances with labeled keypoints, 12 labeled in all"
    )


def test_more_instances_than_the_maximum(coco_folder: Any) -> None:
    for _ in range(103):
        coco_folder.add(98, [1, 1, 5, 5])
    found = survey_folder(coco_folder)
    assert dict(summary_rows(found))["instances per image"] == (
        "median 2, most 105 (image 98); 1 image has more than data.max_instances=100: training leaves out the 5"
        " smallest instances"
    )


def test_image_of_several_files_is_read_once(coco_folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    coco_folder.save()
    (coco_folder.root / "images" / "3.png").write_bytes(b"")
    (coco_folder.root / "other.json").write_bytes((coco_folder.root / "coco.json").read_bytes())
    examine = image_files.check_images
    names: list[str] = []

    def recorded(folder: Path, images: Iterable[Any]) -> Any:
        names.extend(image.file_name for image in images)
        return examine(folder, images)

    monkeypatch.setattr(image_files, "check_images", recorded)
    files = survey(sources.find_files(coco_folder.root).files, lambda results, total: results)
    assert sorted(names) == [f"{i}.png" for i in range(7)]
    assert [[refusal.image_id for refusal in found.refusals] for found in files] == [[97], [97]]


def test_image_without_annotations_and_categories(coco_folder: Any) -> None:
    coco_folder.content.update(annotations=[], categories=[], images=coco_folder.content["images"][:1])
    found = survey_folder(coco_folder)
    assert class_rows(found) == []
    np.testing.assert_array_equal(found.instances, [0])
    assert dict(summary_rows(found))["areas"].endswith("0 = 0%")
