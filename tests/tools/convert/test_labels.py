"""Label images: stored values, and regions that reproduce every pixel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image
from support.convert_folders import pixels, save

from mrcnn_jax.tools.convert import labels
from mrcnn_jax.tools.convert.files import ConversionError

VALUES = np.array([[0, 1, 1, 7], [0, 255, 1, 7], [0, 0, 0, 200]], np.uint8)
GRAY = VALUES[..., None].repeat(3, axis=-1)


@given(arrays(np.int32, array_shapes(min_dims=2, max_dims=2, max_side=7), elements=st.integers(0, 4)))
def test_regions_reproduce_the_values(values: np.ndarray) -> None:
    regions = labels.encode_regions(Path("mask.png"), values)
    assert list(regions) == sorted(set(np.unique(values)) - {0})
    assert labels.unique_values(values) == np.unique(values).tolist()
    for value, region in regions.items():
        inside = values == value
        rows, columns = np.nonzero(inside)
        np.testing.assert_array_equal(pixels(region), inside)
        assert region["area"] == inside.sum()
        left, top, right, bottom = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        assert region["bbox"] == [left, top, right - left, bottom - top]


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(VALUES),
        Image.fromarray(VALUES.astype(np.uint16)),
        Image.fromarray(GRAY),
        Image.fromarray(np.dstack([GRAY, 255 - VALUES])),  # transparency is ignored
        Image.fromarray(VALUES).convert("LA"),
    ],
    ids=["8 bits", "16 bits", "equal channels", "equal channels, alpha", "gray, alpha"],
)
def test_values_are_read_as_stored(image: Image.Image, tmp_path: Path) -> None:
    np.testing.assert_array_equal(labels.read(save(tmp_path / "mask.png", image), (3, 4)), VALUES)


def test_32_bit_values(tmp_path: Path) -> None:
    values = VALUES.astype(np.int32) * 70_000
    np.testing.assert_array_equal(labels.read(save(tmp_path / "mask.tif", values), (3, 4)), values)


def test_16_bit_values(tmp_path: Path) -> None:
    values = VALUES.astype(np.uint16) * 257
    np.testing.assert_array_equal(labels.read(save(tmp_path / "mask.png", values), (3, 4)), values)


def test_palette_indices_are_the_values(tmp_path: Path) -> None:
    picture = Image.fromarray(VALUES, "L")
    picture.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    assert picture.mode == "P"
    np.testing.assert_array_equal(labels.read(save(tmp_path / "mask.png", picture), (3, 4)), VALUES)


def test_one_bit_values(tmp_path: Path) -> None:
    path = save(tmp_path / "mask.png", Image.fromarray(VALUES > 0))
    np.testing.assert_array_equal(labels.read(path, (3, 4)), VALUES > 0)


def test_colors_as_values(tmp_path: Path) -> None:
    colors = np.zeros((2, 2, 3), np.uint8)
    colors[0, 1] = (0x12, 0x34, 0x56)
    path = save(tmp_path / "mask.png", colors)
    assert labels.read(path, (2, 2)).tolist() == [[0, 0x123456], [0, 0]]
    gray = save(tmp_path / "gray.png", GRAY)
    assert labels.read(gray, (3, 4), colors=True)[1, 1] == 0xFFFFFF
    palette = Image.fromarray(colors).quantize(2)
    assert labels.read(save(tmp_path / "palette.png", palette), (2, 2), colors=True)[0, 1] == 0x123456


def test_jpeg_is_refused_under_any_name(tmp_path: Path) -> None:
    path = save(tmp_path / "mask.jpg", VALUES).rename(tmp_path / "mask.png")
    with pytest.raises(ConversionError, match=r"mask\.png \(JPEG\).*lossy formats such as JPEG change the values"):
        labels.read(path, (3, 4))


def test_wrong_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=r"mask\.png is 3x4, the image 4x3"):
        labels.read(save(tmp_path / "mask.png", VALUES), (4, 3))


@pytest.mark.parametrize("damage", [b"", b"no picture", None])
def test_unreadable_file_is_refused(damage: bytes | None, tmp_path: Path) -> None:
    path = save(tmp_path / "mask.png", np.random.default_rng(0).integers(0, 9, (64, 64), np.uint8))
    path.write_bytes(path.read_bytes()[:200] if damage is None else damage)
    with pytest.raises(ConversionError, match=r"cannot be read.*mask\.png"):
        labels.read(path, (64, 64))


def test_floats_and_stacks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=r"mode F"):
        labels.read(save(tmp_path / "mask.tif", VALUES.astype(np.float32)), (3, 4))
    stack = save(tmp_path / "b.tif", Image.fromarray(VALUES), save_all=True, append_images=[Image.fromarray(VALUES)])
    with pytest.raises(ConversionError, match=r"2 pages"):
        labels.read(stack, (3, 4))


def test_16_bit_colors_are_refused(tmp_path: Path) -> None:
    """Pillow would return their upper bytes only, so that values would coincide."""
    import cv2

    cv2.imwrite(str(tmp_path / "mask.png"), GRAY.astype(np.uint16) * 300)
    with pytest.raises(ConversionError, match=r"16-bit colors"):
        labels.read(tmp_path / "mask.png", (3, 4))


def test_photograph_is_refused() -> None:
    noise = np.arange(20_000, dtype=np.int32).reshape(100, 200)
    with pytest.raises(ConversionError, match=r"photo\.png has 20,000"):
        labels.encode_regions(Path("photo.png"), noise)
    assert len(labels.encode_regions(Path("cells.png"), noise[:50])) == 9_999


def test_components_are_8_connected() -> None:
    assert labels.connected_components(np.eye(3, dtype=bool)).max() == 1
    assert labels.connected_components(np.array([[1, 0, 1]], bool)).tolist() == [[1, 0, 2]]
