"""COCO files of a folder, and the folders of their images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mrcnn_jax.errors import DataError
from mrcnn_jax.tools.check import sources


def move(folder: Any, json_path: str, images: str) -> Path:
    """Move the JSON and the images of a dataset; return its root."""
    folder.save()
    for name, target in (("coco.json", json_path), ("images", images)):
        (folder.root / name).rename(folder.root / "moving")
        (folder.root / target).parent.mkdir(parents=True, exist_ok=True)
        (folder.root / "moving").rename(folder.root / target)
    root: Path = folder.root
    return root


@pytest.mark.parametrize(
    ("json_path", "images"),
    [
        ("coco.json", "images"),
        ("annotations/instances_train2017.json", "train2017"),
        ("annotations/instances_train2017.json", "images/train2017"),
        ("train.json", "train"),
        ("labels.json", "data"),
        ("annotations/val.json", "images"),
    ],
)
def test_layouts(coco_folder: Any, json_path: str, images: str) -> None:
    root = move(coco_folder, json_path, images)
    for data in (root, root / json_path):
        (found,) = sources.find_files(data).files
        assert (found.path, found.folder) == (root / json_path, root / images)


def test_images_in_the_folder_of_the_json(coco_folder: Any) -> None:
    """Roboflow's layout: a folder for each split with its JSON."""
    root = move(coco_folder, "train/_annotations.coco.json", "all")
    shutil.copytree(root / "all", root / "valid")
    for path in (root / "all").iterdir():
        shutil.move(path, root / "train")
    (root / "all").rmdir()
    shutil.copy(root / "train/_annotations.coco.json", root / "valid")
    assert [(s.path.parent.name, s.folder.name) for s in sources.find_files(root).files] == [
        ("train",) * 2,
        ("valid",) * 2,
    ]


def test_same_names_in_two_folders(coco_folder: Any) -> None:
    """The name of the JSON decides."""
    root = move(coco_folder, "train.json", "train")
    shutil.copytree(root / "train", root / "val")
    shutil.copy(root / "train.json", root / "val.json")
    assert [s.folder.name for s in sources.find_files(root).files] == ["train", "val"]


def test_file_names_with_a_folder(coco_folder: Any) -> None:
    for image in coco_folder.content["images"]:
        image["file_name"] = f"images/{image['file_name']}"
    coco_folder.save()
    assert [s.folder for s in sources.find_files(coco_folder.root).files] == [coco_folder.root]


@pytest.mark.parametrize(("images", "found"), [("val2017", "."), ("images/val2017", "images"), ("images", "images")])
def test_lvis_names(coco_folder: Any, images: str, found: str) -> None:
    """LVIS has URLs in place of file names, and its images are in one folder or in one for each split."""
    for image in coco_folder.content["images"]:
        image["coco_url"] = f"http://images.cocodataset.org/val2017/{image.pop('file_name')}"
    root = move(coco_folder, "lvis_v1_val.json", images)
    (source,) = sources.find_files(root).files
    assert source.folder == root / found
    assert all((source.folder / image.file_name).is_file() for image in source.content.images)


def test_folder_with_most_of_the_images(coco_folder: Any) -> None:
    (coco_folder.root / "other").mkdir()
    shutil.copy(coco_folder.root / "images/0.png", coco_folder.root / "other")
    (coco_folder.root / "images/1.png").unlink()
    coco_folder.save()
    assert [s.folder.name for s in sources.find_files(coco_folder.root).files] == ["images"]


def test_files_of_other_kinds_are_skipped(coco_folder: Any) -> None:
    coco_folder.save()
    panoptic = {**coco_folder.content, "annotations": [{"image_id": 100, "file_name": "a.png", "segments_info": []}]}
    others = {"results": [], "captions": {"images": [], "annotations": []}, "panoptic": panoptic}
    for name, content in others.items():
        (coco_folder.root / f"{name}.json").write_text(json.dumps(content))
    found = sources.find_files(coco_folder.root)
    assert [source.path.name for source in found.files] == ["coco.json"]
    assert [Path(line.split(" is ")[0]).stem for line in found.skipped] == sorted(others)
    assert not found.broken


def test_file_with_refused_annotations_only_is_checked(coco_folder: Any) -> None:
    for annotation in coco_folder.content["annotations"]:
        annotation["category_id"] = 5
    coco_folder.save()
    (source,) = sources.find_files(coco_folder.root).files
    assert len(source.content.refusals) == len(coco_folder.content["annotations"])


def test_unreadable_folder_is_skipped(coco_folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    coco_folder.save()
    (coco_folder.root / "private").mkdir()
    scandir = sources.os.scandir

    def refusing(path: Any) -> Any:
        if Path(path).name == "private":
            raise PermissionError
        return scandir(path)

    monkeypatch.setattr(sources.os, "scandir", refusing)
    assert [s.folder.name for s in sources.find_files(coco_folder.root).files] == ["images"]


def test_given_folder_is_used(coco_folder: Any, tmp_path: Path) -> None:
    coco_folder.save()
    assert [s.folder for s in sources.find_files(coco_folder.root, tmp_path).files] == [tmp_path]
    with pytest.raises(DataError, match=r"no folder .*nowhere; give"):
        sources.find_files(coco_folder.root, tmp_path / "nowhere")
