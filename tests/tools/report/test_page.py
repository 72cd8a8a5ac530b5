"""The HTML report: content, size, and escaped names."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from support import fake_results
from support.markup import Page

from mrcnn_jax.cli import main as mrcnn
from mrcnn_jax.evaluation.analysis import Analysis, Category, ClassScores, ImageResult, Instance
from mrcnn_jax.evaluation.coco_metrics import Scores
from mrcnn_jax.tools.report.write import render, write_report


@pytest.fixture(scope="module")
def written(scores: Scores, made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("page") / "report.html"
    write_report(scores, made / "images", output, title="made <up>")
    return output


def test_parts_of_the_page(written: Path, scores: Scores) -> None:
    read = Page(written)
    assert "Evaluation of made <up>" in read.text
    assert "5 images, 9 annotated instances of 3 of 4 classes." in read.text
    for heading in ("Scores", "Precision and recall", "Classes", "Errors", "Confusion", "Scores of predictions"):
        assert heading in read.text
    for iou_type in ("bbox", "segm", "keypoints"):
        assert f"{scores.metrics[f'{iou_type}/AP']:.3f}" in read.text
    assert read.counts["figure"] == 3 + 2 + 3 + 5  # curves, errors, histograms, images
    assert read.counts["image"] == 5
    assert read.counts["use"] == 5  # each photograph is stored once


def test_links_and_labels_have_targets(written: Path) -> None:
    read = Page(written)
    identities = [value for _, name, value in read.attributes if name == "id"]
    assert len(set(identities)) == len(identities)
    links = [value for _, name, value in read.attributes if name == "href" and not value.startswith("data:")]
    assert {link.removeprefix("#") for link in links} <= set(identities)
    assert {value for _, name, value in read.attributes if name == "for"} <= set(identities)


def test_nothing_is_loaded_and_one_script_is_run(written: Path) -> None:
    read = Page(written)
    assert read.counts["script"] == 1
    assert not {"link", "iframe", "object", "foreignobject", "base", "img"} & set(read.counts)
    assert not [name for _, name, _ in read.attributes if name.startswith("on") or name == "src"]
    assert all(v.startswith(("#", "data:image/jpeg;base64,")) for _, name, v in read.attributes if name == "href")
    (policy,) = [value for tag, name, value in read.attributes if (tag, name) == ("meta", "content") and "src" in value]
    (code,) = re.findall(r"<script>(.*?)</script>", written.read_text(), re.S)
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert "url(" not in read.style
    assert "@import" not in read.style


EVIL = """<script>alert(1)</script>"><img src=x onerror=alert(1)>'</title></style>&amp;{}%s\ud800"""


def test_names_are_escaped(tmp_path: Path) -> None:
    names = {**fake_results.NAMES, 3: EVIL}
    annotations, results = fake_results.make(tmp_path / EVIL[:8].replace("/", "|"), names)
    output = tmp_path / "report.html"
    images = str(annotations.parent / "images")
    assert mrcnn(["report", str(results), str(annotations), "--images", images, "--output", str(output)]) == 0
    read = Page(output)
    assert read.counts["script"] == 1
    assert "img" not in read.counts
    assert not [name for _, name, _ in read.attributes if name.startswith("on")]
    assert EVIL.replace("\ud800", "?") in read.text


def many_classes(analysis: Analysis, count: int) -> Analysis:
    """As many classes as in LVIS."""
    categories = tuple(Category(k, f"class number {k}", k % 5) for k in range(count))
    tables = []
    for table in analysis.tables:
        classes = tuple(
            ClassScores(k, f"class number {k}", k % 5, 0.123, 0.234, 0.345, -1.0, 0.1, 0.2, 0.3) for k in range(count)
        )
        precision = np.full((10, 101, count), 0.5)
        confusion = np.random.default_rng(0).integers(0, 3, (count + 1, count + 1))
        tables.append(dataclasses.replace(table, classes=classes, precision=precision, confusion=confusion))
    return dataclasses.replace(analysis, tables=tuple(tables), categories=categories)


@pytest.mark.medium
def test_size_is_bounded(analysis: Analysis, tmp_path: Path) -> None:
    """1,200 classes, and sixty images of incompressible noise with 200 instances each."""
    wide = many_classes(analysis, 1200)
    instance = analysis.images[0].instances[0]
    rng = np.random.default_rng(0)
    images = []
    for i in range(60):
        cv2.imwrite(str(tmp_path / f"{i}.png"), rng.integers(0, 256, (480, 640, 3), np.uint8))
        instances = tuple(
            Instance(20 * i + k // 10, k % 2 == 0, 0.7, instance.box, instance.segmentation, None, "background")
            for k in range(200)
        )
        classes = frozenset(one.category_id for one in instances)
        images.append(ImageResult(i, f"{i}.png", 120, 160, classes, i / 60, 0, 100, 100, instances))
    drawn = render(
        "many", dataclasses.replace(wide, images=tuple(images)), tmp_path, {}, lambda images, total: list(images)
    )
    assert drawn.count("<image") == 52
    assert 2_000_000 < len(drawn.encode()) < 5_000_000


def test_results_without_masks_and_images(analysis: Analysis, tmp_path: Path) -> None:
    """Boxes only, no predictions, and no image files."""
    images = tuple(
        dataclasses.replace(
            image,
            instances=tuple(
                dataclasses.replace(one, segmentation=None, keypoints=None)
                for one in image.instances
                if not one.predicted
            ),
        )
        for image in analysis.images
    )
    boxes = dataclasses.replace(analysis, tables=analysis.tables[:1], images=images)
    output = tmp_path / "report.html"
    output.write_text(render("boxes", boxes, tmp_path / "nowhere", {}, lambda images, total: list(images)))
    read = Page(output)
    assert read.counts["image"] == 0
    assert read.text.count("the file cannot be read") == 5
    toggles = {value for tag, name, value in read.attributes if tag == "input" and name == "class"}
    assert toggles == {"show-boxes", "show-names"}


def test_notes_are_in_the_header(analysis: Analysis, tmp_path: Path) -> None:
    notes = ("3 of 9 instances have no usable mask: left out of the table of masks", "2 of 9 results have no masks")
    rendered = render("some", dataclasses.replace(analysis, notes=notes), tmp_path, {}, lambda made, _: made)
    header = rendered[: rendered.index("</header>")]
    assert all(f"{note}." in header for note in notes)
