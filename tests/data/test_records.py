"""Tests of prepared records: their content, when they are prepared again, and atomic replacement."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import pytest
from tensorflow_datasets.core import shuffle

from mrcnn_jax.config import DataConfig, SplitConfig
from mrcnn_jax.data import annotations, image_files, load_split, record_files, records
from mrcnn_jax.data.findings import describe_refusals
from mrcnn_jax.errors import DataError


@pytest.fixture
def preparations(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that get prepared while a test runs."""
    prepared: list[Path] = []
    original = records._prepare

    def count(json_path: Path, images: Path, image_ids: Any, folder: Path) -> records.RecordIndex:
        prepared.append(folder)
        return original(json_path, images, image_ids, folder)

    monkeypatch.setattr(records, "_prepare", count)
    return prepared


def check_records(coco_folder: Any) -> None:
    dataset = load_split(coco_folder.config().data, "train")
    assert len(dataset) == len(dataset.reader) == 7
    for i, image in enumerate(coco_folder.content["images"]):
        content, annotations = dataset.record(i)
        assert (
            content
            == (coco_folder.root / "images" / image["file_name"]).read_bytes()
            == dataset.image_path(i).read_bytes()
        )
        assert annotations == [a for a in coco_folder.content["annotations"] if a["image_id"] == image["id"]]
        assert (dataset.ids[i], *dataset.sizes[i]) == (image["id"], image["height"], image["width"])


def test_records_hold_the_files_and_annotations_in_order(coco_folder: Any, capfd: pytest.CaptureFixture[str]) -> None:
    check_records(coco_folder)
    lines, errors = capfd.readouterr()
    assert errors == ""
    assert [line.split(",")[0] for line in lines.splitlines()] == ["7/7 images checked", "7/7 images prepared"]


def parts(coco_folder: Any) -> list[Path]:
    """The files of the records, and no other folder than theirs in the cache."""
    (prepared,) = (coco_folder.root / "cache").iterdir()
    return sorted(prepared.rglob("*.array_record*"))


def test_order_survives_a_data_set_larger_than_memory(coco_folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert record_files._PART_BYTES * 2 < shuffle.MAX_MEM_BUFFER_SIZE  # annotations included
    size = (coco_folder.root / "images" / "0.png").stat().st_size
    monkeypatch.setattr(record_files, "_PART_BYTES", 3 * size)
    # Beyond this tfds would sort through files, which it writes with TensorFlow.
    monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 4 * size)
    check_records(coco_folder)
    assert len(parts(coco_folder)) > 1


def test_prepared_once(coco_folder: Any, preparations: list[Path]) -> None:
    first = load_split(coco_folder.config().data, "train")
    again = load_split(coco_folder.config().data, "eval")
    assert len(preparations) == 1
    assert again.categories == first.categories
    assert again.ids.tolist() == first.ids.tolist()
    assert again.problems == first.problems
    assert [path.name for path in preparations[0].parent.iterdir()] == [preparations[0].name]


def test_prepared_again_when_the_json_changes(coco_folder: Any, preparations: list[Path]) -> None:
    load_split(coco_folder.config().data, "train")
    coco_folder.add(98, [1, 1, 5, 5])
    check_records(coco_folder)
    assert len(preparations) == 2
    assert preparations[0] == preparations[1]  # in the same place: the old one is gone
    assert [path.name for path in preparations[0].parent.iterdir()] == [preparations[0].name]


def test_prepared_again_when_an_image_changes(coco_folder: Any, preparations: list[Path], rewrite_later: Any) -> None:
    load_split(coco_folder.config().data, "train")
    rewrite_later(coco_folder.root / "images" / "2.png")
    check_records(coco_folder)
    assert len(preparations) == 2


@pytest.mark.parametrize("damage", ["index cut short", "index of another kind", "records cut short", "records missing"])
def test_prepared_again_when_the_cache_is_damaged(
    coco_folder: Any, preparations: list[Path], caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    load_split(coco_folder.config().data, "train")
    index, (part,) = preparations[0] / "index.json", parts(coco_folder)
    if damage == "index cut short":
        index.write_bytes(index.read_bytes()[:-40])
    elif damage == "index of another kind":
        index.write_text('{"ids": [1, 2]}')
    elif damage == "records cut short":
        part.write_bytes(part.read_bytes()[:-100])
    else:
        part.unlink()
    check_records(coco_folder)
    assert len(preparations) == 2
    assert ("damaged or missing; preparing them again" in caplog.text) == damage.startswith("records")


def test_damaged_tfds_description_names_the_folder_to_delete(coco_folder: Any) -> None:
    load_split(coco_folder.config().data, "train")
    description = next(coco_folder.root.rglob("dataset_info.json"))
    description.write_text("?" * description.stat().st_size)
    with pytest.raises(DataError, match=rf"{description.parents[2]}: .* cannot be opened .* delete this folder"):
        load_split(coco_folder.config().data, "train")


def test_records_of_an_older_format_are_left_alone_and_named(
    coco_folder: Any, preparations: list[Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    load_split(coco_folder.config().data, "train")
    monkeypatch.setattr(records, "_FORMAT", records._FORMAT + 1)
    load_split(coco_folder.config().data, "train")
    old, new = preparations
    assert old != new
    assert old.is_dir()
    assert f"{old} was prepared by an older version" in caplog.text


def test_refusals_of_annotations_and_images_are_reported_together(coco_folder: Any) -> None:
    """In the words of `findings`, whether it is wrong with the JSON or with the images."""
    images = coco_folder.root / "images"
    (images / "0.png").unlink()
    (images / "1.png").write_bytes((images / "1.png").read_bytes()[:500])
    coco_folder.add(98, [1, 1, 5, 5], category_id=77)
    config = coco_folder.config()
    content = annotations.inspect(coco_folder.root / "coco.json", (), images)
    examined = image_files.check_images(images, content.images)
    found = [one.refusal for one in examined if one.refusal is not None]
    assert len(content.refusals) == 1
    assert len(found) == 2
    with pytest.raises(DataError) as caught:
        load_split(config.data, "train")
    assert str(caught.value).splitlines() == describe_refusals(
        coco_folder.root / "coco.json", [*content.refusals, *found]
    )
    assert not (coco_folder.root / "cache").exists()


@pytest.mark.parametrize("change", ["replaced", "touched", "deleted"])
def test_a_file_that_changes_while_preparing_is_named(
    coco_folder: Any, monkeypatch: pytest.MonkeyPatch, rewrite_later: Any, change: str
) -> None:
    path = coco_folder.root / "images" / "3.png"
    original = image_files.check_images

    def examine(folder: Path, images: Any) -> Any:
        yield from original(folder, images)
        if change == "replaced":
            path.write_bytes((folder / "0.png").read_bytes())
        elif change == "touched":
            rewrite_later(path)
        else:
            path.unlink()

    monkeypatch.setattr(image_files, "check_images", examine)
    words = "now it cannot be read" if change == "deleted" else "changed after it was checked"
    with pytest.raises(DataError, match=rf"{path} .*{words}.*start again"):
        load_split(coco_folder.config().data, "train")
    assert list((coco_folder.root / "cache").iterdir()) == []


def test_a_json_that_changes_while_preparing_is_prepared_again(
    coco_folder: Any, preparations: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, original = coco_folder.config(), image_files.check_images
    coco_folder.add(98, [1, 1, 5, 5])

    def examine(folder: Path, images: Any) -> Any:
        yield from original(folder, images)
        coco_folder.save()

    monkeypatch.setattr(image_files, "check_images", examine)
    load_split(config.data, "train")
    check_records(coco_folder)
    assert len(preparations) == 2


def test_full_disk_is_noticed_before_writing(coco_folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10_000_000))
    cache = coco_folder.root / "cache"
    leftover = cache / f".coco-{'0' * 16}-abc"
    leftover.mkdir(parents=True)
    with pytest.raises(
        DataError, match=r"0\.07 GB, and the disk has 0\.01 GB free; free disk space \(or delete .*-abc"
    ):
        load_split(coco_folder.config().data, "train")
    assert list(cache.iterdir()) == [leftover]


def test_full_disk_keeps_the_old_records(coco_folder: Any, preparations: list[Path]) -> None:
    """The system refuses to write more, to array_record as to anybody."""
    load_split(coco_folder.config().data, "train")
    before = parts(coco_folder)
    coco_folder.add(98, [1, 1, 5, 5])
    config = coco_folder.config()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(DataError, match=r"could not be written .*File too large.*MRCNN_JAX_CACHE"):
            load_split(config.data, "train")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert parts(coco_folder) == before
    assert len(records.RecordReader(before[0].parents[2])) == 7


def test_cache_folder_that_cannot_be_created_is_reported(coco_folder: Any) -> None:
    (coco_folder.root / "cache").write_text("a file")
    with pytest.raises(DataError, match=r"could not be written .*data\.cache_dir"):
        load_split(coco_folder.config().data, "train")


def test_stale_temporary_folders_are_removed(coco_folder: Any) -> None:
    cache = coco_folder.root / "cache"
    stale, at_work, other = (cache / name for name in (f".a-{'0' * 16}-x", f".b-{'1' * 16}-y", ".config"))
    for folder in (stale, at_work, other):
        (folder / "part").mkdir(parents=True)
        (folder / "part" / "file").write_text("")
        for path in (folder, folder / "part", folder / "part" / "file"):
            os.utime(path, (0, 0))
    (at_work / "part" / "file").write_text("a moment ago")
    load_split(coco_folder.config().data, "train")
    assert not stale.exists()
    assert at_work.exists()
    assert other.exists()


PREPARES = """
import os, sys, time
from mrcnn_jax.config import DataConfig, SplitConfig
from mrcnn_jax.data import load_split, record_files

if sys.argv[2] == "dies":
    record_files.read_unchanged = lambda *arguments: os.kill(os.getpid(), 9)
print("ready", flush=True)
sys.stdin.readline()
data = DataConfig(root=sys.argv[1], train=SplitConfig("coco.json", "images"), cache_dir=sys.argv[1] + "/cache")
dataset = load_split(data, "train")
print(sum(len(dataset.record(i)[0]) for i in range(7)), "bytes")
"""


@pytest.mark.medium
def test_processes_that_prepare_at_once_share_one_folder(coco_folder: Any) -> None:
    """Two that do, and one that is killed while it writes."""
    coco_folder.save()
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [
        subprocess.Popen([sys.executable, "-c", PREPARES, str(coco_folder.root), how], **pipes)
        for how in ("lives", "lives", "dies")
    ]
    for process in processes:
        process.stdout.readline()
    for process in processes:  # all of them have imported everything: now they start together
        process.stdin.write("\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, -9]
    size = sum(path.stat().st_size for path in (coco_folder.root / "images").iterdir())
    assert all(output.endswith(f"{size} bytes\n") for output in outputs[:2])
    kept, left = sorted((coco_folder.root / "cache").iterdir(), key=lambda path: path.name.startswith("."))
    assert left.name.startswith(f".{kept.name}-")
    check_records(coco_folder)


def test_the_faster_of_two_processes_wins(
    coco_folder: Any, preparations: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = coco_folder.config()
    original = records._move_into_place
    places = []

    def slower(building: Path, place: Path, index: records.RecordIndex) -> None:
        places.append(place)
        if len(places) == 1:
            load_split(config.data, "train")  # another process prepares the same meanwhile
            inode = (place / "index.json").stat().st_ino
            original(building, place, index)
            assert (place / "index.json").stat().st_ino == inode
        else:
            original(building, place, index)

    monkeypatch.setattr(records, "_move_into_place", slower)
    check_records(coco_folder)
    assert len(preparations) == 2


def test_a_reader_of_replaced_records_stops(coco_folder: Any) -> None:
    """It must not go on with the records of other annotations."""
    dataset = load_split(coco_folder.config().data, "train")
    coco_folder.add(98, [1, 1, 5, 5])
    load_split(coco_folder.config().data, "train")
    with pytest.raises(DataError, match="replaced because the data changed; start again"):
        dataset.record(0)


def test_cache_goes_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MRCNN_JAX_CACHE", str(tmp_path))
    assert records.default_cache() == tmp_path / "datasets"
    monkeypatch.delenv("MRCNN_JAX_CACHE")
    assert records.default_cache() == Path.home() / ".cache" / "mrcnn_jax" / "datasets"


def test_a_fingerprint_is_of_the_content_alone(coco_folder: Any, tmp_path: Path, rewrite_later: Any) -> None:
    """Not of its place and time, nor of the cache; hashes in the order of the annotation file, made by hand here."""
    first = load_split(coco_folder.config().data, "train").fingerprint()
    content = hashlib.sha256()
    for image in coco_folder.content["images"]:
        file = (coco_folder.root / "images" / image["file_name"]).read_bytes()
        content.update(f"{image['file_name']}\0{len(file)}\0".encode() + file)
    assert first["SHA-256 of the image files"] == content.hexdigest()[:16]
    assert first["SHA-256 of the annotation file"] == hashlib.sha256(coco_folder.save().read_bytes()).hexdigest()[:16]
    assert first["images"] == 7
    assert first["instances"] == 14
    assert first["categories"] == [[3, "boat"], [20, "kite"]]
    moved = shutil.move(coco_folder.root, tmp_path / "moved")
    rewrite_later(moved / "images" / "2.png")
    split = SplitConfig("coco.json", "images")
    data = DataConfig(root=str(moved), train=split, cache_dir=str(tmp_path / "other"))
    assert load_split(data, "train").fingerprint() == first


def test_fingerprint_shows_what_differs(coco_folder: Any, rewrite_later: Any) -> None:
    data = coco_folder.config().data
    first = load_split(data, "train").fingerprint()
    path = coco_folder.root / "images" / "2.png"
    image = cv2.imread(str(path))
    cv2.imwrite(str(path), image, [cv2.IMWRITE_PNG_COMPRESSION, 0])  # the same picture, in other bytes
    rewrite_later(path)
    other = load_split(data, "train").fingerprint()
    assert [name for name in first if first[name] != other[name]] == ["SHA-256 of the image files"]
    only = dataclasses.replace(data, train=dataclasses.replace(data.train, image_ids=(100, 98)))
    fewer = load_split(only, "train").fingerprint()
    assert [name for name in first if other[name] == fewer[name]] == ["categories", "SHA-256 of the annotation file"]
