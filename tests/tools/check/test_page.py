"""The HTML page of a dataset: content, size, and escaped names."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from support.markup import Page

from mrcnn_jax.cli import main as mrcnn


def check(folder: Any, status: int = 0) -> Page:
    folder.save()
    output = folder.root.parent / "page.html"
    assert mrcnn(["check", str(folder.root), "--output", str(output)]) == status
    return Page(output)


def test_page_of_a_clean_dataset(coco_folder: Any) -> None:
    page = check(coco_folder)
    assert "Training starts and uses the whole dataset." in page.text
    for text in ("Image sizes", "Aspect ratios", "Instances per image", "Object areas", "Class frequencies", "kite"):
        assert text in page.text
    assert page.counts["image"] == page.counts["figure"] - 5  # minus the charts
    identities = [value for _, name, value in page.attributes if name == "id"]
    assert len(set(identities)) == len(identities)
    links = {value for tag, name, value in page.attributes if (tag, name) == ("a", "href")}
    assert links <= {f"#{identity}" for identity in identities}


def test_nothing_is_loaded_or_run(coco_folder: Any) -> None:
    page = check(coco_folder)
    assert not {"script", "link", "iframe", "object", "foreignobject", "base"} & set(page.counts)
    assert not [name for _, name, _ in page.attributes if name.startswith("on") or name == "src"]
    for _, name, value in page.attributes:
        assert name != "href" or value.startswith(("#", "data:image/jpeg;base64,"))
    assert ("meta", "content", "default-src 'none'; img-src data:; style-src 'unsafe-inline'") in page.attributes
    assert "url(" not in page.style
    assert "@import" not in page.style
    assert "prefers-color-scheme: dark" in page.style


EVIL = """<script>alert(1)</script>"><img src=x onerror=alert(1)>'</title></style>&amp;{}%s"""


def test_names_are_escaped(coco_folder: Any) -> None:
    name = EVIL.replace("/", "|") + ".png"  # file names cannot contain a slash
    (coco_folder.root / "images" / "0.png").rename(coco_folder.root / "images" / name)
    coco_folder.content["images"][0]["file_name"] = name
    coco_folder.content["categories"] = [{"id": 20, "name": EVIL}, {"id": 3, "name": "half a pair: \ud800"}]
    path = coco_folder.save()
    path.rename(coco_folder.root / "<b>.json")
    output = coco_folder.root.parent / "page.html"
    assert mrcnn(["check", str(coco_folder.root / "<b>.json"), "--output", str(output)]) == 0
    page = Page(output)
    assert not {"script", "img"} & set(page.counts)
    assert "<script" not in output.read_text()
    assert not [attribute for attribute in page.attributes if attribute[1].startswith("on")]
    assert EVIL in page.text
    assert name in page.text
    assert "<b>.json" in page.text


def test_findings(coco_folder: Any) -> None:
    coco_folder.add(98, [1, 1, 5, 0], id=918)
    coco_folder.add(97, [1, 1, 5, 5], id=919, category_id=7)
    (coco_folder.root / "images" / "1.png").unlink()
    page = check(coco_folder, status=1)
    assert "Training does not start with this dataset." in page.text
    assert "bbox without area (annotation dropped) in 1 annotation: 918 (image 98)" in page.text
    assert "annotation 919 (image 97) has category_id 7" in page.text
    assert "1.png (id 99); add the files, or remove the images from the JSON" in page.text
    assert "With findings" in page.text
    assert page.text.count("cannot be shown") == 1


def test_dropped_annotations(coco_folder: Any) -> None:
    coco_folder.add(98, [1, 1, 5, 0])
    assert "Training starts, without what is listed here." in check(coco_folder, status=1).text


def test_keypoints(coco_folder: Any) -> None:
    coco_folder.add_keypoints()
    page = check(coco_folder)
    assert ("g", "class", "c1") in page.attributes
    assert any(tag == "circle" and name == "class" and "hidden" in value for tag, name, value in page.attributes)


def test_several_files(coco_folder: Any) -> None:
    content = coco_folder.content
    for name, part in (("train.json", content["images"][:4]), ("val.json", content["images"][3:])):
        ids = {image["id"] for image in part}
        annotations = [a for a in content["annotations"] if a["image_id"] in ids]
        text = json.dumps({**content, "images": part, "annotations": annotations})
        (coco_folder.root / name).write_text(text)
    output = coco_folder.root.parent / "page.html"
    assert mrcnn(["check", str(coco_folder.root), "--output", str(output)]) == 0
    page = Page(output)
    assert page.counts["section"] == 2
    assert "share images (1): 3.png (id 97)" in page.text


@pytest.mark.medium
def test_long_tail(coco_folder: Any) -> None:
    """As many classes as in LVIS, most of them rare."""
    coco_folder.content["annotations"].clear()
    coco_folder.content["categories"] = [{"id": 5 * k, "name": f"class number {k}"} for k in range(1, 1204)]
    ranks = np.random.default_rng(0).zipf(1.4, 4000)
    for i, k in enumerate(ranks[ranks <= 1203].tolist()):
        coco_folder.add(100 - i % 7, [1, 1, 5, 5], category_id=5 * k)
    page = check(coco_folder)
    rows = page.text.count("class number ")
    assert rows >= 1203
    assert page.counts["tr"] == 1204
    unused = 1203 - len(set(ranks[ranks <= 1203].tolist()))
    assert f"1,203, {unused} without instances" in page.text
    assert [value for _, name, value in page.attributes if name == "class"].count("unused") == unused


@pytest.mark.medium
def test_page_size_is_bounded(coco_folder: Any) -> None:
    """Many annotations, most of them faulty."""
    noise = np.random.default_rng(0)
    for i in range(3000):
        corners = noise.uniform(0, 40, (40, 2)).round(3).ravel().tolist()
        coco_folder.add(100 - i % 7, [0, 0, 40, 40], segmentation=[corners])
    for i in range(60_000):
        coco_folder.add(94, [0, 0, 0, 0], id=1_000_000 + i)
    check(coco_folder, status=1)
    assert (coco_folder.root.parent / "page.html").stat().st_size < 5_000_000
