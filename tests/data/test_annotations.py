"""Tests of invalid datasets: what is refused, and what is dropped and reported."""

from __future__ import annotations

import logging
from typing import Any

import cv2
import numpy as np
import pytest

from mrcnn_jax.config import SplitConfig
from mrcnn_jax.data import Problem, eval_batches, load_split, train_batches
from mrcnn_jax.data.annotation_checks import EMPTY_BOX, MISSING_SEGMENTATION
from mrcnn_jax.errors import DataError
from mrcnn_jax.structures import Batch


def shown(batch: Batch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices, sizes and images of the slots that hold one."""
    return batch.indices[batch.valid], batch.image_sizes[batch.valid], batch.images[batch.valid]


def test_missing_image_is_refused(coco_folder: Any) -> None:
    (coco_folder.root / "images" / "3.png").unlink()
    with pytest.raises(DataError, match=r"coco\.json.*not in .*images \(1\): 3\.png \(id 97\); add"):
        load_split(coco_folder.config().data, "train")


def test_all_images_missing_means_a_wrong_folder(coco_folder: Any) -> None:
    advice = r"this folder has none of the images: correct data\.root with data\.train\.images or data\.eval\.images"
    for images in ("nowhere", "."):
        config = coco_folder.config(train=SplitConfig("coco.json", images))
        with pytest.raises(DataError, match=rf"coco\.json: images that are not in .* \(7\): 0\.png .*; {advice}"):
            load_split(config.data, "train")


def test_image_that_goes_missing_after_preparation_is_refused(coco_folder: Any) -> None:
    load_split(coco_folder.config().data, "train")
    (coco_folder.root / "images" / "3.png").unlink()
    with pytest.raises(DataError, match=r"3\.png \(id 97\)"):
        load_split(coco_folder.config().data, "train")


def test_size_that_disagrees_with_the_json_is_refused(coco_folder: Any) -> None:
    coco_folder.content["images"][2]["width"] = 63
    with pytest.raises(DataError, match=r"coco\.json.*\(1\): 2\.png \(id 98\) is 48x64, not 48x63; correct"):
        load_split(coco_folder.config().data, "train")


def test_size_is_that_of_the_upright_image(coco_folder: Any) -> None:
    from PIL import Image

    upright = coco_folder.content["images"][0]  # 40 x 60
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    Image.new("RGB", (40, 60), (200, 0, 0)).save(coco_folder.root / "images" / "0.jpg", exif=exif)
    upright["file_name"] = "0.jpg"
    config = coco_folder.config()
    with eval_batches(load_split(config.data, "eval"), config) as batches:
        sizes = {int(i): tuple(size) for b in batches for i, size in zip(*shown(b)[:2], strict=True)}
    assert sizes[0] == (60, 90)


def test_unknown_category_is_refused(coco_folder: Any) -> None:
    annotation = coco_folder.add(98, [1, 1, 5, 5], category_id=7)
    message = rf"coco\.json: unknown category ids \(1\): annotation {annotation['id']} \(image 98\) has category_id 7;"
    with pytest.raises(DataError, match=message):
        load_split(coco_folder.config().data, "train")


def test_boxes_without_area_are_dropped_counted_and_named(coco_folder: Any, caplog: pytest.LogCaptureFixture) -> None:
    coco_folder.add(98, [1, 1, 5, 0], id=918)
    coco_folder.add(99, [1, 1, 0, 5], id=2206849)
    with caplog.at_level(logging.WARNING):
        dataset = load_split(coco_folder.config().data, "train")
    assert dataset.problems == (Problem(EMPTY_BOX, 2206849, 99), Problem(EMPTY_BOX, 918, 98))
    assert "bbox without area (annotation dropped) in 2 annotations: 2206849 (image 99), 918 (image 98)" in caplog.text
    assert [len(dataset.record(i)[1]) for i in range(len(dataset))] == [2] * 7


def test_polygons_with_fewer_than_three_points_are_dropped(coco_folder: Any, caplog: pytest.LogCaptureFixture) -> None:
    whole = [1, 1, 6, 1, 6, 6]
    coco_folder.add(98, [1, 1, 5, 5], id=500, segmentation=[[1, 1, 6, 6], whole])
    coco_folder.add(98, [1, 1, 5, 5], id=501, segmentation=[[1, 1, 6, 6]])
    with caplog.at_level(logging.WARNING):
        dataset = load_split(coco_folder.config().data, "train")
    assert "polygon with fewer than 3 points (dropped) in 2 annotations: 500 (image 98), 501 (image 98)" in caplog.text
    kept = {a["id"]: a["segmentation"] for a in dataset.record(2)[1]}
    assert kept[500] == [whole]
    assert kept[501] == []  # its box stays


def test_instance_without_segmentation_among_others_keeps_its_box(coco_folder: Any) -> None:
    coco_folder.add(98, [1, 1, 5, 5], id=500, segmentation=[])
    dataset = load_split(coco_folder.config().data, "train")
    assert dataset.problems == (Problem(MISSING_SEGMENTATION, 500, 98),)
    assert dataset.has_masks
    assert dataset.instances.tolist() == [2, 2, 3, 2, 2, 2, 2]


def test_keypoints_of_a_wrong_number_are_dropped_and_their_instance_kept(
    coco_folder: Any, caplog: pytest.LogCaptureFixture
) -> None:
    coco_folder.add_keypoints()
    coco_folder.add(98, [1, 1, 5, 5], id=500, category_id=20, keypoints=[1, 1, 2])
    coco_folder.add(98, [1, 1, 5, 5], id=501, category_id=3, keypoints=[1, 1, 2] * 3)  # boats have none
    coco_folder.add(98, [1, 1, 5, 5], id=502, category_id=20, keypoints=[])
    with caplog.at_level(logging.WARNING):
        dataset = load_split(coco_folder.config().data, "train")
    assert "wrong number of keypoints (dropped) in 2 annotations: 500 (image 98), 501 (image 98)" in caplog.text
    kept = {a["id"]: a["keypoints"] for a in dataset.record(2)[1] if "keypoints" in a}
    assert [kept[i] for i in (500, 501, 502)] == [[], [], []]
    assert [12, 4, 2, 20, 10, 1, 0, 0, 0] in kept.values()


def test_image_without_annotations_trains_as_background(coco_folder: Any) -> None:
    coco_folder.content["annotations"] = [a for a in coco_folder.content["annotations"] if a["image_id"] != 98]
    config = coco_folder.config()
    with eval_batches(load_split(config.data, "eval"), config) as batches:
        counts = {
            int(index): int(valid.sum())
            for batch in batches
            for index, valid, image in zip(batch.indices, batch.ground_truth.valid, batch.valid, strict=True)
            if image
        }
    assert counts == {0: 2, 1: 2, 2: 0, 3: 2, 4: 2, 5: 2, 6: 2}


def test_data_without_masks_needs_a_model_without_masks(coco_folder: Any) -> None:
    import dataclasses

    for annotation in coco_folder.content["annotations"]:
        del annotation["segmentation"]
    config = coco_folder.config()
    dataset = load_split(config.data, "train")
    with pytest.raises(DataError, match=r"coco\.json: no instance has a mask to train on; set model\.mask=None"):
        train_batches(dataset, config)
    boxes_only = dataclasses.replace(config, model=dataclasses.replace(config.model, mask=None))
    with train_batches(dataset, boxes_only) as batches:
        assert next(batches).ground_truth.masks.shape == (2, 4, 0, 0)


def test_categories_choose_annotations(coco_folder: Any) -> None:
    for annotation in coco_folder.content["annotations"]:
        if annotation["category_id"] == 3:
            annotation["segmentation"] = []  # boats without masks, and one image without kites
    coco_folder.content["annotations"] = [
        a for a in coco_folder.content["annotations"] if (a["image_id"], a["category_id"]) != (98, 20)
    ]
    everything = load_split(coco_folder.config().data, "train")
    assert everything.instances.tolist() == [2, 2, 1, 2, 2, 2, 2]
    kites = load_split(coco_folder.config(categories=("kite",)).data, "train")
    assert (kites.categories.ids, kites.categories.names) == ((20,), ("kite",))
    assert kites.ids.tolist() == everything.ids.tolist()  # an image without kites is background
    assert kites.instances.tolist() == [1, 1, 0, 1, 1, 1, 1]
    assert kites.has_masks
    boats = load_split(coco_folder.config(categories=("boat",)).data, "eval")
    assert boats.instances.sum() == 7
    assert not boats.has_masks
    with pytest.raises(DataError, match=r"data\.categories names bote, but the dataset has boat, kite"):
        load_split(coco_folder.config(categories=("bote",)).data, "train")


def test_chosen_categories_share_the_prepared_records(coco_folder: Any) -> None:
    load_split(coco_folder.config().data, "train")
    chosen = load_split(coco_folder.config(categories=("kite",)).data, "train")
    assert len(list((coco_folder.root / "cache").iterdir())) == 1
    for i in range(7):
        assert [a["category_id"] for a in chosen.record(i)[1]] == [20]


def test_images_with_too_few_keypoints_are_not_trained_on(coco_folder: Any, caplog: pytest.LogCaptureFixture) -> None:
    coco_folder.add_keypoints()  # two labeled in each image
    coco_folder.add(98, [1, 1, 5, 5], category_id=20, keypoints=[2, 2, 1] * 3)
    coco_folder.add(95, [1, 1, 5, 5], category_id=20, keypoints=[2, 2, 1] * 3)
    coco_folder.add(94, [1, 1, 5, 5], category_id=20, keypoints=[2, 2, 1] * 3, iscrowd=1)
    data = coco_folder.config(min_keypoints=3).data
    with caplog.at_level(logging.INFO):
        dataset = load_split(data, "train")
    assert "using 2 of 7 images, those with at least 3 labeled keypoints" in caplog.text
    assert dataset.ids.tolist() == [98, 95]
    assert len(dataset.file_names) == len(dataset.sizes) == len(dataset.instances) == 2
    content, annotations = dataset.record(1)
    assert content == dataset.image_path(1).read_bytes() == (coco_folder.root / "images" / "5.png").read_bytes()
    assert {a["image_id"] for a in annotations} == {95}
    assert len(load_split(data, "eval")) == 7
    with pytest.raises(DataError, match=r"coco\.json: no image has at least data\.min_keypoints=6 labeled keypoints"):
        load_split(coco_folder.config(min_keypoints=6).data, "train")


def test_image_ids_choose_images(coco_folder: Any) -> None:
    chosen = load_split(coco_folder.config(train=SplitConfig("coco.json", "images", (95, 99))).data, "train")
    assert chosen.ids.tolist() == [99, 95]  # in the order of the file
    assert chosen.image_path(0).name == "1.png"
    with pytest.raises(DataError, match=r"image_ids names images that the file does not have \(1\): image 7"):
        load_split(coco_folder.config(train=SplitConfig("coco.json", "images", (95, 7))).data, "train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no annotation file"),
        ("", "is not valid JSON"),
        ("{", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ('{"images": ' + "1" * 5000 + "}", "is not valid JSON"),
        ("\udcff\udcfe", "is not valid JSON"),
        ("[]", "has no list 'images'"),
        ("7", "has no list 'images'"),
        ('{"images": {}, "annotations": [], "categories": []}', "has no list 'images'"),
        ('{"images": [{}], "annotations": null, "categories": []}', "has no list 'annotations'"),
        ('{"images": [], "annotations": []}', "has no list 'categories'"),
        ('{"images": [], "annotations": [], "categories": []}', "list 'images' is empty"),
        (
            '{"images": [{"id": 4}], "annotations": [], "categories": []}',
            r"missing fields \(1\): image 4: height, width",
        ),
    ],
)
def test_file_that_is_no_coco_json_is_refused(coco_folder: Any, content: str | None, message: str) -> None:
    config = coco_folder.config()
    path = coco_folder.root / "coco.json"
    path.unlink() if content is None else path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=rf"coco\.json.*{message}|{message}.*coco\.json"):
        load_split(config.data, "train")


def test_file_that_is_no_image_is_refused(coco_folder: Any) -> None:
    (coco_folder.root / "images" / "3.png").write_text("no picture")
    with pytest.raises(DataError, match=r"image files that cannot be read \(1\): 3\.png \(id 97\): "):
        load_split(coco_folder.config().data, "train")


def test_long_lists_of_items_are_shortened(coco_folder: Any) -> None:
    for _ in range(25):
        coco_folder.add(98, [1, 1, 5, 5], category_id=7)
    with pytest.raises(DataError, match=r"\(25\): annotation .* and 5 more; add"):
        load_split(coco_folder.config().data, "train")


def test_gray_palette_and_transparent_files_become_rgb(coco_folder: Any) -> None:
    gray = np.full((40, 60), 77, np.uint8)
    cv2.imwrite(str(coco_folder.root / "images" / "0.png"), gray)
    cv2.imwrite(str(coco_folder.root / "images" / "1.png"), np.full((60, 40, 4), (10, 20, 30, 0), np.uint8))
    config = coco_folder.config()
    with eval_batches(load_split(config.data, "eval"), config) as batches:
        first = {int(i): image[0, 0] for b in batches for i, _, image in zip(*shown(b), strict=True)}
    assert first[0].tolist() == [77, 77, 77]
    assert first[1].tolist() == [30, 20, 10]
