"""Tests of the procedural datasets."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import cv2
import numpy as np
import pytest
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO

from mrcnn_jax.config import DataConfig, KeypointHeadConfig, ShapesConfig, SplitConfig
from mrcnn_jax.data import annotations, load_split
from mrcnn_jax.data.categories import infer_flip_map
from mrcnn_jax.data.synthetic import generate, outlines, people, simple
from mrcnn_jax.errors import DataError

SMALL = ShapesConfig(train_images=4, eval_images=2, image_size=128)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes") / "set"
    generate.write_dataset(SMALL, folder)
    return folder


@pytest.mark.parametrize("kind", [simple, outlines, people])
def test_images_differ_between_ids_but_not_between_runs(kind: ModuleType) -> None:
    first, _ = kind.render(np.random.default_rng(0), 128)
    again, _ = kind.render(np.random.default_rng(0), 128)
    other, _ = kind.render(np.random.default_rng(1), 128)
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


def test_some_figures_overlap_and_stay_visible() -> None:
    hidden = []
    for seed in range(20):
        _, figures = simple.render(np.random.default_rng(seed), 128)
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


def test_simple_images_are_those_of_the_published_results(root: Path) -> None:
    content = b"".join((root / f"{name}.json").read_bytes() for name in ("train", "val"))
    pixels = [cv2.imread(str(path)).tobytes() for path in sorted(root.rglob("*.png"))]
    assert len(pixels) == 6
    assert hashlib.sha256(content).hexdigest()[:16] == "0389b41db210b9b4"
    assert hashlib.sha256(b"".join(pixels)).hexdigest()[:16] == "8d0eb9a79412da89"


def test_a_folder_from_before_there_were_kinds_is_the_same_set(tmp_path: Path) -> None:
    root = tmp_path / "set"
    tiny = ShapesConfig(train_images=1, eval_images=1, image_size=32)
    generate.write_dataset(tiny, root)
    recipe = json.loads((root / "shapes.json").read_text())
    assert recipe.pop("kind") == "simple"
    assert recipe.pop("outlines") == []
    assert recipe.pop("diameters") == [0, 0.6]
    assert recipe.pop("objects") == [4, 10]
    assert recipe.pop("one_class") is False
    (root / "shapes.json").write_text(json.dumps(recipe))
    inode = (root / "train.json").stat().st_ino
    generate.write_dataset(tiny, root)
    assert (root / "train.json").stat().st_ino == inode
    generate.write_dataset(dataclasses.replace(tiny, kind="outlines"), root)
    assert (root / "train.json").stat().st_ino != inode


@pytest.mark.parametrize("kind", ["outlines", "people"])
def test_other_kinds_are_written_and_read_alike(kind: Literal["outlines", "people"], tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, kind=kind)
    for name in ("a", "b"):
        generate.write_dataset(config, tmp_path / name)
    files = [path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file()]
    assert len(files) == 9
    for path in files:
        assert (tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes()
    splits = SplitConfig("train.json", "train"), SplitConfig("val.json", "val")
    data = DataConfig(str(tmp_path / "a"), *splits, shapes=config, cache_dir=str(tmp_path / "cache"))
    train = load_split(data, "train")
    assert not train.problems
    assert len(train) == 4
    assert train.has_masks
    assert len(train.categories.names) == len(generate._KINDS[kind].CATEGORIES)
    truth = COCO(str(train.annotations_path))
    for annotation in truth.loadAnns(truth.getAnnIds()):
        assert truth.annToMask(annotation).sum() == annotation["area"] > 0


def test_some_outlines_of_some_sizes(tmp_path: Path) -> None:
    root, names = tmp_path / "set", ("heart", "bar")
    chosen = dataclasses.replace(SMALL, kind="outlines", image_size=128, outlines=names, diameters=(0.3, 0.5))
    generate.write_dataset(chosen, root)
    content = json.loads((root / "train.json").read_text())
    assert {category["name"] for category in content["categories"]} == set(names)
    assert {a["category_id"] for a in content["annotations"]} == {c["id"] for c in content["categories"]}
    longest = [max(a["bbox"][2:]) for a in content["annotations"]]
    assert 0.5 * 0.3 * 128 <= min(longest) <= max(longest) <= 0.5 * 128 + 1
    inode = (root / "train.json").stat().st_ino
    generate.write_dataset(chosen, root)
    assert (root / "train.json").stat().st_ino == inode
    with pytest.raises(DataError, match=r"data\.shapes\.outlines has unknown names hart; choose from circle, "):
        generate.write_dataset(dataclasses.replace(chosen, outlines=("hart",)), root)


def test_outlines_may_be_one_class(tmp_path: Path) -> None:
    many = dataclasses.replace(SMALL, kind="outlines", objects=(2, 3))
    generate.write_dataset(many, tmp_path / "many")
    generate.write_dataset(dataclasses.replace(many, one_class=True), tmp_path / "one")
    content = [json.loads((tmp_path / name / "train.json").read_text()) for name in ("many", "one")]
    assert content[1]["categories"] == [{"id": 1, "name": "figure"}]
    assert 2 * 4 <= len(content[0]["annotations"]) <= 3 * 4
    for annotation in content[0]["annotations"]:
        annotation["category_id"] = 1
    assert content[0]["annotations"] == content[1]["annotations"]


def test_people_bring_the_names_of_their_keypoints(tmp_path: Path) -> None:
    generate.write_dataset(dataclasses.replace(SMALL, kind="people"), tmp_path / "set")
    content = annotations.read(tmp_path / "set" / "train.json")
    pose = content.categories.keypoint_schema
    assert content.categories.names == ("person",)
    assert infer_flip_map(pose.names) == KeypointHeadConfig().flip_map
    assert pose.names[0] == "nose"
    assert len(pose.skeleton) == 19
    assert (15, 13) in pose.skeleton  # left ankle and knee
    for image in content.images:
        for annotation in image.annotations:
            assert annotation["num_keypoints"] == sum(v > 0 for v in annotation["keypoints"][2::3]) > 0


def test_written_once_and_again_for_another_recipe(tmp_path: Path) -> None:
    root = tmp_path / "set"
    tiny = ShapesConfig(train_images=1, eval_images=1, image_size=32)
    generate.write_dataset(tiny, root)
    inode = (root / "train.json").stat().st_ino
    generate.write_dataset(tiny, root)
    assert (root / "train.json").stat().st_ino == inode
    generate.write_dataset(ShapesConfig(train_images=2, eval_images=1, image_size=32), root)
    assert len(list((root / "train").iterdir())) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_the_faster_of_two_processes_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "set"
    tiny = ShapesConfig(train_images=1, eval_images=1, image_size=32)
    original = generate._write_split
    inodes = []

    def slower(*arguments: Any) -> None:
        original(*arguments)
        if not inodes:
            inodes.append(0)
            generate.write_dataset(tiny, root)  # another process writes the same meanwhile
            inodes[0] = (root / "train.json").stat().st_ino

    monkeypatch.setattr(generate, "_write_split", slower)
    generate.write_dataset(tiny, root)
    assert (root / "train.json").stat().st_ino == inodes[0]
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_several_that_replace_one_set_at_once(tmp_path: Path) -> None:
    """None of them falls over files that another one is removing."""
    root = tmp_path / "set"
    generate.write_dataset(ShapesConfig(train_images=100, eval_images=1, image_size=32), root)
    renewed = ShapesConfig(train_images=1, eval_images=1, image_size=32)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: generate.write_dataset(renewed, root), range(8)))
    assert [path.name for path in (root / "train").iterdir()] == ["000001.png"]
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="has other files; set it to an empty folder"):
        generate.write_dataset(SMALL, tmp_path)
    with pytest.raises(DataError, match=r"data\.root is empty"):
        generate.write_dataset(SMALL, Path(""))
    assert (tmp_path / "thesis.txt").exists()
