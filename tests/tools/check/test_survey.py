"""The numbers of a data set, counted by hand."""

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
from mrcnn_jax.tools.check.survey import Survey, area_groups, by_frequency, facts, surplus, survey


def surveyed(folder: Any) -> Survey:
    folder.save()
    (found,) = survey(sources.find(folder.root).files, lambda results, total: results)
    return found


def test_counts(coco_folder: Any) -> None:
    coco_folder.content["categories"] = [*coco_folder.content["categories"], {"id": 4, "name": "dog"}]
    coco_folder.add(98, [0, 0, 9, 9], iscrowd=1, segmentation={"size": [48, 64], "counts": [0, 9, 3063]})
    coco_folder.content["images"].append({"id": 7, "file_name": "0.png", "height": 40, "width": 60})
    found = surveyed(coco_folder)
    said = dict(facts(found))
    assert said["images"] == "8, 1 without instances"
    assert said["instances"] == "14, 1 crowds beside them"
    assert said["classes"] == "3, 1 without instances"
    assert said["masks"] == "14 of polygons, 1 run-length encoded"
    assert said["keypoints"] == "none"
    assert said["instances per image"] == "median 2, most 2 (image 100)"
    assert said["width / height"] == "least 0.67, median 1.00, greatest 2.13"
    assert by_frequency(found) == [("boat", 3, 7, 7), ("kite", 20, 7, 7), ("dog", 4, 0, 0)]
    assert found.sizes.tolist()[-1] == [40, 60]
    assert found.status == "clean"


def test_areas_are_those_of_the_file_where_it_has_some(coco_folder: Any) -> None:
    coco_folder.content["annotations"].clear()
    for area in (32**2 - 1, 32**2, 96**2 - 1, 96**2):
        coco_folder.add(98, [1, 1, 5, 5], area=area)
    for area in (None, "large", 0, -4.0):  # of the box: 25
        coco_folder.add(98, [1, 1, 5, 5], area=area)
    del coco_folder.add(98, [1, 1, 5, 5])["area"]
    found = surveyed(coco_folder)
    assert found.annotated.areas.tolist()[4:] == [25] * (len(found.annotated.areas) - 4)
    small, medium, large = area_groups(found.annotated)
    assert (small, medium, large) == (1 + len(found.annotated.areas) - 4, 2, 1)


@pytest.mark.parametrize("packed", [False, True])
def test_an_area_that_is_missing_is_that_of_the_evaluation(coco_folder: Any, packed: bool) -> None:
    """The pixels of the mask, by pycocotools."""
    triangle = [1, 1, 21, 1, 1, 21]
    rle = coco_mask.frPyObjects([triangle], 48, 64)[0]
    mask = {"size": [48, 64], "counts": rle["counts"].decode()} if packed else [triangle]
    coco_folder.content["annotations"].clear()
    coco_folder.add(98, [1, 1, 20, 20], area=0, segmentation=mask)
    assert surveyed(coco_folder).annotated.areas.tolist() == [coco_mask.area(rle)]
    (annotation,) = load_ground_truth(coco_folder.root / "coco.json").anns.values()
    assert annotation["area"] == coco_mask.area(rle)


def test_keypoints(coco_folder: Any) -> None:
    coco_folder.add_keypoints()
    coco_folder.content["annotations"][1]["keypoints"] = [0] * 9
    assert dict(facts(surveyed(coco_folder)))["keypoints"] == (
        "3 keypoints; 6 instances with labeled ones, 12 labeled in all"
    )


def test_more_instances_than_slots(coco_folder: Any) -> None:
    for _ in range(103):
        coco_folder.add(98, [1, 1, 5, 5])
    found = surveyed(coco_folder)
    assert surplus(found) == (1, 5)
    assert dict(facts(found))["instances per image"] == (
        "median 2, most 105 (image 98); 1 images have more than data.max_instances=100, the 5 smallest not trained on"
    )


def test_an_image_of_several_files_is_read_once(coco_folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    coco_folder.save()
    (coco_folder.root / "images" / "3.png").write_bytes(b"")
    (coco_folder.root / "other.json").write_bytes((coco_folder.root / "coco.json").read_bytes())
    examine = image_files.check_images
    names: list[str] = []

    def recorded(folder: Path, images: Iterable[Any]) -> Any:
        names.extend(image.file_name for image in images)
        return examine(folder, images)

    monkeypatch.setattr(image_files, "check_images", recorded)
    files = survey(sources.find(coco_folder.root).files, lambda results, total: results)
    assert sorted(names) == [f"{i}.png" for i in range(7)]
    assert [[refusal.image_id for refusal in found.refusals] for found in files] == [[97], [97]]


def test_nothing_but_an_image(coco_folder: Any) -> None:
    coco_folder.content.update(annotations=[], categories=[], images=coco_folder.content["images"][:1])
    found = surveyed(coco_folder)
    assert by_frequency(found) == []
    np.testing.assert_array_equal(found.instances, [0])
    assert dict(facts(found))["areas"].endswith("0 = 0%")
