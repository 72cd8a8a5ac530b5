"""The procedural data set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO

from mrcnn_jax.config import DataConfig, ShapesConfig, SplitConfig
from mrcnn_jax.data import DataError, load_split, shapes

SMALL = ShapesConfig(train_images=4, eval_images=2, image_size=128)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes") / "set"
    shapes.write(SMALL, folder)
    return folder


def test_pictures_differ_between_images_and_splits_but_not_between_runs() -> None:
    first, _ = shapes.render(np.random.default_rng(0), 128)
    again, _ = shapes.render(np.random.default_rng(0), 128)
    other, _ = shapes.render(np.random.default_rng(1), 128)
    assert (first == again).all()
    assert (first != other).mean() > 0.5


def test_masks_are_what_is_visible(root: Path) -> None:
    content = json.loads((root / "train.json").read_text())
    for image in content["images"]:
        annotations = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        masks = np.stack([mask_utils.decode(a["segmentation"]) for a in annotations])
        assert masks.sum(axis=0).max() == 1  # no pixel belongs to two figures
        for annotation, mask in zip(annotations, masks, strict=True):
            assert mask.sum() == annotation["area"] > 30
            x, y, w, h = map(int, annotation["bbox"])
            assert mask[y : y + h, x : x + w].sum() == mask.sum()
            assert max(w, h) <= 66
        pixels = cv2.imread(str(root / "train" / image["file_name"]))
        assert pixels.shape == (128, 128, 3)


@pytest.mark.parametrize(
    ("name", "area"), [("circle", np.pi * 0.81), ("square", 2.25), ("triangle", 1.299), ("star", 1.176), ("cross", 1.8)]
)
def test_figures_have_the_area_of_their_formula(name: str, area: float) -> None:
    for angle in (0.0, 0.7):
        mask = shapes._outline(name, angle, np.array([100.0, 100.0]), 80.0, 200)
        assert mask.sum() / 80**2 == pytest.approx(area, rel=0.02)  # the outline passes through about 1 % of the pixels


def test_some_figures_overlap_and_stay_visible() -> None:
    hidden = []
    for seed in range(20):
        _, figures = shapes.render(np.random.default_rng(seed), 128)
        assert 3 <= len(figures) <= 8
        hidden += [1 - figure.mask.sum() / figure.area for figure in figures]
    assert max(hidden) <= 0.4
    assert np.mean(np.array(hidden) > 0) > 0.1


def test_it_is_read_like_any_other_data(root: Path, tmp_path: Path) -> None:
    data = DataConfig(
        root=str(root),
        train=SplitConfig("train.json", "train"),
        eval=SplitConfig("val.json", "val"),
        shapes=SMALL,
        cache_dir=str(tmp_path),
    )
    train, val = load_split(data, "train"), load_split(data, "eval")
    assert (len(train), len(val)) == (4, 2)
    assert train.categories == val.categories
    assert train.categories.ids == (3, 8, 17, 44, 90)
    assert train.categories.names == ("circle", "square", "triangle", "star", "cross")
    assert train.has_masks
    assert COCO(str(val.annotations_path)).getImgIds() == val.ids.tolist()


def test_written_once_and_again_for_another_recipe(tmp_path: Path) -> None:
    root = tmp_path / "set"
    tiny = ShapesConfig(train_images=1, eval_images=1, image_size=32)
    shapes.write(tiny, root)
    inode = (root / "train.json").stat().st_ino
    shapes.write(tiny, root)
    assert (root / "train.json").stat().st_ino == inode
    shapes.write(ShapesConfig(train_images=2, eval_images=1, image_size=32), root)
    assert len(list((root / "train").iterdir())) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_the_faster_of_two_processes_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "set"
    tiny = ShapesConfig(train_images=1, eval_images=1, image_size=32)
    original = shapes._replace
    inodes = []

    def slower(*arguments: Any) -> None:
        if not inodes:
            inodes.append(0)
            shapes.write(tiny, root)  # another process writes the same meanwhile
            inodes[0] = (root / "train.json").stat().st_ino
        original(*arguments)

    monkeypatch.setattr(shapes, "_replace", slower)
    shapes.write(tiny, root)
    assert (root / "train.json").stat().st_ino == inodes[0]
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_folder_of_someone_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="holds other files; name an empty folder"):
        shapes.write(SMALL, tmp_path)
    with pytest.raises(DataError, match=r"data\.root is empty"):
        shapes.write(SMALL, Path(""))
    assert (tmp_path / "thesis.txt").exists()
