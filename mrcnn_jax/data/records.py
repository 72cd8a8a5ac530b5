"""Prepared records: the images and annotations of a data set in array_record files, written once into a cache folder.

A record is one image: its file as it is (encoded) and its annotations as JSON. No TensorFlow is involved. A prepared
folder belongs to a JSON path and an image folder; it carries a stamp (hash of the JSON, name, size and time of every
image) and the sizes of its own files, and is prepared again when either no longer fits. Folders appear by rename: half
a folder is never seen.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow_datasets as tfds

from mrcnn_jax.data import annotations as coco
from mrcnn_jax.data import image_files, record_files, value_range
from mrcnn_jax.data.annotations import AnnotationFile
from mrcnn_jax.data.categories import Categories, KeypointSchema
from mrcnn_jax.data.findings import Problem, raise_refusals
from mrcnn_jax.data.record_files import CocoRecords, Status
from mrcnn_jax.data.value_range import Values
from mrcnn_jax.errors import DataError, UnreadableRecordError
from mrcnn_jax.runtime import files
from mrcnn_jax.runtime.progress import track

log = logging.getLogger(__name__)

_FORMAT = 4  # raise it when the records change their meaning: caches of other formats are then prepared again


class InstanceCounts(NamedTuple):
    """What one image has of one category; crowds are counted apart."""

    category_id: int
    instances: int
    segmented: int  # instances with a segmentation
    keypoints: int  # labeled keypoints of all of them
    crowds: int


@dataclass(frozen=True)
class Index:
    """What is known of a prepared data set without opening its records; stored beside them as JSON."""

    stamp: str
    annotations_digest: str  # SHA-256 of the JSON
    images_digest: str  # SHA-256 of the names and bytes of the images
    ids: list[int]
    file_names: list[str]
    heights: list[int]
    widths: list[int]
    tallies: list[list[InstanceCounts]]  # of each image, one for each category it has
    categories: Categories
    problems: list[Problem]
    suspicions: list[str]
    values: list[Values]  # of images of more than 8 bits
    sizes: dict[str, int]  # of the files of the records


class RecordReader:
    """Random access to prepared records: index -> (encoded image, annotations). Can be pickled.

    Raises DataError for a folder that is no such thing, or that is gone or cut short since it was opened;
    UnreadableRecordError for a damaged record.
    """

    def __init__(self, folder: Path, sizes: dict[str, int] | None = None):
        self._folder = folder
        self._sizes = _sizes(folder) if sizes is None else sizes
        try:
            with record_files.quiet_tfds():
                builder = tfds.builder_from_directory(_builder_folder(folder))
                self._source = builder.as_data_source("all", decoders={"image": tfds.decode.SkipDecoding()})
        except Exception as error:  # whatever a damaged description of the records leads tfds to
            self._check_whole()
            words = f"the prepared records cannot be opened ({error}); delete the folder, and they are prepared again"
            raise DataError(f"{folder}: {words}") from error

    def __reduce__(self) -> tuple[type[RecordReader], tuple[Path, dict[str, int]]]:
        return RecordReader, (self._folder, self._sizes)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> tuple[bytes, list[dict[str, Any]]]:
        try:
            record = self._source[index]
            if record["annotations"] is None:  # from an open file that was cut short
                raise RuntimeError("the file ends before it")
        except RuntimeError as error:  # array_record's, for all that can be wrong with a file
            self._check_whole()
            words = (
                f"its record in {self._folder} cannot be read ({error}); delete the folder, and it is prepared again"
            )
            raise UnreadableRecordError(words) from None
        return record["image"], json.loads(record["annotations"])

    def _check_whole(self) -> None:
        """Raise DataError for what concerns more than one record: files that are gone or have another length."""
        if not self._folder.is_dir():
            words = "the prepared records are gone, or were prepared anew because the data changed; start again"
            raise DataError(f"{self._folder}: {words}")
        for name, size in self._sizes.items():
            if record_files.status(self._folder / name).size != size:
                words = "is gone or was cut short; start again, and the records are prepared again"
                raise DataError(f"{self._folder / name}: this file of the prepared records {words}")


def open_prepared(json_path: Path, images: Path, image_ids: Sequence[int], cache: Path) -> tuple[Path, Index]:
    """Folder and index of the prepared records; prepares them when there are none, or damaged ones, or outdated ones.

    Raises DataError for what training refuses: see `annotations` and `image_files`.
    """
    place = cache / _folder_name(json_path, images, image_ids, _FORMAT)
    if not json_path.is_file():
        coco.inspect(json_path)  # says what is missing
    index = _read_index(place)
    if index is None or not _is_current(json_path, images, index):
        index = _prepare(json_path, images, image_ids, place)
    elif not _is_whole(place, index, index.stamp):
        log.warning("%s: files of the prepared records are damaged or missing; they are prepared again", place)
        index = _prepare(json_path, images, image_ids, place)
    return place / _records_folder(index.stamp), index


def default_cache() -> Path:
    """Where prepared data sets go unless the configuration says otherwise."""
    root = os.environ.get("MRCNN_JAX_CACHE") or os.path.join("~", ".cache", "mrcnn_jax")
    return Path(root).expanduser() / "datasets"


def _prepare(json_path: Path, images: Path, image_ids: Sequence[int], place: Path) -> Index:
    """Examine everything, write the records beside `place` and move them into it. Shows how far it has come.

    Every image is decoded once, and all that is refused is said together. A preparation that is interrupted starts from
    the beginning: it takes minutes (some 7 ms of one core an image), and what was examined before would have to be
    examined again to be believed.
    """
    # Both are taken before anything is read: what changes afterwards does not fit them, now or in the next run.
    digest = _digest(json_path)
    content = coco.inspect(json_path, image_ids, images)
    statuses = [record_files.status(images / image.file_name) for image in content.images]
    stamp = _stamp(digest, [image.file_name for image in content.images], statuses)
    examined = image_files.examine(images, content.images)
    found = list(track(examined, len(content.images), "images examined"))
    raise_refusals(json_path, [*content.refusals, *image_files.refusals(found)])
    log.info("preparing %d images of %s in %s", len(content.images), json_path, place)
    with record_files.written(content.images, images, statuses, place, _records_folder(stamp)) as (building, written):
        values = value_range.merge(one.values for one in found)
        index = _make_index(content, stamp, (digest, written), values, _sizes(building / _records_folder(stamp)))
        (building / "index.json").write_text(json.dumps(asdict(index)))
        _move_into_place(building, place, index)
    for old in (place.parent / _folder_name(json_path, images, image_ids, older) for older in range(1, _FORMAT)):
        if old.is_dir():
            log.warning("%s is of an older version of this program; delete it, unless that is still in use", old)
    return index


def _is_current(json_path: Path, images: Path, index: Index) -> bool:
    """Whether neither the JSON nor an image has changed since `index` was made."""
    statuses = [record_files.status(images / name) for name in index.file_names]
    return index.stamp == _stamp(_digest(json_path), index.file_names, statuses)


def _move_into_place(building: Path, place: Path, index: Index) -> None:
    """Put `building` at `place`, instead of an outdated one; another process may have been faster with the same."""
    with files.folder_lock(place.parent):
        if not _is_whole(place, _read_index(place), index.stamp):
            files.replace_folder(building, place)


def _is_whole(place: Path, index: Index | None, stamp: str) -> bool:
    """Whether the folder `place`, with this index, holds all that was prepared for this stamp."""
    return index is not None and index.stamp == stamp and index.sizes == _sizes(place / _records_folder(stamp))


def _make_index(
    content: AnnotationFile, stamp: str, digests: tuple[str, str], values: list[Values], sizes: dict[str, int]
) -> Index:
    images = content.images
    return Index(
        stamp=stamp,
        annotations_digest=digests[0],
        images_digest=digests[1],
        ids=[image.id for image in images],
        file_names=[image.file_name for image in images],
        heights=[image.height for image in images],
        widths=[image.width for image in images],
        tallies=[_tally(image.annotations) for image in images],
        categories=content.categories,
        problems=content.problems,
        suspicions=content.suspicions,
        values=values,
        sizes=sizes,
    )


def _tally(annotations: Sequence[dict[str, Any]]) -> list[InstanceCounts]:
    """Sums over the annotations of one image."""
    tallies: dict[int, InstanceCounts] = {}
    for annotation in annotations:
        category_id = annotation["category_id"]
        before = tallies.get(category_id, InstanceCounts(category_id, 0, 0, 0, 0))
        if annotation.get("iscrowd"):
            tallies[category_id] = before._replace(crowds=before.crowds + 1)
            continue
        labeled = sum(visibility > 0 for visibility in (annotation.get("keypoints") or ())[2::3])
        tallies[category_id] = before._replace(
            instances=before.instances + 1,
            segmented=before.segmented + bool(annotation.get("segmentation")),
            keypoints=before.keypoints + labeled,
        )
    return list(tallies.values())


def _read_index(place: Path) -> Index | None:
    """The index of a prepared folder; None where there is none that can be read."""
    try:
        fields = json.loads((place / "index.json").read_text())
        categories = fields["categories"]
        poses = tuple(
            KeypointSchema(tuple(names), tuple(map(tuple, skeleton))) for names, skeleton in categories["poses"]
        )
        return Index(
            **{
                **fields,
                "tallies": [[InstanceCounts(*tally) for tally in image] for image in fields["tallies"]],
                "categories": Categories(tuple(categories["ids"]), tuple(categories["names"]), poses),
                "problems": [Problem(*problem) for problem in fields["problems"]],
                "values": [Values(*values) for values in fields["values"]],
            }
        )
    except (OSError, ValueError, TypeError, KeyError):  # not there, cut short, or something else altogether
        return None


def _folder_name(json_path: Path, images: Path, image_ids: Sequence[int], version: int) -> str:
    """Readable, and one for each JSON, image folder, choice of images and format of ours."""
    identity = json.dumps([version, str(json_path.resolve()), str(images.resolve()), list(image_ids)])
    return f"{json_path.stem}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"


def _digest(json_path: Path) -> str:
    return hashlib.sha256(json_path.read_bytes()).hexdigest()


def _stamp(digest: str, file_names: Sequence[str], statuses: Sequence[Status]) -> str:
    """Hash of the JSON's hash and of every image's name, size and time of change."""
    stamp = hashlib.sha256(digest.encode())
    for name, status in zip(file_names, statuses, strict=True):
        stamp.update(f"{name}\0{status.size}\0{status.modified}\0".encode())
    return stamp.hexdigest()


def _records_folder(stamp: str) -> str:
    """Inside the prepared folder. Whoever still uses records that are replaced finds none, rather than others."""
    return stamp[:16]


def _sizes(folder: Path) -> dict[str, int]:
    """Of every file in `folder`, by its path there."""
    return {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


def _builder_folder(folder: Path) -> Path:
    return folder / "coco_records" / str(CocoRecords.VERSION)
