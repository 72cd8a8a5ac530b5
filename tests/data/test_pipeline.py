"""Tests of batches: their fields, and independence of workers, processes and restarts."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np
import pytest
from pycocotools import mask as mask_utils

from mrcnn_jax.config import AugmentConfig, Config, DataConfig, KeypointHeadConfig, SplitConfig
from mrcnn_jax.data import eval_batches, load_split, train_batches
from mrcnn_jax.errors import DataError
from mrcnn_jax.structures import Batch
from mrcnn_jax.training.parallel import place_batch

pytestmark = pytest.mark.medium


def leaves(batch: Batch) -> list[np.ndarray]:
    return [*batch[:4], *batch.ground_truth]


def assert_equal(first: Iterable[Batch], second: Iterable[Batch]) -> None:
    for a, b in zip(first, second, strict=True):
        for x, y in zip(leaves(a), leaves(b), strict=True):
            np.testing.assert_array_equal(x, y)


def take(config: Config, count: int, **options: Any) -> list[Batch]:
    """The first training batches, copied: a worker's shared memory is given back."""
    with train_batches(load_split(config.data, "train"), config, **options) as batches:
        return [
            Batch(*(np.array(x) for x in b[:4]), type(b.ground_truth)(*map(np.array, b.ground_truth)))
            for b in itertools.islice(batches, count)
        ]


def change(config: Config, **data: Any) -> Config:
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **data))


def test_fields_of_a_batch(shared_folder: Any) -> None:
    config = shared_folder.config()
    shapes = set()
    for batch in take(config, 8):
        height, width = batch.images.shape[1:3]
        shapes.add((height, width))
        assert [(x.shape, x.dtype) for x in leaves(batch)] == [
            ((2, height, width, 3), np.uint8),
            ((2, 2), np.int32),
            ((2,), np.int32),
            ((2,), bool),
            ((2, 4, 4), np.float32),
            ((2, 4), np.int32),
            ((2, 4, 16, 16), np.uint8),
            ((2, 4, 4), np.float32),
            ((2, 4, 0, 3), np.float32),
            ((2, 4), bool),
        ]
        for image, size in zip(batch.images, batch.image_sizes, strict=True):
            assert not image[size[0] :].any()
            assert not image[:, size[1] :].any()
            assert image[: size[0], : size[1]].std() > 20
        assert batch.ground_truth.valid.sum(axis=1).tolist() == [2, 2]
        assert set(batch.ground_truth.classes[batch.ground_truth.valid].tolist()) == {1, 2}
    assert shapes == {(64, 64), (64, 96), (96, 64)}


def with_everything(coco_folder: Any, **data: Any) -> Config:
    """A global batch of four images, each changed by every augmentation there is, or by some of them."""
    augment = AugmentConfig(
        scale_jitter=(0.5, 2.0), crop=0.5, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, copy_paste=0.5
    )
    config = coco_folder.config(augment=augment, vertical_flip=0.5, max_instances=8, **data)
    return dataclasses.replace(config, train=dataclasses.replace(config.train, batch_size=4))


@pytest.fixture(scope="module")
def ten(shared_folder: Any) -> list[Batch]:
    """Batches of one process without workers: three epochs of three, and the first of the fourth."""
    return take(with_everything(shared_folder), 10)


def test_every_augmentation_shows(shared_folder: Any, ten: list[Batch]) -> None:
    """Else the tests below would say less than they seem to."""
    assert len({int(height) for batch in ten for height in batch.image_sizes[:, 0]}) > 5
    assert {int(count) for batch in ten for count in batch.ground_truth.valid.sum(axis=1)} > {2, 3}  # pasted, cropped
    assert (ten[0].indices != ten[3].indices).any()
    plain = take(change(with_everything(shared_folder), augment=AugmentConfig()), 10)
    assert all((a.images != b.images).any() for a, b in zip(ten, plain, strict=True))


SLOWER = [pytest.param(*case, marks=pytest.mark.slow) for case in ((0, 0), (1, 0), (1, 4), (2, 0))]


@pytest.mark.parametrize(("workers", "start"), [(0, 4), (2, 4), *SLOWER])
def test_workers_and_a_restart_do_not_change_the_batches(
    shared_folder: Any, ten: list[Batch], workers: int, start: int
) -> None:
    config = with_everything(shared_folder, workers=workers)
    assert_equal(ten[start:], take(config, 10 - start, start_step=start))


def test_processes_joined_are_one(shared_folder: Any, ten: list[Batch]) -> None:
    parts = [take(with_everything(shared_folder), 10, process_index=p, process_count=4) for p in range(4)]
    assert_equal(
        ten, [jax.tree.map(lambda *pieces: np.concatenate(pieces), *step) for step in zip(*parts, strict=True)]
    )
    with pytest.raises(DataError, match="4 images cannot be divided among 3 processes"):
        take(with_everything(shared_folder), 1, process_count=3)


def test_devices_get_what_processes_of_one_device_would(shared_folder: Any, ten: list[Batch]) -> None:
    """JAX numbers devices process by process: the shares of one process follow the order of the processes."""
    devices = jax.local_devices()[:2]
    parts = [take(with_everything(shared_folder), 10, process_index=p, process_count=2) for p in range(2)]
    for step, batch in enumerate(ten):
        together = jax.device_get(place_batch(batch, devices))
        for number, device in enumerate(devices):
            alone = jax.device_get(place_batch(parts[number][step], [device]))
            jax.tree.map(lambda ours, its, n=number: np.testing.assert_array_equal(ours[n], its[0]), together, alone)


def test_seed_and_epoch_change_the_augmentation(shared_folder: Any) -> None:
    config = shared_folder.config(train=SplitConfig("coco.json", "images", (96,)))
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, batch_size=1))
    epochs = take(config, 12)
    assert {int(size) for b in epochs for size in b.image_sizes[:, 0]} == {48, 64}
    boxes = {tuple((b.ground_truth.boxes[0, 0] / b.image_sizes[0, 0]).round(4)) for b in epochs}
    assert len(boxes) == 2  # flipped and not
    reseeded = dataclasses.replace(config, train=dataclasses.replace(config.train, seed=6))
    assert any((a.image_sizes != b.image_sizes).any() for a, b in zip(epochs, take(reseeded, 12), strict=True))


def test_flips_keep_image_and_masks_together(tmp_path: Path, coco_folder: Any) -> None:
    """White figures on black: wherever they end up, boxes and crops must say so."""
    image = coco_folder.content["images"][6]  # 64 x 64, its bucket's size: no resampling blurs the comparison
    coco_folder.content["annotations"] = []
    figure = [10, 20, 30, 20, 10, 52]
    coco_folder.add(image["id"], [10, 20, 20, 32], segmentation=[figure])
    canvas = mask_utils.decode(mask_utils.frPyObjects([figure], 64, 64))[:, :, 0] * 255
    cv2.imwrite(str(coco_folder.root / "images" / image["file_name"]), canvas)
    config = coco_folder.config(
        train=SplitConfig("coco.json", "images", (image["id"],)), shortest_edge_train=(64,), vertical_flip=0.5
    )
    seen = set()
    for batch in take(config, 12):
        x0, y0, x1, y1 = map(int, batch.ground_truth.boxes[0, 0])
        crop = cv2.resize(batch.ground_truth.masks[0, 0], (x1 - x0, y1 - y0), interpolation=cv2.INTER_NEAREST)
        picture = batch.images[0, y0:y1, x0:x1, 0] > 127
        assert batch.images[0].sum() == batch.images[0, y0:y1, x0:x1].sum()
        assert (picture == crop.astype(bool)).mean() > 0.9  # 16 raster pixels on 20 x 32: the outline differs
        seen.add((x0, y0))
    assert seen == {(10, 20), (34, 20), (10, 12), (34, 12)}


def kites(coco_folder: Any, head: KeypointHeadConfig, **data: Any) -> Config:
    """Kites with keypoints, for a model with this head."""
    coco_folder.add_keypoints()
    config = coco_folder.config(**data)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, keypoint=head))


KITE = KeypointHeadConfig(num_keypoints=3, flip_map=(0, 2, 1))


def test_keypoints_in_batches(coco_folder: Any) -> None:
    config = kites(coco_folder, KITE, train=SplitConfig("coco.json", "images", (94,)), shortest_edge_train=(64,))
    seen = set()
    for batch in take(config, 12):  # one image of 64 x 64 in its own size, flipped and not
        truth = batch.ground_truth
        assert truth.keypoints.shape == (2, 4, 3, 3)
        assert truth.keypoints.dtype == np.float32
        boat, kite = truth.keypoints[0, :2]
        assert not boat.any()
        x0, _, x1, _ = truth.boxes[0, 1]
        if x0 == 10.5:
            np.testing.assert_array_equal(kite, [[12.5, 4.5, 2], [20.5, 10.5, 1], [0, 0, 0]])
        else:
            assert x1 == 64 - 10.5
            np.testing.assert_array_equal(kite, [[51.5, 4.5, 2], [0, 0, 0], [43.5, 10.5, 1]])
        seen.add(x0)
    assert len(seen) == 2


def test_keypoints_are_left_out_for_a_model_without_a_head(coco_folder: Any) -> None:
    coco_folder.add_keypoints()
    assert take(coco_folder.config(), 1)[0].ground_truth.keypoints.shape == (2, 4, 0, 3)


def test_keypoints_that_the_data_does_not_have_are_refused_in_training_only(coco_folder: Any) -> None:
    wrong_sides = dataclasses.replace(KITE, flip_map=(0, 1, 2))
    for head, chosen, message, evaluated in [
        (
            KeypointHeadConfig(),
            (),
            r"has 3 keypoints, and model\.keypoint\.num_keypoints=17; set it",
            0,
        ),
        (
            KITE,
            ("boat",),
            r"has no keypoints, or categories with different keypoints, and model\.keypoint\.num_keypoints=3",
            0,
        ),
        (
            wrong_sides,
            (),
            r"flip_map=\(0, 1, 2\) does not fit .*nose, left_tip, right_tip; set .*flip_map=\(0, 2, 1\)",
            3,
        ),
    ]:
        config = kites(coco_folder, head, categories=chosen)
        with pytest.raises(DataError, match=message):
            take(config, 1)
        with eval_batches(load_split(config.data, "eval"), config) as batches:
            assert next(batches).ground_truth.keypoints.shape[2] == evaluated


def test_seventeen_keypoints_without_sides_are_refused(coco_folder: Any) -> None:
    names = [f"p{i}" for i in range(17)]
    config = kites(coco_folder, KeypointHeadConfig())
    for category in coco_folder.content["categories"]:
        if "keypoints" in category:
            category.update(keypoints=names, skeleton=[])
    for annotation in coco_folder.content["annotations"]:
        if "keypoints" in annotation:
            annotation["keypoints"] = [12, 4, 2] * 17
    coco_folder.save()
    with pytest.raises(DataError, match=r"p0, p1, .*p16 do not show which are left and right, .*flip_map"):
        take(config, 1)
    for flip_map in (tuple(range(17)), (1, 0, *range(2, 17))):  # whoever gives one knows
        model = dataclasses.replace(config.model, keypoint=KeypointHeadConfig(flip_map=flip_map))
        assert take(dataclasses.replace(config, model=model), 1)[0].ground_truth.keypoints.shape[2] == 17


def test_a_keypoint_head_needs_a_labeled_keypoint(coco_folder: Any) -> None:
    config = kites(coco_folder, KITE)
    for annotation in coco_folder.content["annotations"]:
        annotation["keypoints"] = []
    coco_folder.save()
    with pytest.raises(DataError, match=r"coco\.json: no instance has a labeled keypoint to train on; label"):
        take(config, 1)


def test_evaluation_shows_every_image_once_unaugmented(shared_folder: Any) -> None:
    config = shared_folder.config(horizontal_flip=1.0)
    config = dataclasses.replace(config, eval=dataclasses.replace(config.eval, batch_size=4))
    dataset = load_split(config.data, "eval")
    with eval_batches(dataset, config) as iterator:
        batches = list(iterator)
    indices = np.concatenate([b.indices[b.valid] for b in batches])
    assert sorted(indices) == list(range(7))
    for batch in batches:
        assert batch.images.shape[0] == 4
        for index, size, boxes in zip(
            batch.indices[batch.valid],
            batch.image_sizes[batch.valid],
            batch.ground_truth.boxes[batch.valid],
            strict=True,
        ):
            ratio = size / dataset.sizes[index]
            np.testing.assert_allclose(boxes[0], np.array([4, 6, 24, 16]) * ratio[[1, 0, 1, 0]], rtol=1e-6)
        empty = ~batch.valid
        assert not batch.images[empty].any()
        assert not batch.ground_truth.valid[empty].any()
        assert (batch.image_sizes[empty] == 1).all()


def test_crowds_and_surplus_instances(coco_folder: Any, caplog: pytest.LogCaptureFixture) -> None:
    for side in (3, 9, 4, 5):
        coco_folder.add(98, [1, 1, side, side])
    coco_folder.add(98, [0, 0, 40, 40], iscrowd=1, segmentation={"size": [48, 64], "counts": [0, 3072]})
    config = coco_folder.config(train=SplitConfig("coco.json", "images", (98,)), horizontal_flip=0.0)
    with caplog.at_level(logging.WARNING):
        truth = take(config, 1)[0].ground_truth
    assert "1 images have more than data.max_instances=4 instances; their 2 smallest" in caplog.text
    assert "image ids 98" in caplog.text
    assert truth.valid[0].all()
    widths = truth.boxes[0, :, 2] - truth.boxes[0, :, 0]
    np.testing.assert_allclose(widths / widths[0], np.array([20, 15, 9, 5]) / 20, rtol=1e-5)


def test_ten_thousand_instances_in_one_image(coco_folder: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The largest fill the slots, of equal ones the first; the rest is counted, and takes no time."""
    coco_folder.content["annotations"] = []
    rng = np.random.default_rng(0)
    for side in rng.integers(2, 16, 10_000):
        x, y = rng.integers(0, 64 - side, 2).tolist()
        coco_folder.add(94, [x, y, int(side), int(side)])
    split = SplitConfig("coco.json", "images", (94,))
    config = coco_folder.config(
        train=split, max_instances=100, shortest_edge_train=(64,), horizontal_flip=0, mask_size=28
    )
    load_split(config.data, "train")  # prepared
    start = time.process_time()
    truth = take(config, 1)[0].ground_truth
    assert time.process_time() - start < 5  # 0.05 s an image, most of it to parse its JSON; some are read ahead
    assert "1 images have more than data.max_instances=100 instances; their 9900 smallest" in caplog.text
    sides = np.array([annotation["bbox"][2] for annotation in coco_folder.content["annotations"]])
    largest = np.sort(np.argsort(-sides, kind="stable")[:100])
    corners = np.array([coco_folder.content["annotations"][i]["bbox"][:2] for i in largest])
    np.testing.assert_array_equal(truth.boxes[0, :, :2], corners)
    assert truth.valid[0].all()
    assert truth.masks[0].all()


def test_data_does_not_import_jax() -> None:
    import subprocess
    import sys

    code = "import mrcnn_jax.data, sys; assert 'jax' not in sys.modules and 'tensorflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("name", "file", "bucket"), [("coco_by", "annotations.json", 800), ("nuclei", "val.json", 256)]
)
def test_real_data(shared_data: Callable[[str], Path], tmp_path: Path, name: str, file: str, bucket: int) -> None:
    """Every instance of a real set arrives in its slot, its crop as full as its area says."""
    split = SplitConfig(file, "images")
    buckets = ((800, 1088), (1088, 800), (800, 1344), (1344, 800)) if bucket == 800 else ((256, 256),)
    data = DataConfig(
        root=str(shared_data(name)),
        train=split,
        eval=split,
        cache_dir=str(tmp_path),
        buckets=buckets,
        shortest_edge_eval=bucket,
        mask_size=56,
    )
    dataset = load_split(data, "eval")
    seen = 0
    with eval_batches(dataset, Config(data=data)) as batches:
        for batch in batches:
            for slot in np.flatnonzero(batch.valid):
                index = int(batch.indices[slot])
                instances = [a for a in dataset.record(index)[1] if not a["iscrowd"]]
                truth = batch.ground_truth
                assert truth.valid[slot].sum() == min(len(instances), data.max_instances)
                if len(instances) > data.max_instances:
                    continue
                seen += len(instances)
                fill = truth.masks[slot, : len(instances)].mean(axis=(1, 2))
                expected = np.array([a["area"] / (a["bbox"][2] * a["bbox"][3]) for a in instances])
                large = np.array([min(a["bbox"][2:]) >= 16 for a in instances], bool)
                # The outline of an object of 16 pixels covers about a fifth of its box, half of it in doubt.
                np.testing.assert_allclose(fill[large], expected[large], atol=0.1)
    assert seen > 400
