"""Tests of images of more than 8 bits: the same pixels in training, evaluation, prediction and check."""

from __future__ import annotations

import io
import logging
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from mrcnn_jax.cli import main as mrcnn
from mrcnn_jax.config import ModelConfig
from mrcnn_jax.data import image_files, load_split, value_range
from mrcnn_jax.data.annotations import ImageEntry
from mrcnn_jax.data.value_range import MeasuredRange
from mrcnn_jax.errors import DataError, ImageError
from mrcnn_jax.inference import single_image
from mrcnn_jax.inference.predictor import Predictor, read_image

# Gray levels that any of the types below can hold.
GRAY = np.random.default_rng(0).integers(0, 256, (48, 64)).astype(np.uint8)
GRAY[0, :2] = 0, 255
FULL = {  # stored pixels, and the range that makes GRAY of them again
    "float of 1": (GRAY / np.float32(255), (0.0, 1.0)),
    "float of 65535": (GRAY * np.float32(257), (0.0, 65535.0)),
    "float about 0": (GRAY.astype(np.float32) - 100, (-100.0, 155.0)),
    "signed 32 bits": (GRAY.astype(np.int32), (0.0, 255.0)),
    "12 bits in 16": ((GRAY * 16.0 + 15).astype(np.uint16), (15.0, 4095.0)),
}


def encoded(pixels: np.ndarray, kind: str = "TIFF", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def tiff(pixels: np.ndarray | bytes, bits: int, kind: int, *, photometric: int = 1) -> bytes:
    """A TIFF 6.0 file of GRAY's size and one strip, with the tags that Pillow does not write.

    kind: SampleFormat. photometric: 0 if 0 is white.
    """
    data = pixels if isinstance(pixels, bytes) else pixels.tobytes()
    entries = {
        256: 64,
        257: 48,
        258: bits,
        259: 1,
        262: photometric,
        273: 0,
        277: 1,
        278: 48,
        279: len(data),
        339: kind,
    }
    entries[273] = 8 + 2 + 12 * len(entries) + 4
    fields = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries.items())
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + fields + struct.pack("<I", 0) + data


def seen(content: bytes, scale: tuple[float, float] | None = None) -> np.ndarray:
    pixels = image_files.decode(content, value_range=scale)
    assert pixels is not None
    assert pixels.dtype == np.uint8
    assert (pixels[..., 0] == pixels[..., 1]).all()
    return pixels[..., 0]


def check(content: bytes) -> image_files.ImageCheck:
    return image_files.check_image(content, ImageEntry(7, "a.tif", 48, 64, []))


@pytest.mark.parametrize("name", FULL)
def test_a_value_range_makes_the_same_picture_of_every_type(name: str) -> None:
    pixels, scale = FULL[name]
    np.testing.assert_allclose(seen(encoded(pixels), scale), GRAY, atol=1)  # 12 bits: 255 steps of 16
    low, high = scale
    middle = (low, (low + high) / 2)  # what is above it becomes 255
    expected = np.clip((pixels.astype(np.float64) - low) / (middle[1] - low), 0, 1) * 255
    np.testing.assert_allclose(seen(encoded(pixels), middle), expected, atol=0.501)


@pytest.mark.parametrize("name", ["float of 1", "float of 65535", "float about 0", "signed 32 bits"])
def test_types_without_a_scale_need_a_value_range(name: str) -> None:
    pixels, _ = FULL[name]
    content = encoded(pixels)
    assert image_files.decode(content) is None
    assert "set data.value_range" in image_files.explain_decode_failure(content)
    assert check(content) == image_files.ImageCheck(None, MeasuredRange(0, pixels.min(), pixels.max()))


def test_bits_per_sample_defines_white() -> None:
    deep = GRAY.astype(np.uint16) * 16 + 5  # 12 bits, two in three bytes
    first, second = deep.reshape(-1, 2).T
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=1).astype(np.uint8)
    content = tiff(packed.tobytes(), 12, 1)
    np.testing.assert_array_equal(seen(content), GRAY)
    assert check(content).values == MeasuredRange(12, 5, 4085)


def test_tiff_tags_that_pillow_ignores_are_applied() -> None:
    signed = (GRAY.astype(np.int16) - 128).astype(np.int8)
    np.testing.assert_array_equal(seen(tiff(signed, 8, 2), (-128.0, 127.0)), GRAY)
    large = GRAY.astype(np.uint32) * 0x1010101  # above 2**31, which Pillow reads as negative
    np.testing.assert_array_equal(seen(tiff(large, 32, 1), (0.0, 2.0**32 - 1)), GRAY)
    deep = GRAY.astype(np.uint16) << 8
    np.testing.assert_array_equal(seen(tiff(deep, 16, 1, photometric=0)), 255 - GRAY)
    np.testing.assert_array_equal(seen(tiff(GRAY, 8, 1, photometric=0)), 255 - GRAY)  # this one Pillow does


def test_floats_of_other_files_than_tiff_have_no_scale_either() -> None:
    content = b"Pf\n64 48\n-1.0\n" + (GRAY[::-1] / np.float32(255)).tobytes()  # rows from the bottom
    assert image_files.decode(content) is None
    np.testing.assert_array_equal(seen(content, (0.0, 1.0)), GRAY)


def test_colors_of_16_bits_follow_the_value_range() -> None:
    colors = np.stack([GRAY, GRAY[::-1], GRAY[:, ::-1]], axis=2)
    content = cv2.imencode(".png", colors[..., ::-1].astype(np.uint16) * 257)[1].tobytes()
    np.testing.assert_array_equal(image_files.decode(content, value_range=(0, 65535)), colors)
    np.testing.assert_array_equal(image_files.decode(content), colors)
    dark = cv2.imencode(".tiff", colors[..., ::-1].astype(np.uint16) * 16)[1].tobytes()
    assert value_range.warnings([check(dark).values], None)  # type: ignore[list-item]
    brighter = image_files.decode(dark, value_range=(0, 4095))
    np.testing.assert_allclose(brighter, colors, atol=17)  # of 12 bits Pillow keeps four


def test_nan_is_black_and_not_measured() -> None:
    pixels = GRAY.astype(np.float32)
    pixels[0, :3] = np.nan, np.inf, -np.inf
    content = encoded(pixels)
    assert seen(content, (0.0, 255.0))[0, :3].tolist() == [0, 255, 0]
    assert check(content).values == MeasuredRange(0, pixels[1:].min(), pixels[1:].max())
    assert check(encoded(np.full((48, 64), np.nan, np.float32))).values is None


def test_eight_bits_do_not_follow_the_value_range() -> None:
    for kind in ("PNG", "TIFF", "BMP"):
        np.testing.assert_array_equal(seen(encoded(GRAY, kind), (0.0, 1.0)), GRAY)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, (0, 1)),
        (0.3, 0.6, (0, 1)),
        (3, 250, (0, 255)),
        (0, 4080, (0, 4095)),
        (80, 60000, (0, 65535)),
        (-1000, 3000, (-1000, 3000)),
        (0, 0.001, (0, 0.001)),
        (0.95, 1.0, (0.95, 1.0)),
        (0, 1e6, (0, 1e6)),
        (7, 7, (7, 8)),
    ],
)
def test_suggestions(low: float, high: float, expected: tuple[float, float]) -> None:
    assert value_range.suggest_range([MeasuredRange(0, low, high)]) == expected
    if high > low:
        assert not value_range.warnings([MeasuredRange(0, low, high)], expected)


@pytest.mark.parametrize(
    ("values", "scale", "suits"),
    [
        (MeasuredRange(16, 0, 65535), None, True),
        (MeasuredRange(16, 0, 4095), None, False),
        (MeasuredRange(12, 0, 4095), None, True),
        (MeasuredRange(16, 30000, 33000), None, False),
        (MeasuredRange(0, 0, 1), (0, 255), False),
        (MeasuredRange(0, 0, 65535), (0, 1), False),
        (MeasuredRange(0, 0.1, 1.1), (0, 1), True),
    ],
)
def test_ranges_that_do_not_suit_are_named(values: MeasuredRange, scale: Any, suits: bool) -> None:
    lines = value_range.warnings([values], scale)
    assert (not lines) == suits
    assert suits or f"values from {values.low:g} to {values.high:g}" in lines[0]


@pytest.fixture
def deep(coco_folder: Any) -> Any:
    """A dataset whose images are what its PNG files were, as floats of 0..1, in gray."""
    for i, entry in enumerate(coco_folder.content["images"]):
        entry["file_name"] = f"{i}.tif"
        path = coco_folder.root / "images" / f"{i}.png"
        gray = np.asarray(Image.open(path).convert("L"))
        (coco_folder.root / "images" / f"{i}.tif").write_bytes(encoded(gray / np.float32(255)))
    coco_folder.save()
    return coco_folder


def with_range(folder: Any, scale: tuple[float, float] | None) -> Any:
    config = folder.config()
    return replace(config, data=replace(config.data, value_range=scale))


def test_training_refuses_floats_without_a_range_and_says_which(
    deep: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"float.* set data\.value_range=\(0\.0, 1\.0\)") as refused:
        load_split(with_range(deep, None).data, "train")
    assert mrcnn(["check", str(deep.root)]) == 1
    assert str(refused.value) in capsys.readouterr().out.splitlines()
    assert mrcnn(["check", str(deep.root), "--value_range", "0", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("no problems found")
    assert mrcnn(["check", str(deep.root), "--value_range", "0", "255"]) == 0
    assert "warning: " in capsys.readouterr().out
    assert mrcnn(["check", str(deep.root), "--value_range", "1", "0"]) == 2


def test_training_evaluation_and_prediction_see_the_same_pixels(deep: Any) -> None:
    config = with_range(deep, (0.0, 1.0))
    dataset = load_split(config.data, "train")
    files = [Path(deep.root, "images", f"{i}.png") for i in range(len(dataset))]
    gray = [np.asarray(Image.open(file).convert("L")) for file in files]
    evaluated = [batch.images for batch in single_image.batches(dataset, config, lambda pixels, *_: _As(pixels))]
    for i, expected in enumerate(gray):
        np.testing.assert_array_equal(
            dataset.decode(dataset.record(i)[0]), read_image(files[i].with_suffix(".tif"), (0, 1))
        )
        np.testing.assert_array_equal(evaluated[i][..., 0], expected)


class _As:
    """In the place of a batch of images: the pixels themselves."""

    def __init__(self, images: np.ndarray):
        self.images = images

    def _replace(self, **_: Any) -> _As:
        return self


def test_prediction_uses_the_value_range_of_the_run(deep: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = deep.root / "images" / "0.tif"
    predict = Predictor(replace(with_range(deep, (0.0, 1.0)), model=ModelConfig(num_classes=2)), {})
    given = []

    def prepare(pixels: np.ndarray, *_: Any) -> Any:
        given.append(pixels)
        raise InterruptedError

    monkeypatch.setattr(single_image, "prepare", prepare)
    with pytest.raises(InterruptedError):
        predict([path])
    np.testing.assert_array_equal(given[0][..., 0], np.asarray(Image.open(path.with_suffix(".png")).convert("L")))
    with pytest.raises(ImageError, match=r"0\.tif: images whose type .* set data\.value_range"):
        read_image(path)


def test_dark_dataset_gives_a_warning(deep: Any, caplog: pytest.LogCaptureFixture) -> None:
    for path in (deep.root / "images").glob("*.tif"):
        gray = np.asarray(Image.open(path.with_suffix(".png")).convert("L"))
        path.write_bytes(encoded(gray.astype(np.uint16) * 16))
    with caplog.at_level(logging.WARNING):
        load_split(with_range(deep, None).data, "train")
    (line,) = [message for message in caplog.messages if "does not suit" in message]
    assert line.endswith("set data.value_range=(0.0, 4095.0)")
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        load_split(with_range(deep, (0.0, 4095.0)).data, "train")
    assert not caplog.messages


def test_images_of_few_values_are_named_by_check(
    coco_folder: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    black = np.zeros_like(np.asarray(Image.open(coco_folder.root / "images" / "2.png")))
    Image.fromarray(black).save(coco_folder.root / "images" / "2.png")
    coco_folder.save()
    assert mrcnn(["check", str(coco_folder.root)]) == 0
    printed = capsys.readouterr().out.splitlines()
    kind = "images with at most 8 distinct values (1): 2.png (id 98) has 1; check that these are images and not masks"
    assert f"warning: {coco_folder.root / 'coco.json'}: {kind}" in printed
    assert printed[-1].startswith("training would start, with 1 warning; ")
