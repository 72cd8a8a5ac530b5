"""The prepared records: what they hold, when they are made again, and that they appear whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tensorflow_datasets.core import shuffle

from mrcnn_jax.data import load_split, records


@pytest.fixture
def preparations(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that get prepared while a test runs."""
    prepared: list[Path] = []
    original = records._prepare

    def count(json_path: Path, images: Path, image_ids: Any, folder: Path) -> records.Index:
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
    assert capfd.readouterr() == ("", "")  # none of tfds' chatter


def test_order_survives_a_data_set_larger_than_memory(coco_folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert records._PART_BYTES * 2 < shuffle.MAX_MEM_BUFFER_SIZE  # annotations included
    size = (coco_folder.root / "images" / "0.png").stat().st_size
    monkeypatch.setattr(records, "_PART_BYTES", 3 * size)
    # Beyond this tfds would sort through files, which it writes with TensorFlow.
    monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 4 * size)
    check_records(coco_folder)
    prepared = next((coco_folder.root / "cache").iterdir())
    assert len(list(prepared.rglob("*.array_record*"))) > 1


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


def test_prepared_again_when_the_cache_is_damaged(coco_folder: Any, preparations: list[Path]) -> None:
    load_split(coco_folder.config().data, "train")
    (preparations[0] / "index.json").write_text("{")
    check_records(coco_folder)
    assert len(preparations) == 2


def test_failed_preparation_leaves_the_old_records(
    coco_folder: Any, preparations: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    load_split(coco_folder.config().data, "train")
    coco_folder.add(98, [1, 1, 5, 5])

    def fail(self: Any, images: Any) -> Any:
        yield 0, {"image": b"", "annotations": "[]"}
        raise OSError("disk full")

    monkeypatch.setattr(records.CocoRecords, "_generate_examples", fail)
    with pytest.raises(OSError, match="disk full"):
        load_split(coco_folder.config().data, "train")
    folder = preparations[0]
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert len(records.RecordReader(folder)) == 7


def test_the_faster_of_two_processes_wins(
    coco_folder: Any, preparations: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = coco_folder.config()
    original = records._move_into_place
    stamps = []

    def slower(building: Path, folder: Path, stamp: str) -> None:
        if not stamps:
            stamps.append(stamp)
            load_split(config.data, "train")  # another process prepares the same meanwhile
            inode = (folder / "index.json").stat().st_ino
            original(building, folder, stamp)
            assert (folder / "index.json").stat().st_ino == inode
        else:
            original(building, folder, stamp)

    monkeypatch.setattr(records, "_move_into_place", slower)
    check_records(coco_folder)
    assert len(preparations) == 2


def test_cache_goes_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MRCNN_JAX_CACHE", str(tmp_path))
    assert records.default_cache() == tmp_path / "datasets"
    monkeypatch.delenv("MRCNN_JAX_CACHE")
    assert records.default_cache() == Path.home() / ".cache" / "mrcnn_jax" / "datasets"
