"""`Dataset`, one split of a COCO-style dataset, and `load_split`, which validates, prepares and opens it."""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mrcnn_jax.config import DataConfig
from mrcnn_jax.data import image_files, records, value_range
from mrcnn_jax.data.categories import Categories
from mrcnn_jax.data.findings import Problem, describe_problems, no_instances_message, raise_refusals
from mrcnn_jax.data.synthetic import generate
from mrcnn_jax.data.value_range import Range
from mrcnn_jax.errors import DataError, UnreadableRecordError, format_list

log = logging.getLogger(__name__)

_HASH_DIGITS = 16  # of hashes in fingerprints


@dataclass(frozen=True, eq=False)
class Dataset:
    """One split: n images with their annotations, addressed by index 0..n-1. Can be pickled for worker processes."""

    annotations_path: Path  # the COCO JSON; it may have more images than `ids`
    images_path: Path
    categories: Categories
    ids: np.ndarray  # (n,) int64, COCO image ids
    file_names: tuple[str, ...]
    sizes: np.ndarray  # (n, 2) int32, height and width of the original images
    instances: np.ndarray  # (n,) int32, annotated instances of each image, without crowds
    has_masks: bool  # at least one instance has a mask
    has_keypoints: bool  # at least one instance has a labeled keypoint
    problems: tuple[Problem, ...]  # annotations that were dropped or corrected
    value_range: Range | None  # `data.value_range`, for images of more than 8 bits
    rows: np.ndarray  # (n,) int64, index of the prepared record of each image
    digests: tuple[str, str]  # SHA-256 of the JSON, and of the names and bytes of all prepared images
    reader: records.RecordReader = field(repr=False)

    def __len__(self) -> int:
        return len(self.ids)

    def record(self, index: int) -> tuple[bytes, list[dict[str, Any]]]:
        """Return the encoded image file and its COCO annotations of `categories`, crowds included.

        Raises UnreadableRecordError if the record is damaged, DataError if the records are missing.
        """
        try:
            content, annotations = self.reader[int(self.rows[index])]
        except UnreadableRecordError as error:
            raise UnreadableRecordError(f"{self.label(index)}: {error}") from None
        return content, [a for a in annotations if a["category_id"] in self._category_ids]

    def fingerprint(self) -> dict[str, Any]:
        """Return a description of the content as JSON values, the same for the same data on every machine."""
        return {
            "images": len(self),
            "instances": int(self.instances.sum()),
            "categories": [list(pair) for pair in zip(self.categories.ids, self.categories.names, strict=True)],
            "SHA-256 of the image ids": hashlib.sha256(self.ids.tobytes()).hexdigest()[:_HASH_DIGITS],
            "SHA-256 of the image sizes": hashlib.sha256(self.sizes.tobytes()).hexdigest()[:_HASH_DIGITS],
            "SHA-256 of the annotation file": self.digests[0][:_HASH_DIGITS],
            "SHA-256 of the image files": self.digests[1][:_HASH_DIGITS],
        }

    @functools.cached_property
    def _category_ids(self) -> frozenset[int]:
        return frozenset(self.categories.ids)

    def decode(self, content: bytes, reduction: int = 1) -> np.ndarray | None:
        """Return the pixels of an encoded image of this dataset, see `image_files.decode`."""
        return image_files.decode(content, reduction, self.value_range)

    def explain_decode_failure(self, index: int) -> str:
        """Return the message for an image for which `decode` returns None."""
        reason = image_files.explain_decode_failure(self.record(index)[0], self.value_range)
        return f"{self.label(index)} cannot be decoded: {reason}; replace the file, or remove it from the JSON"

    def label(self, index: int) -> str:
        """Return path and id of an image for messages."""
        return f"{self.image_path(index)} (image id {self.ids[index]})"

    def image_path(self, index: int) -> Path:
        """Return the path of the original image file."""
        return self.images_path / self.file_names[index]


def load_split(data: DataConfig, split: Literal["train", "eval"]) -> Dataset:
    """Validate and open a split; first writes the procedural dataset and the prepared records if they are missing.

    Only `data.categories` are used, and for training only images with at least `data.min_keypoints` labeled keypoints.
    Images without instances are background. Logs dropped annotations, and images with more than `data.max_instances`.
    Raises DataError for annotations or images that are refused (see `annotations`, `image_files`), and for training
    data without an instance.
    """
    if data.shapes is not None:
        generate.write_dataset(data.shapes, Path(data.root))
    paths = data.train if split == "train" else data.eval
    json_path, images = Path(data.root) / paths.annotations, Path(data.root) / paths.images
    cache = Path(data.cache_dir) if data.cache_dir else records.default_cache()
    folder, index = records.open_prepared(json_path, images, paths.image_ids, cache)
    _check_value_range(json_path, index.values, data)
    categories = index.categories.select(data.categories)
    counts = _count_per_image(index.instance_counts, categories)
    instances, _, _, crowds = counts.sum(axis=0).tolist()
    reason = no_instances_message(json_path, categories.names, instances, crowds, index.problems)
    if reason and (split == "train" or not categories.names):
        raise DataError(reason)
    rows = _select_rows(json_path, counts[:, 2], data.min_keypoints if split == "train" else 0)
    sizes = np.stack([index.heights, index.widths], axis=1).astype(np.int32)
    dataset = Dataset(
        annotations_path=json_path,
        images_path=images,
        categories=categories,
        ids=np.asarray(index.ids, np.int64)[rows],
        file_names=tuple(index.file_names[row] for row in rows),
        sizes=sizes[rows],
        instances=counts[rows, 0],
        has_masks=bool(counts[:, 1].any()),
        has_keypoints=bool(counts[:, 2].any()),
        problems=tuple(index.problems),
        value_range=data.value_range,
        rows=rows,
        digests=(index.annotations_digest, index.images_digest),
        reader=records.RecordReader(folder),
    )
    _log_findings(dataset, index.warnings, data.max_instances)
    return dataset


def _check_value_range(path: Path, values: Sequence[value_range.MeasuredRange], data: DataConfig) -> None:
    """Raise DataError if the images need `data.value_range` and it is None; warn if it does not suit them."""
    if refusal := value_range.refusal(values, data.value_range):
        raise_refusals(path, [refusal])
    for line in value_range.warnings(values, data.value_range):
        log.warning("%s: %s", path, line)


def _count_per_image(counts: Sequence[Sequence[records.InstanceCounts]], categories: Categories) -> np.ndarray:
    """Return instances, instances with a segmentation, labeled keypoints and crowds of each image, (n, 4) int32."""
    selected = set(categories.ids)
    rows = [(i, *count[1:]) for i, image in enumerate(counts) for count in image if count.category_id in selected]
    flat = np.array(rows, np.int32).reshape(-1, 5)
    sums = np.zeros((len(counts), 4), np.int32)
    np.add.at(sums, flat[:, 0], flat[:, 1:])
    return sums


def _select_rows(path: Path, keypoints: np.ndarray, min_keypoints: int) -> np.ndarray:
    """Return the indices (m,) of images with enough labeled `keypoints` (n,). Raises DataError if there are none."""
    rows = np.flatnonzero(keypoints >= min_keypoints)
    if not len(rows):
        raise DataError(
            f"{path}: no image has at least data.min_keypoints={min_keypoints} labeled keypoints; reduce it, or label"
            " more keypoints"
        )
    if len(rows) < len(keypoints):
        kept = f"{len(rows)} of {len(keypoints)} images, those with at least {min_keypoints} labeled keypoints"
        log.info("%s: using %s", path, kept)
    return rows


def _log_findings(dataset: Dataset, warnings: Sequence[str], max_instances: int) -> None:
    """Log warnings, problems of annotations, and images with more than `max_instances`."""
    lines = [*warnings, *describe_problems(dataset.problems)]
    crowded = np.flatnonzero(dataset.instances > max_instances)
    if len(crowded):
        surplus = int((dataset.instances[crowded] - max_instances).sum())
        lines.append(
            f"{len(crowded)} images have more than data.max_instances={max_instances} instances; their {surplus}"
            f" smallest instances are ignored in training; image ids {format_list(dataset.ids[crowded].tolist())}"
        )
    for line in lines:
        log.warning("%s: %s", dataset.annotations_path, line)
