"""Prepared records: a tensorflow-datasets builder that writes array_record files, once, into a cache folder.

A record is one image: its file as it is (encoded) and its annotations as JSON. No TensorFlow is involved. A prepared
folder belongs to a JSON path and an image folder; it carries a stamp (hash of the JSON, name, size and time of every
image) and is prepared again when the stamp no longer fits. Folders appear by rename: half a folder is never seen.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow_datasets as tfds

from mrcnn_jax.data import annotations as coco
from mrcnn_jax.data.annotations import AnnotationFile, Problem
from mrcnn_jax.data.categories import Categories, Pose

log = logging.getLogger(__name__)

_FORMAT = 2  # raise it when the records change their meaning: caches of other formats are then prepared again
# tfds holds a split in memory while it writes it, and beyond 1 GB it spills to files through TensorFlow, which is not
# there. So the records go to as many splits as keep each one well below that.
_PART_BYTES = 256 * 2**20


class Tally(NamedTuple):
    """What one image has of one category; crowds do not count."""

    category_id: int
    instances: int
    segmented: int  # instances with a segmentation
    keypoints: int  # labelled keypoints of all of them


@dataclass(frozen=True)
class Index:
    """What is known of a prepared data set without opening its records; stored beside them as JSON."""

    stamp: str
    ids: list[int]
    file_names: list[str]
    heights: list[int]
    widths: list[int]
    tallies: list[list[Tally]]  # of each image, one for each category it has
    categories: Categories
    problems: list[Problem]


class CocoRecords(tfds.core.GeneratorBasedBuilder):
    """Writes one record for each image of a checked COCO JSON, in its order."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, images: Sequence[coco.ImageEntry], folder: Path, **kwargs: Any):
        self._images, self._folder = images, folder
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {"image": tfds.features.Image(shape=(None, None, 3)), "annotations": tfds.features.Text()}
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        parts = self._parts()
        return {f"part{i:05d}": self._generate_examples(part) for i, part in enumerate(parts)}

    def _parts(self) -> list[list[coco.ImageEntry]]:
        """The images in order, cut where the files of a part exceed `_PART_BYTES`."""
        parts: list[list[coco.ImageEntry]] = []
        room = 0
        for image in self._images:
            size = (self._folder / image.file_name).stat().st_size
            if not parts or size > room:
                parts.append([])
                room = _PART_BYTES
            parts[-1].append(image)
            room -= size
        return parts

    def _log_download_bytes(self) -> None:
        """tfds announces a download here; there is none."""

    def _log_download_done(self) -> None:
        """And here that it is done."""

    def _generate_examples(self, images: Sequence[coco.ImageEntry]) -> Iterator[tuple[int, dict[str, Any]]]:
        for i, image in enumerate(images):  # the keys decide the order
            content = (self._folder / image.file_name).read_bytes()
            yield i, {"image": content, "annotations": json.dumps(image.annotations)}


class RecordReader:
    """Random access to prepared records: index -> (encoded image, annotations). Can be pickled."""

    def __init__(self, folder: Path):
        with _quiet_tfds():
            builder = tfds.builder_from_directory(_builder_folder(folder))
            self._source = builder.as_data_source("all", decoders={"image": tfds.decode.SkipDecoding()})

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> tuple[bytes, list[dict[str, Any]]]:
        record = self._source[index]
        return record["image"], json.loads(record["annotations"])


def open_prepared(json_path: Path, images: Path, image_ids: Sequence[int], cache: Path) -> tuple[Path, Index]:
    """Folder and index of the prepared data set; prepares it when there is none or its stamp does not fit.

    Raises DataError for what training refuses: see `annotations`.
    """
    folder = cache / _folder_name(json_path, images, image_ids)
    if not json_path.is_file():
        coco.read(json_path)  # says what is missing
    index = _read_index(folder)
    if index is not None:
        coco.check_present(json_path, images, index.file_names, index.ids)
        if index.stamp == _stamp(json_path, images, index.file_names):
            return folder, index
    return folder, _prepare(json_path, images, image_ids, folder)


def default_cache() -> Path:
    """Where prepared data sets go unless the configuration says otherwise."""
    root = os.environ.get("MRCNN_JAX_CACHE") or os.path.join("~", ".cache", "mrcnn_jax")
    return Path(root).expanduser() / "datasets"


def _prepare(json_path: Path, images: Path, image_ids: Sequence[int], folder: Path) -> Index:
    """Check everything, write the records beside `folder` and move them into its place."""
    content = coco.read(json_path, image_ids)
    coco.check_images(json_path, images, content.images)
    # Taken before the files are read: a file that changes meanwhile makes the next run prepare again.
    stamp = _stamp(json_path, images, [image.file_name for image in content.images])
    index = _make_index(content, stamp)
    log.info("preparing %d images of %s in %s", len(content.images), json_path, folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        with _quiet_tfds():
            CocoRecords(images=content.images, folder=images, data_dir=building).download_and_prepare()
        shutil.rmtree(building / "downloads", ignore_errors=True)  # tfds makes it even when it downloads nothing
        (building / "index.json").write_text(json.dumps(asdict(index)))
        _move_into_place(building, folder, stamp)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return index


def _move_into_place(building: Path, folder: Path, stamp: str) -> None:
    """Rename `building` to `folder`, replacing an outdated one. Another process may have been faster."""
    current = _read_index(folder)
    if current is not None and current.stamp == stamp:
        return
    outdated = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
    try:
        if folder.exists():
            folder.rename(outdated / "data")
        building.chmod(0o755)  # mkdtemp makes it private
        building.rename(folder)
    except OSError:  # another process moved its folder here between our two steps
        current = _read_index(folder)
        if current is None or current.stamp != stamp:
            raise
    finally:
        shutil.rmtree(outdated, ignore_errors=True)


def _make_index(content: AnnotationFile, stamp: str) -> Index:
    images = content.images
    return Index(
        stamp=stamp,
        ids=[image.id for image in images],
        file_names=[image.file_name for image in images],
        heights=[image.height for image in images],
        widths=[image.width for image in images],
        tallies=[_tally(image.annotations) for image in images],
        categories=content.categories,
        problems=content.problems,
    )


def _tally(annotations: Sequence[dict[str, Any]]) -> list[Tally]:
    """Sums over the annotations of one image."""
    tallies: dict[int, Tally] = {}
    for annotation in annotations:
        if not annotation.get("iscrowd"):
            category_id = annotation["category_id"]
            before = tallies.get(category_id, Tally(category_id, 0, 0, 0))
            labelled = sum(visibility > 0 for visibility in (annotation.get("keypoints") or ())[2::3])
            tallies[category_id] = Tally(
                category_id,
                before.instances + 1,
                before.segmented + bool(annotation.get("segmentation")),
                before.keypoints + labelled,
            )
    return list(tallies.values())


def _read_index(folder: Path) -> Index | None:
    """The index of a prepared folder; None where there is none that can be read."""
    try:
        fields = json.loads((folder / "index.json").read_text())
    except (OSError, ValueError):
        return None
    categories = fields["categories"]
    poses = tuple(Pose(tuple(names), tuple(map(tuple, skeleton))) for names, skeleton in categories["poses"])
    return Index(
        **{
            **fields,
            "tallies": [[Tally(*tally) for tally in image] for image in fields["tallies"]],
            "categories": Categories(tuple(categories["ids"]), tuple(categories["names"]), poses),
            "problems": [Problem(*problem) for problem in fields["problems"]],
        }
    )


def _folder_name(json_path: Path, images: Path, image_ids: Sequence[int]) -> str:
    """Readable, and one for each JSON, image folder, choice of images and format of ours."""
    identity = json.dumps([_FORMAT, str(json_path.resolve()), str(images.resolve()), list(image_ids)])
    return f"{json_path.stem}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"


def _stamp(json_path: Path, images: Path, file_names: Sequence[str]) -> str:
    """Hash of the JSON's content and of every image's name, size and time of change."""
    digest = hashlib.sha256(json_path.read_bytes())
    for name in file_names:
        status = os.stat(images / name)
        digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    return digest.hexdigest()


def _builder_folder(folder: Path) -> Path:
    return folder / "coco_records" / str(CocoRecords.VERSION)


@contextlib.contextmanager
def _quiet_tfds() -> Iterator[None]:
    """tfds draws progress bars and logs through absl; none of it is for our users."""
    absl_logger = logging.getLogger("absl")
    level = absl_logger.level
    absl_logger.setLevel(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        yield
    finally:
        tfds.enable_progress_bar()
        absl_logger.setLevel(level)
