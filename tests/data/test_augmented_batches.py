"""Tests of augmentation in batches: every setting has an effect, and images agree with their ground truth."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from mrcnn_jax.config import AugmentConfig, Config, KeypointHeadConfig, SplitConfig
from mrcnn_jax.data import eval_batches, load_split, train_batches
from mrcnn_jax.errors import DataError
from mrcnn_jax.structures import Batch, GroundTruth

EVERYTHING = AugmentConfig(
    scale_jitter=(0.3, 2.0), crop=0.5, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, copy_paste=0.7
)
# One setting of each field that must be seen in the batches, and what it needs beside it.
SETTINGS: dict[str, dict[str, Any]] = {
    "scale_jitter": {"scale_jitter": (0.3, 0.6)},
    "crop": {"crop": 1.0},
    "crop_size": {"crop": 1.0, "crop_size": (0.3, 0.4)},
    "brightness": {"brightness": 0.5},
    "contrast": {"contrast": 0.5},
    "saturation": {"saturation": 0.5},
    "hue": {"hue": 0.3},
    "copy_paste": {"copy_paste": 1.0},
}


def take(config: Config, count: int) -> list[list[np.ndarray]]:
    """The fields of the first training batches."""
    with train_batches(load_split(config.data, "train"), config) as batches:
        return [[np.array(x) for x in (*batch[:4], *batch.ground_truth)] for batch in itertools.islice(batches, count)]


def change(config: Config, augment: AugmentConfig, **data: Any) -> Config:
    return dataclasses.replace(config, data=dataclasses.replace(config.data, augment=augment, **data))


def unlike(first: list[list[np.ndarray]], second: list[list[np.ndarray]]) -> set[str]:
    """Names of the fields that differ anywhere."""
    names = (*Batch._fields[:4], *(f"truth.{name}" for name in GroundTruth._fields))
    return {
        name
        for a, b in zip(first, second, strict=True)
        for name, x, y in zip(names, a, b, strict=True)
        if not np.array_equal(x, y)
    }


def test_every_field_has_its_setting_here() -> None:
    assert set(SETTINGS) == {field.name for field in dataclasses.fields(AugmentConfig)}


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_shows_and_repeats(shared_folder: Any, name: str) -> None:
    without = {key: value for key, value in SETTINGS[name].items() if key != name}
    config = shared_folder.config()
    before = take(change(config, AugmentConfig(**without)), 4)
    after = take(change(config, AugmentConfig(**SETTINGS[name])), 4)
    differing = unlike(before, after)
    assert "images" in differing
    assert not differing & {"indices", "valid"}
    if name in ("brightness", "contrast", "saturation", "hue"):
        assert differing == {"images"}
    assert not unlike(after, take(change(config, AugmentConfig(**SETTINGS[name])), 4))


def test_evaluation_is_not_augmented(shared_folder: Any) -> None:
    config = shared_folder.config()
    batches = []
    for augment in (AugmentConfig(), EVERYTHING):
        changed = change(config, augment)
        with eval_batches(load_split(changed.data, "eval"), changed) as iterator:
            batches.append([[np.array(x) for x in (*batch[:4], *batch.ground_truth)] for batch in iterator])
    assert not unlike(*batches)


@pytest.fixture
def everything(coco_folder: Any) -> Config:
    """All augmentations, on instances with keypoints, one of them with a mask as RLE."""
    coco_folder.add_keypoints()
    for image in coco_folder.content["images"]:
        height, width = image["height"], image["width"]
        # From column 20 on: 5 columns of which 12 rows are filled.
        runs = [20 * height + 8, *([12, height - 12] * 4), 12]
        runs.append(height * width - sum(runs))
        coco_folder.add(
            image["id"], [20, 8, 5, 12], category_id=20, segmentation={"size": [height, width], "counts": runs}
        )
    config = coco_folder.config(vertical_flip=0.3, max_instances=8)
    head = KeypointHeadConfig(num_keypoints=3, flip_map=(0, 2, 1))
    return change(dataclasses.replace(config, model=dataclasses.replace(config.model, keypoint=head)), EVERYTHING)


@pytest.mark.slow  # `test_pipeline.py` asks the same of pictures without keypoints
def test_workers_do_not_change_augmented_batches(everything: Config) -> None:
    assert not unlike(take(everything, 12), take(change(everything, EVERYTHING, workers=2), 12))


def test_the_place_in_a_batch_does_not_matter(everything: Config) -> None:
    """In an epoch an image looks the same in a batch of one."""

    def images(size: int) -> dict[int, list[np.ndarray]]:
        config = dataclasses.replace(everything, train=dataclasses.replace(everything.train, batch_size=size))
        split = load_split(config.data, "train")
        found = {}
        with train_batches(split, config) as batches:
            while len(found) < len(split):
                batch = next(batches)
                for slot, index in enumerate(batch.indices.tolist()):
                    fields = [np.array(x[slot]) for x in (*batch[:2], *batch.ground_truth)]
                    found.setdefault(index, fields)
        return found

    one, three = images(1), images(3)
    assert set(one) == set(three)
    for index, fields in one.items():
        for a, b in zip(fields, three[index], strict=True):
            np.testing.assert_array_equal(a, b)


def test_what_is_in_a_batch_with_everything_switched_on(everything: Config) -> None:
    """Sizes, boxes, windows, masks and keypoints lie within their pictures; padding is empty."""
    sizes, pasted, hidden = set(), 0, 0
    for images, image_sizes, _, _, boxes, classes, masks, windows, keypoints, valid in take(everything, 40):
        for i, (height, width) in enumerate(image_sizes.tolist()):
            assert 1 <= height <= images.shape[1]
            assert 1 <= width <= images.shape[2]
            assert not images[i, height:].any()
            assert not images[i, :, width:].any()
            sizes.add((height, width))
            own = boxes[i][valid[i]]
            assert (own >= 0).all()
            assert (own <= [width, height, width, height]).all()
            assert (own[:, 2:] > own[:, :2]).all()
            np.testing.assert_array_equal(windows[i], boxes[i])
            assert masks[i][valid[i]].any(axis=(1, 2)).all()
            assert not masks[i][~valid[i]].any()
            assert set(classes[i][valid[i]].tolist()) <= {1, 2}
            labeled = keypoints[i][keypoints[i][..., 2] > 0]
            assert (labeled[:, :2] <= [width, height]).all()
            assert not keypoints[i][keypoints[i][..., 2] == 0].any()
            pasted += valid[i].sum() > 3
            hidden += (keypoints[i][..., 0, 2] == 1).any()
    assert len(sizes) > 20
    assert pasted > 5
    assert hidden > 0  # noses are visible in the annotations


def test_large_scale_jitter_on_one_square_bucket(coco_folder: Any) -> None:
    """Pictures of 64 pixels on a canvas of 128: a tenth to twice what fills it."""
    config = coco_folder.config(buckets=((128, 128),))
    config = change(config, AugmentConfig(scale_jitter=(0.1, 2.0)))
    longer, enlarged = [], 0
    for images, sizes, *_ in take(config, 60):
        assert images.shape[1:3] == (128, 128)
        longer += sizes.max(axis=1).tolist()
        enlarged += (sizes == 128).all(axis=1).sum()
    assert 12 <= min(longer) < 25
    assert max(longer) == 128
    # Larger than the canvas with probability 10/19.
    assert abs(np.mean(np.array(longer) == 128) - 10 / 19) < 0.15
    assert enlarged > 0


def test_images_agree_with_ground_truth_after_all_augmentations(tmp_path: Path, coco_folder: Any) -> None:
    """Red and blue figures on dark grounds: wherever they end up, boxes and crops must say so.

    They are large enough to be decoded at a half and a quarter of their size.
    """
    rng = np.random.default_rng(0)
    coco_folder.content["annotations"] = []
    for i, image in enumerate(coco_folder.content["images"]):
        height, width = image["height"], image["width"] = 3 * image["height"] + 1, 3 * image["width"] + 1
        canvas = np.full((height, width, 3), 0 if i % 2 else 90, np.uint8)
        for category_id, color, left in ((3, (0, 0, 255), 2), (20, (255, 0, 0), width // 2 + 2)):
            x, y = left + int(rng.integers(0, 12)), int(rng.integers(2, 24))
            w, h = width // 2 - 24, height - 36
            canvas[y : y + h, x : x + w] = color
            coco_folder.add(image["id"], [x, y, w, h], category_id=category_id)
        cv2.imwrite(str(coco_folder.root / "images" / image["file_name"]), canvas)
    config = coco_folder.config(vertical_flip=0.3, max_instances=8)
    augment = AugmentConfig(scale_jitter=(0.5, 2.0), crop=0.5, crop_size=(0.6, 1.0), copy_paste=0.7)
    checked = 0
    for images, _, _, _, boxes, classes, masks, _, _, valid in take(change(config, augment), 30):
        for i, slot in np.argwhere(valid):
            x0, y0, x1, y1 = np.rint(boxes[i, slot]).astype(int)
            if min(x1 - x0, y1 - y0) < 8:
                continue
            crop = cv2.resize(masks[i, slot], (x1 - x0, y1 - y0), interpolation=cv2.INTER_NEAREST) > 0
            color = images[i, y0:y1, x0:x1, 2 if classes[i, slot] == 2 else 0] > 150
            inner = cv2.erode(crop.astype(np.uint8), np.ones((5, 5)), borderValue=0) > 0
            assert color[inner].all()
            checked += inner.any()
    assert checked > 60


def test_single_image_is_pasted_onto_itself(coco_folder: Any) -> None:
    config = coco_folder.config(train=SplitConfig("coco.json", "images", (98,)))
    batch = take(change(config, AugmentConfig(copy_paste=1.0)), 8)
    assert {int(count) for fields in batch for count in fields[-1].sum(axis=1)} >= {2, 3}


def test_copy_paste_needs_masks(coco_folder: Any) -> None:
    for annotation in coco_folder.content["annotations"]:
        del annotation["segmentation"]
    config = coco_folder.config()
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, mask=None))
    with pytest.raises(DataError, match=r"which data\.augment\.copy_paste needs; set it to 0"):
        take(change(config, AugmentConfig(copy_paste=0.5)), 1)
    boxes = take(change(config, dataclasses.replace(EVERYTHING, copy_paste=0.0)), 3)
    assert all(fields[6].size == 0 for fields in boxes)


def test_copy_paste_without_a_mask_head_uses_the_masks_of_the_data(coco_folder: Any) -> None:
    config = coco_folder.config()
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, mask=None))
    with_masks = take(change(coco_folder.config(), AugmentConfig(copy_paste=1.0)), 4)
    without = take(change(config, AugmentConfig(copy_paste=1.0)), 4)
    for a, b in zip(with_masks, without, strict=True):
        np.testing.assert_array_equal(a[0], b[0])
        np.testing.assert_array_equal(a[4], b[4])
        assert b[6].size == 0
