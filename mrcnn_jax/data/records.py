"""Prepared records: the images and annotations of a dataset in array_record files, in a cache folder.

A record is one image: its encoded file and its annotations as JSON. TensorFlow is not needed. There is a folder of
records for each JSON file and image folder. Its index contains a stamp (hash of the JSON, and name, size and
modification time of every image) and the sizes of the record files; the records are prepared again if either has
changed. A folder is written under a temporary name and then renamed, so it is always complete.
"""

from __future__ import annotations

import hashlib
import json
import logging
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
from mrcnn_jax.data.record_files import CocoRecords, FileStatus
from mrcnn_jax.data.value_range import MeasuredRange
from mrcnn_jax.errors import DataError, UnreadableRecordError
from mrcnn_jax.runtime import files
from mrcnn_jax.runtime.progress import track

log = logging.getLogger(__name__)

_FORMAT = 4  # increase it when the meaning of the records changes: all datasets are then prepared again
_JSON_KEYS = {"instance_counts": "tallies", "warnings": "suspicions"}  # where index.json has other names than the field


class InstanceCounts(NamedTuple):
    """Counts of one category in one image; crowds are not among the instances."""

    category_id: int
    instances: int
    segmented: int  # instances with a segmentation
    keypoints: int  # labeled keypoints of all instances
    crowds: int


@dataclass(frozen=True)
class RecordIndex:
    """Metadata of a prepared dataset, stored as index.json in its folder."""

    stamp: str
    annotations_digest: str  # SHA-256 of the JSON
    images_digest: str  # SHA-256 of the names and bytes of the images
    ids: list[int]
    file_names: list[str]
    heights: list[int]
    widths: list[int]
    instance_counts: list[list[InstanceCounts]]  # for each image, one for each of its categories
    categories: Categories
    problems: list[Problem]
    warnings: list[str]
    values: list[MeasuredRange]  # of images of more than 8 bits
    sizes: dict[str, int]  # bytes of the record files


class RecordReader:
    """Random access to prepared records: index -> (encoded image, annotations). Can be pickled.

    Raises DataError if the folder has no records, or if files were removed or truncated since it was opened, and
    UnreadableRecordError if a single record is damaged.
    """

    def __init__(self, folder: Path, sizes: dict[str, int] | None = None):
        self._folder = folder
        self._sizes = _file_sizes(folder) if sizes is None else sizes
        try:
            with record_files.quiet_tfds():
                builder = tfds.builder_from_directory(_builder_folder(folder))
                self._source = builder.as_data_source("all", decoders={"image": tfds.decode.SkipDecoding()})
        except Exception as error:  # tfds raises many types for a damaged description of the records
            self._check_files()
            raise DataError(
                f"{folder}: the prepared records cannot be opened ({error}); delete this folder to prepare them again"
            ) from error

    def __reduce__(self) -> tuple[type[RecordReader], tuple[Path, dict[str, int]]]:
        return RecordReader, (self._folder, self._sizes)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> tuple[bytes, list[dict[str, Any]]]:
        try:
            record = self._source[index]
            if record["annotations"] is None:  # the file was truncated after it was opened
                raise RuntimeError("the file ends before it")
        except RuntimeError as error:  # array_record raises it for all errors of a file
            self._check_files()
            raise UnreadableRecordError(
                f"its record in {self._folder} cannot be read ({error}); delete this folder to prepare it again"
            ) from None
        return record["image"], json.loads(record["annotations"])

    def _check_files(self) -> None:
        """Raise DataError if record files are missing or have changed in size."""
        if not self._folder.is_dir():
            raise DataError(
                f"{self._folder}: the prepared records were removed, or replaced because the data changed; start again"
            )
        for name, size in self._sizes.items():
            if record_files.file_status(self._folder / name).size != size:
                raise DataError(
                    f"{self._folder / name}: this file of prepared records is missing or truncated; start again to"
                    " prepare them again"
                )


def open_prepared(json_path: Path, images: Path, image_ids: Sequence[int], cache: Path) -> tuple[Path, RecordIndex]:
    """Return folder and index of the prepared records; prepares them if they are missing, damaged or outdated.

    Raises DataError if anything in the data is refused, see `annotations` and `image_files`.
    """
    folder = cache / _folder_name(json_path, images, image_ids, _FORMAT)
    if not json_path.is_file():
        coco.inspect(json_path)  # raises the error for a missing file
    index = _read_index(folder)
    if index is None or not _is_current(json_path, images, index):
        index = _prepare(json_path, images, image_ids, folder)
    elif not _is_complete(folder, index, index.stamp):
        log.warning("%s: prepared records are damaged or missing; preparing them again", folder)
        index = _prepare(json_path, images, image_ids, folder)
    return folder / _records_folder(index.stamp), index


def default_cache() -> Path:
    """Return the folder for prepared datasets if `data.cache_dir` is not set."""
    return files.cache_root() / "datasets"


def _prepare(json_path: Path, images: Path, image_ids: Sequence[int], folder: Path) -> RecordIndex:
    """Validate the annotations and images, and write the records to `folder`; shows progress.

    Decodes every image once, and reports all refusals together. An interrupted preparation starts again from the
    beginning: it takes about 7 ms of one core per image.
    """
    # Digest and statuses are taken before reading: if a file changes later, they do not fit and the change is noticed.
    digest = _file_digest(json_path)
    content = coco.inspect(json_path, image_ids, images)
    statuses = [record_files.file_status(images / image.file_name) for image in content.images]
    stamp = _stamp(digest, [image.file_name for image in content.images], statuses)
    checks = list(track(image_files.check_images(images, content.images), len(content.images), "images checked"))
    raise_refusals(json_path, [*content.refusals, *image_files.collect_refusals(checks)])
    log.info("preparing %d images of %s in %s", len(content.images), json_path, folder)
    name = _records_folder(stamp)
    with record_files.write_records(content.images, images, statuses, folder, name) as (temporary, images_digest):
        values = value_range.merge_ranges(check.values for check in checks)
        index = _make_index(content, stamp, (digest, images_digest), values, _file_sizes(temporary / name))
        (temporary / "index.json").write_text(_index_to_json(index))
        _move_into_place(temporary, folder, index)
    _warn_of_older_versions(folder.parent, json_path, images, image_ids)
    return index


def _warn_of_older_versions(cache: Path, json_path: Path, images: Path, image_ids: Sequence[int]) -> None:
    for version in range(1, _FORMAT):
        old = cache / _folder_name(json_path, images, image_ids, version)
        if old.is_dir():
            log.warning("%s was prepared by an older version of this program; delete it if you no longer use that", old)


def _is_current(json_path: Path, images: Path, index: RecordIndex) -> bool:
    """Whether neither the JSON nor an image file has changed since the records were prepared."""
    statuses = [record_files.file_status(images / name) for name in index.file_names]
    return index.stamp == _stamp(_file_digest(json_path), index.file_names, statuses)


def _move_into_place(temporary: Path, folder: Path, index: RecordIndex) -> None:
    """Rename `temporary` to `folder`, unless another process has prepared the same records meanwhile."""
    with files.folder_lock(folder.parent):
        if not _is_complete(folder, _read_index(folder), index.stamp):
            files.replace_folder(temporary, folder)


def _is_complete(folder: Path, index: RecordIndex | None, stamp: str) -> bool:
    """Whether `folder` has this stamp in its `index`, and all record files with their sizes."""
    return index is not None and index.stamp == stamp and index.sizes == _file_sizes(folder / _records_folder(stamp))


def _make_index(
    content: AnnotationFile, stamp: str, digests: tuple[str, str], values: list[MeasuredRange], sizes: dict[str, int]
) -> RecordIndex:
    images = content.images
    return RecordIndex(
        stamp=stamp,
        annotations_digest=digests[0],
        images_digest=digests[1],
        ids=[image.id for image in images],
        file_names=[image.file_name for image in images],
        heights=[image.height for image in images],
        widths=[image.width for image in images],
        instance_counts=[_count_instances(image.annotations) for image in images],
        categories=content.categories,
        problems=content.problems,
        warnings=content.warnings,
        values=values,
        sizes=sizes,
    )


def _count_instances(annotations: Sequence[dict[str, Any]]) -> list[InstanceCounts]:
    """Return the counts of each category in one image."""
    counts: dict[int, InstanceCounts] = {}
    for annotation in annotations:
        category_id = annotation["category_id"]
        before = counts.get(category_id, InstanceCounts(category_id, 0, 0, 0, 0))
        if annotation.get("iscrowd"):
            counts[category_id] = before._replace(crowds=before.crowds + 1)
            continue
        labeled = sum(visibility > 0 for visibility in (annotation.get("keypoints") or ())[2::3])
        counts[category_id] = before._replace(
            instances=before.instances + 1,
            segmented=before.segmented + bool(annotation.get("segmentation")),
            keypoints=before.keypoints + labeled,
        )
    return list(counts.values())


def _index_to_json(index: RecordIndex) -> str:
    fields = {_JSON_KEYS.get(name, name): value for name, value in asdict(index).items()}
    fields["categories"]["poses"] = fields["categories"].pop("keypoint_schemas")
    return json.dumps(fields)


def _read_index(folder: Path) -> RecordIndex | None:
    """Return the index of a folder of records, or None if it is missing or cannot be read."""
    try:
        content = json.loads((folder / "index.json").read_text())
        fields = {name: content[_JSON_KEYS.get(name, name)] for name in RecordIndex.__dataclass_fields__}
        categories = fields["categories"]
        schemas = tuple(
            KeypointSchema(tuple(names), tuple(map(tuple, skeleton))) for names, skeleton in categories["poses"]
        )
        return RecordIndex(
            **{
                **fields,
                "instance_counts": [[InstanceCounts(*count) for count in image] for image in fields["instance_counts"]],
                "categories": Categories(tuple(categories["ids"]), tuple(categories["names"]), schemas),
                "problems": [Problem(*problem) for problem in fields["problems"]],
                "values": [MeasuredRange(*values) for values in fields["values"]],
            }
        )
    except (OSError, ValueError, TypeError, KeyError):  # missing, truncated, or not an index
        return None


def _folder_name(json_path: Path, images: Path, image_ids: Sequence[int], version: int) -> str:
    """Return a readable name, unique for the JSON, image folder, image ids and format version."""
    identity = json.dumps([version, str(json_path.resolve()), str(images.resolve()), list(image_ids)])
    return f"{json_path.stem}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"


def _file_digest(json_path: Path) -> str:
    return hashlib.sha256(json_path.read_bytes()).hexdigest()


def _stamp(digest: str, file_names: Sequence[str], statuses: Sequence[FileStatus]) -> str:
    """Return a hash of the JSON's digest and of every image's name, size and modification time."""
    stamp = hashlib.sha256(digest.encode())
    for name, status in zip(file_names, statuses, strict=True):
        stamp.update(f"{name}\0{status.size}\0{status.modified}\0".encode())
    return stamp.hexdigest()


def _records_folder(stamp: str) -> str:
    """Return the name of the subfolder of records; it differs for changed data, so open readers never mix the two."""
    return stamp[:16]


def _file_sizes(folder: Path) -> dict[str, int]:
    """Return the size of every file in `folder`, by its relative path."""
    return {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


def _builder_folder(folder: Path) -> Path:
    return folder / "coco_records" / str(CocoRecords.VERSION)
