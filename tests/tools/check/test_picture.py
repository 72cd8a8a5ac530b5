"""Images with annotations: positions, and the byte budget."""

from __future__ import annotations

import base64
import re
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from support.outlines import corners, filled

from mrcnn_jax.data.annotations import ImageEntry
from mrcnn_jax.data.categories import Categories, KeypointSchema
from mrcnn_jax.tools.check.picture import draw

CATEGORIES = Categories((3, 20), ("boat", "kite"), (KeypointSchema(), KeypointSchema(("nose", "tail"), ((0, 1),))))
HEIGHT, WIDTH = 48, 64
SCALE = 640 / WIDTH  # units of the SVG per pixel
ALL = (0.0, 0.0, float(WIDTH), float(HEIGHT))
IMAGE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


def annotation(number: int, bbox: list[float], segmentation: Any = None, **fields: Any) -> dict[str, Any]:
    return {"id": number, "category_id": 3, "image_id": 5, "bbox": bbox, "segmentation": segmentation, **fields}


def entry(*annotations: dict[str, Any], size: tuple[int, int] = (HEIGHT, WIDTH)) -> ImageEntry:
    return ImageEntry(5, "5.png", *size, list(annotations))


def attributes(svg: str, name: str) -> list[dict[str, str]]:
    return [dict(re.findall(r'([\w-]+)="([^"]*)"', found)) for found in re.findall(rf"<{name}([^>]*)>", svg)]


def paths(svg: str) -> list[list[np.ndarray]]:
    """The polygons of each mask, in units of the SVG."""
    layer = re.search(r'<g class="masks"><g transform="scale\(([\d.]+)\)">(.*?)</g>', svg)
    assert layer
    return [[p * float(layer[1]) for p in corners(a["d"])] for a in attributes(layer[2], "path")]


def photograph(svg: str) -> np.ndarray:
    (image,) = attributes(svg, "image")
    content = base64.b64decode(image["href"].removeprefix("data:image/jpeg;base64,"))
    return cv2.cvtColor(cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def bitmap(seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal((HEIGHT, WIDTH)).astype(np.float32)
    return (cv2.GaussianBlur(noise, (0, 0), 3) > 0.05).astype(np.uint8)


def encoded(mask: np.ndarray) -> dict[str, Any]:
    rle = coco_mask.encode(np.asfortranarray(mask))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


def test_run_length_masks_are_exact() -> None:
    first, second = bitmap(1), bitmap(2)
    boxes = [[10.0, 5.0, 40.0, 30.0], [0.0, 0.0, 20.0, 48.0]]
    svg, left_out = draw(
        IMAGE,
        entry(annotation(1, boxes[0], encoded(first)), annotation(2, boxes[1], encoded(second), iscrowd=1)),
        CATEGORIES,
        ALL,
        100_000,
    )
    drawn = paths(svg)
    assert left_out == 0
    for polygons, mask, (x, y, w, h) in zip(drawn, (first, second), boxes, strict=True):
        inside = np.zeros_like(mask)
        inside[int(y) : int(y + h), int(x) : int(x + w)] = 1
        pixels = [np.rint(polygon / SCALE).astype(int) for polygon in polygons]
        np.testing.assert_allclose(np.concatenate(pixels) * SCALE, np.concatenate(polygons))
        np.testing.assert_array_equal(filled(pixels, (HEIGHT, WIDTH)), mask & inside)


def test_polygons_are_exact() -> None:
    rings = [[3.14, 2.72, 20.5, 4.0, 9.99, 30.01], [40.0, 40.0, 50.0, 40.0, 45.0, 45.0]]
    svg, _ = draw(IMAGE, entry(annotation(1, [3, 2, 47, 43], rings)), CATEGORIES, ALL, 100_000)
    (drawn,) = paths(svg)
    for polygon, ring in zip(drawn, rings, strict=True):
        np.testing.assert_allclose(polygon, np.reshape(ring, (-1, 2)) * SCALE, atol=0.0501)


def test_photograph_boxes_and_names() -> None:
    svg, _ = draw(IMAGE, entry(annotation(9, [10.5, 2.5, 15, 24])), CATEGORIES, ALL, 100_000)
    assert photograph(svg).shape == IMAGE.shape  # not enlarged: browsers do that
    assert np.abs(photograph(svg).astype(int).mean(axis=(0, 1)) - IMAGE.mean(axis=(0, 1))).max() < 3
    (box,) = attributes(svg, "rect")
    assert {name: float(box[name]) for name in ("x", "y", "width", "height")} == {
        "x": 105, "y": 25, "width": 150, "height": 240
    }  # fmt: skip
    assert re.findall(r"<text[^>]*>([^<]*)<", svg) == ["boat"]
    assert re.findall(r"<title>([^<]*)<", svg) == ["boat, annotation 9"]
    assert attributes(svg, "svg")[0]["viewBox"] == "0 0 640 480"


def test_keypoints_and_their_skeleton() -> None:
    both = annotation(1, [0, 0, 30, 30], category_id=20, keypoints=[4, 6, 2, 20, 10, 1])
    one = annotation(2, [0, 0, 40, 40], category_id=20, keypoints=[4, 6, 2, 0, 0, 0])
    svg, _ = draw(IMAGE, entry(both, one), CATEGORIES, ALL, 100_000)
    dots = attributes(svg, "circle")
    assert [(float(dot["cx"]), float(dot["cy"])) for dot in dots] == [(45, 65), (45, 65), (205, 105)]  # pixel centers
    assert [dot.get("class") == "hidden" for dot in dots] == [False, False, True]
    skeletons = svg[svg.index('<g class="skeletons">') :]
    assert [line["d"] for line in attributes(skeletons, "path")] == ["M45.0 65.0L205.0 105.0"]


def test_window() -> None:
    near, far = annotation(1, [20, 20, 4, 4], [[20, 20, 24, 20, 24, 24]]), annotation(2, [50, 40, 4, 4])
    svg, _ = draw(IMAGE, entry(near, far), CATEGORIES, (16.0, 16.0, 32.0, 24.0), 100_000)
    (box,) = attributes(svg, "rect")
    assert (float(box["x"]), float(box["y"])) == (160, 160)
    np.testing.assert_allclose(paths(svg)[0][0], [[160, 160], [320, 160], [320, 320]])
    assert photograph(svg).shape[:2] == (8, 16)
    assert attributes(svg, "svg")[0]["viewBox"] == "0 0 640 320"


def test_image_smaller_than_in_the_json() -> None:
    """Drawn at its own scale, with black outside of it."""
    svg, _ = draw(IMAGE, entry(size=(40, 80)), CATEGORIES, (0.0, 0.0, 80.0, 40.0), 100_000)
    shown = photograph(svg)
    assert shown.shape == (40, 80, 3)
    assert np.all(shown[:, 66:] < 40)


def test_names_do_not_overlap_and_are_shortened() -> None:
    categories = Categories((3,), ("a" * 60,))
    boxes = [annotation(i, [float(i), 5, 20, 20]) for i in range(5)]
    svg, _ = draw(IMAGE, entry(*boxes), categories, ALL, 100_000)
    assert list(filter(None, re.findall(r"<text[^>]*>([^<]*)<", svg))) == ["a" * 23 + "…"]
    assert svg.count("<title>" + "a" * 60) == 5


def test_byte_budget() -> None:
    """Outlines become coarser before any is left out; the smallest are left out first, and counted."""
    image = np.random.default_rng(0).integers(0, 256, (1000, 1000, 3), np.uint8)
    turns = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    circle = np.stack([np.cos(turns), np.sin(turns)], axis=1)
    rng = np.random.default_rng(1)
    many = []
    for i in range(400):
        x, y, radius = *rng.uniform(100, 900, 2), 5 + i / 8
        many.append(
            annotation(i, [x - radius, y - radius, 2 * radius, 2 * radius], [(circle * radius + (x, y)).ravel()])
        )
    window = (0.0, 0.0, 1000.0, 1000.0)
    crowd = ImageEntry(5, "5.png", 1000, 1000, many)
    lengths, counts = [], []
    for byte_budget in (2_000_000, 1_000_000, 400_000, 50_000):
        svg, left_out = draw(image, crowd, CATEGORIES, window, byte_budget)
        lengths.append(len(svg))
        counts.append(left_out)
        assert len(paths(svg)) == 400 - left_out
        assert len(svg) <= byte_budget
    assert lengths == sorted(lengths, reverse=True)
    assert counts[0] == counts[1] == 0 < counts[2] < counts[3]
    sides = [np.ptp(polygons[0], axis=0).max() for polygons in paths(svg)]
    assert min(sides) > 2 * (5 + counts[3] / 8) * 0.64 - 2


def test_byte_budget_of_skeletons() -> None:
    people = [
        annotation(i, [i % 60, i % 40, 4, 4], category_id=20, keypoints=[4, 6, 2, 20, 10, 1]) for i in range(10_000)
    ]
    svg, left_out = draw(IMAGE, entry(*people), CATEGORIES, ALL, 50_000)
    assert len(svg) <= 50_000
    assert 9_000 < left_out < 10_000


@pytest.mark.parametrize("side", [(1, 1), (20000, 30), (30, 20000)])
def test_any_shape(side: tuple[int, int]) -> None:
    image = np.zeros((*side, 3), np.uint8)
    window = (0.0, 0.0, float(side[1]), float(side[0]))
    svg, _ = draw(image, entry(size=side), CATEGORIES, window, 50_000)
    assert max(photograph(svg).shape) <= 640
