"""Images with predictions and annotations: positions, byte budget, and selection."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from support import fake_results
from support.outlines import corners

from mrcnn_jax.data import image_files
from mrcnn_jax.evaluation.analysis import Analysis, ImageResult, Instance
from mrcnn_jax.tools.report.pictures import Legend, figure
from mrcnn_jax.tools.report.select_images import select_images

SCALE = 640 / fake_results.WIDTH
LEGEND = Legend(fake_results.NAMES, {3: 0, 7: 1, 9: 2, 12: 3}, {9: [(0, 1), (1, 2)]})


def drawings(markup: str) -> list[str]:
    """The SVGs of predictions and annotations."""
    return re.findall(r"<svg.*?</svg>", markup, re.S)


def layers(svg: str) -> list[str]:
    found = re.findall(r'<g class="(?:masks|boxes|skeletons|names)">', svg)
    assert len(found) == 4
    return re.split(r'<g class="(?:masks|boxes|skeletons|names)">', svg)[1:]


@pytest.fixture
def first(analysis: Analysis, made: Path) -> str:
    return figure("worst", "image0", analysis.images[0], made / "images", LEGEND, 60_000)


def test_position_of_masks(first: str, analysis: Analysis) -> None:
    for svg, predicted in zip(drawings(first), (True, False), strict=True):
        instances = [one for one in analysis.images[0].instances if one.predicted == predicted]
        ordered = sorted(instances, key=lambda one: -np.prod(one.box[2:] - one.box[:2]))
        drawn = re.findall(r'<path d="([^"]*)" class="o-(\w+)"', layers(svg)[0])
        assert [outcome for _, outcome in drawn] == [one.outcome for one in ordered]
        for (d, _), one in zip(drawn, ordered, strict=True):
            found = np.zeros((fake_results.HEIGHT * 8, fake_results.WIDTH * 8), np.uint8)
            cv2.fillPoly(found, [np.rint(p / 4 / SCALE * 8).astype(np.int32) for p in corners(d)], 1)
            true = np.kron(coco_mask.decode(one.segmentation), np.ones((8, 8), np.uint8))
            # The tolerance of 0.8 units is 1.6 of these small pixels; filling rounds by one more.
            near = np.ones((7, 7), np.uint8)
            assert not (found > cv2.dilate(true, near)).any()
            assert not (found < cv2.erode(true, near)).any()


def test_image_that_cannot_be_drawn(
    analysis: Analysis, made: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(image_files, "decode", fail)
    markup = figure("worst", "image0", analysis.images[0], made / "images", LEGEND, 60_000)
    assert caplog.messages == ["image 100 (0.png) cannot be drawn: MemoryError"]
    assert "it cannot be drawn" in markup
    assert "0.png" in markup
    assert drawings(markup) == []


def test_layers_have_the_same_order(first: str) -> None:
    """report.js identifies the parts of an instance by their index."""
    for svg, count in zip(drawings(first), (6, 5), strict=True):
        masks, boxes, skeletons, names = layers(svg)
        assert masks.count("<path") == boxes.count("<rect") == names.count("<text") == count
        assert len(re.findall(r"<g(?: class=\"o-\w+\")?>", skeletons)) == count


def test_data_attributes(first: str) -> None:
    predicted, annotated = (layers(svg)[1] for svg in drawings(first))
    assert sorted(re.findall(r'data-score="([\d.]+)"', predicted)) == sorted(
        f"{score:.4f}" for score in (0.95, 0.6, 0.9, 0.8, 0.7, 0.65)
    )
    assert "data-score" not in annotated
    assert re.findall(r'data-outcome="(\w+)"', annotated).count("missed") == 4
    assert sorted(re.findall(r'data-class="(\d)"', annotated)) == ["0", "1", "1", "1", "2"]
    assert "kite 0.80: poor localization" in predicted


def test_keypoints_are_at_pixel_centers(analysis: Analysis, made: Path) -> None:
    """The foot is annotated as hidden, and predicted with a score of 1."""
    markup = figure("best", "image1", analysis.images[1], made / "images", LEGEND, 60_000)
    for svg, hidden in zip(drawings(markup), (0, 1), strict=True):
        skeletons = layers(svg)[2]
        places = [(float(x), float(y)) for x, y in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', skeletons)]
        for x, y in ((100, 25), (110, 40), (100, 55)):
            assert ((x + 0.5) * SCALE, (y + 0.5) * SCALE) in places
        assert skeletons.count('class="hidden"') == hidden


def test_one_photograph_for_both_drawings(first: str, made: Path) -> None:
    (url,) = re.findall(r'href="data:image/jpeg;base64,([^"]*)"', first)
    pixels = cv2.imdecode(np.frombuffer(base64.b64decode(url), np.uint8), cv2.IMREAD_COLOR)
    true = cv2.imread(str(made / "images" / "0.png"))
    assert np.abs(pixels.astype(int) - true).mean() < 6
    assert '<use href="#image0-photograph">' in drawings(first)[1]


def test_byte_budget(made: Path) -> None:
    """The smallest instances are left out and counted."""
    rng = np.random.default_rng(0)
    instances = []
    for k in range(400):
        bitmap = np.zeros((fake_results.HEIGHT, fake_results.WIDTH), np.uint8)
        x, y, side = (int(n) for n in rng.integers((0, 0, 5), (120, 80, 40)))
        bitmap[y : y + side, x : x + side] = rng.integers(0, 2, bitmap[y : y + side, x : x + side].shape)
        runs = coco_mask.encode(np.asfortranarray(bitmap))
        box = np.array([x, y, x + side, y + side], float)
        instances.append(Instance(3, k % 2 == 0, 0.7, box, runs, None, "background" if k % 2 == 0 else "missed"))
    result = ImageResult(1, "0.png", 120, 160, frozenset({3}), 0.0, 0, 200, 200, tuple(instances))
    markup = figure("worst", "image0", result, made / "images", LEGEND, 60_000)
    assert len(markup) < 75_000
    drawn = [float(width) for width in re.findall(r'<rect [^>]*width="([\d.]+)"', drawings(markup)[0])]
    assert 0 < len(drawn) < 200
    assert drawn == sorted(drawn, reverse=True)
    assert f"{400 - markup.count('<rect')} small instances not drawn" in markup


def result(image_id: int, quality: float, classes: set[int], wrong: int = 0) -> ImageResult:
    one = Instance(3, False, 1.0, np.zeros(4), None, None, "found")
    return ImageResult(image_id, f"{image_id}.png", 9, 9, frozenset(classes), quality, 3, wrong, 0, (one,))


def test_select_images() -> None:
    images = [result(k, k / 100, {1}, wrong=k) for k in range(100)]
    images += [
        result(100, 0.5, {1, 2}),
        result(101, 0.4, {2, 5}),
        ImageResult(102, "", 9, 9, frozenset(), 1, 0, 0, 0, ()),
    ]
    selected = select_images(images)
    ids = {group: [image.image_id for name, image in selected if name == group] for group, _ in selected}
    assert ids["worst"] == list(range(12))
    assert ids["best"] == list(range(99, 87, -1))
    assert len(ids["random"]) == 12
    assert len({image.image_id for _, image in selected}) == len(selected)
    assert {class_id for _, image in selected for class_id in image.category_ids} == {1, 2, 5}
    assert select_images(images) == selected


def test_few_images_are_not_both_best_and_worst() -> None:
    selected = select_images([result(k, q, {1}) for k, q in enumerate((0.9, 0.1, 0.5))])
    assert [(group, image.image_id) for group, image in selected] == [("worst", 1), ("worst", 2), ("best", 0)]
