"""Tests of images that cannot be decoded during training: an empty slot and a warning, or an error."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from mrcnn_jax.config import AugmentConfig, Config
from mrcnn_jax.data import dataset as dataset_module
from mrcnn_jax.data import eval_batches, load_split, train_batches
from mrcnn_jax.errors import DataError
from mrcnn_jax.inference import single_image
from mrcnn_jax.structures import Batch

pytestmark = pytest.mark.medium

BAD = 3  # the index of the image that is damaged after it was prepared: 3.png, id 97
ODD = 0  # another, of a bucket of three: some epochs show it twice to fill their batches
STEPS = 24  # six epochs of four batches


def damage(dataset: dataset_module.Dataset, *rows: int) -> dataset_module.Dataset:
    """The same, but that half of the bytes of some images are missing."""
    reader = dataset.reader

    class Damaged:  # local, so that it travels to worker processes by value
        def __getitem__(self, row: int) -> Any:
            content, annotations = reader[row]
            return (content[: len(content) // 2] if row in rows else content), annotations

    return dataclasses.replace(dataset, reader=Damaged())


def take(dataset: dataset_module.Dataset, config: Config, count: int = STEPS) -> Iterator[Batch]:
    with train_batches(dataset, config) as batches:
        yield from itertools.islice(batches, count)


def slots(batch: Batch) -> list[list[np.ndarray]]:
    """The fields of each slot."""
    return [[field[slot] for field in (*batch[:4], *batch.ground_truth)] for slot in range(len(batch.valid))]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged, without the progress of preparing, which is logged when another test has asked for it."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("workers", [0, 2])
def test_corrupt_image_is_an_empty_slot_and_nothing_else_changes(
    shared_folder: Any, caplog: pytest.LogCaptureFixture, workers: int
) -> None:
    config = shared_folder.config()
    dataset = load_split(config.data, "train")
    damaged = take(damage(dataset, BAD, ODD), shared_folder.config(workers=workers))
    seen = []
    for whole, batch in zip(take(dataset, config), damaged, strict=True):
        for expected, found in zip(slots(whole), slots(batch), strict=True):
            image, size, index, valid, *truth = found
            assert expected[2] == index
            assert valid == (index not in (BAD, ODD))
            if not valid:
                seen.append(int(index))
                assert size.tolist() == [1, 1]
                assert not image.any()
                assert not any(field.any() for field in truth)
            else:
                for a, b in zip(expected, found, strict=True):
                    np.testing.assert_array_equal(a, b)
    assert seen.count(BAD) == 6 < seen.count(ODD)
    words = warnings(caplog)
    assert len(words) == 12  # each once in an epoch
    for index, image_id in ((BAD, 97), (ODD, 100)):
        name = f"{shared_folder.root / 'images' / f'{index}.png'} (image id {image_id}) cannot be decoded"
        assert sum(word.startswith(name) for word in words) == 6
    assert words[-1].endswith("Its slot stays empty (epoch 5: 2 so far)")


def test_on_corrupt_stop_names_the_file(shared_folder: Any) -> None:
    config = shared_folder.config(on_corrupt="stop")
    with pytest.raises(
        DataError, match=r"images/3\.png \(image id 97\) cannot be decoded: .*truncated.*; replace the file"
    ):
        list(take(damage(load_split(config.data, "train"), BAD), config))


def test_batch_of_corrupt_images_only(shared_folder: Any, caplog: pytest.LogCaptureFixture) -> None:
    config = shared_folder.config()
    batches = list(take(damage(load_split(config.data, "train"), *range(7)), config, 4))
    assert len(batches) == 4
    for batch in batches:
        assert not batch.valid.any()
        assert not batch.ground_truth.valid.any()
    assert len(warnings(caplog)) == 7


def test_many_corrupt_images_in_a_row_stop_the_run(shared_folder: Any) -> None:
    """Of seven images one is whole: no epoch goes by without it. Without it nothing would ever be trained."""
    config = shared_folder.config()
    dataset = load_split(config.data, "train")
    assert len(list(take(damage(dataset, *range(6)), config))) == STEPS
    with pytest.raises(DataError, match=r"16 images in a row cannot be loaded; .*\.png .* cannot be decoded"):
        list(take(damage(dataset, *range(7)), config))


def test_a_corrupt_partner_of_copy_paste_pastes_nothing(shared_folder: Any) -> None:
    """Only its own slot is empty."""
    config = shared_folder.config(augment=AugmentConfig(copy_paste=1.0))
    dataset = load_split(config.data, "train")
    for batch in take(damage(dataset, BAD), config):
        assert (batch.valid == (batch.indices != BAD)).all()


def test_evaluation_stops_at_a_corrupt_image(shared_folder: Any) -> None:
    config = shared_folder.config()
    dataset = damage(load_split(config.data, "eval"), BAD)
    with (
        pytest.raises(DataError, match=r"3\.png \(image id 97\) cannot be decoded"),
        eval_batches(dataset, config) as it,
    ):
        list(it)
    exact = dataclasses.replace(config, eval=dataclasses.replace(config.eval, resize="detectron2"))
    with pytest.raises(DataError, match=r"3\.png \(image id 97\) cannot be decoded"):
        list(single_image.batches(dataset, exact))


def test_damaged_record_is_an_empty_slot(coco_folder: Any, caplog: pytest.LogCaptureFixture) -> None:
    """array_record notices changed bytes by their hash; the others of the file can be read."""
    config = coco_folder.config()
    dataset = load_split(config.data, "train")
    (part,) = coco_folder.root.rglob("*.array_record*")
    content, image = bytearray(part.read_bytes()), (coco_folder.root / "images" / "3.png").read_bytes()
    place = content.find(image[1000:1020])
    assert place > 0
    content[place : place + 4] = b"oops"
    part.write_bytes(content)
    assert len(load_split(config.data, "train")) == 7  # as large as before: nothing to be seen
    for batch in take(dataset, config):
        assert (batch.valid == (batch.indices != BAD)).all()
    words = warnings(caplog)[0]
    assert words.startswith(f"{coco_folder.root / 'images' / '3.png'} (image id 97): its record in {part.parents[2]}")
    assert "hash mismatch" in words
    assert "delete this folder" in words
    exact = dataclasses.replace(config, eval=dataclasses.replace(config.eval, resize="detectron2"))
    for batches in (eval_batches(dataset, config), single_image.batches(dataset, exact)):
        with contextlib.closing(batches), pytest.raises(DataError, match=r"3\.png.*cannot be read .*hash mismatch"):
            list(batches)
