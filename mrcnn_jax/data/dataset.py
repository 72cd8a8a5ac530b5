"""A COCO-style data set ready to be read: `load_split` checks, prepares and opens one split of the configuration."""

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
from mrcnn_jax.data.findings import Problem, describe_problems, nothing_to_learn, raise_refusals
from mrcnn_jax.data.synthetic import generate
from mrcnn_jax.data.value_range import Range
from mrcnn_jax.errors import DataError, listing

__all__ = ["Categories", "DataError", "Dataset", "Problem", "load_split"]

log = logging.getLogger(__name__)

_DIGITS = 16  # of hashes in fingerprints


@dataclass(frozen=True, eq=False)
class Dataset:
    """One split: n images with their annotations, addressed by index 0..n-1. Can be pickled for worker processes."""

    annotations_path: Path  # the COCO JSON, for COCOeval; it may hold more images than `ids`
    images_path: Path
    categories: Categories
    ids: np.ndarray  # (n,) int64, COCO image ids
    file_names: tuple[str, ...]
    sizes: np.ndarray  # (n, 2) int32, height and width of the original image
    instances: np.ndarray  # (n,) int32, annotated instances that are no crowds
    has_masks: bool  # some instance has a mask
    has_keypoints: bool  # some instance has a labeled keypoint
    problems: tuple[Problem, ...]  # what was left out
    value_range: Range | None  # of images of more than 8 bits
    rows: np.ndarray  # (n,) int64, which of the prepared records each image is
    digests: tuple[str, str]  # SHA-256 of the JSON; of the names and bytes of all prepared images
    reader: records.RecordReader = field(repr=False)

    def __len__(self) -> int:
        return len(self.ids)

    def record(self, index: int) -> tuple[bytes, list[dict[str, Any]]]:
        """The encoded image file, and its COCO annotations of these categories, crowds included.

        Raises UnreadableRecordError if it is damaged, DataError if all records are gone.
        """
        try:
            content, annotations = self.reader[int(self.rows[index])]
        except records.UnreadableRecordError as error:
            raise records.UnreadableRecordError(f"{self.name(index)}: {error}") from None
        return content, [a for a in annotations if a["category_id"] in self._known]

    def fingerprint(self) -> dict[str, Any]:
        """The content of the split as JSON values: the same wherever and whenever the same data is opened."""
        return {
            "images": len(self),
            "instances": int(self.instances.sum()),
            "categories": [list(pair) for pair in zip(self.categories.ids, self.categories.names, strict=True)],
            "SHA-256 of the image ids": hashlib.sha256(self.ids.tobytes()).hexdigest()[:_DIGITS],
            "SHA-256 of the image sizes": hashlib.sha256(self.sizes.tobytes()).hexdigest()[:_DIGITS],
            "SHA-256 of the annotation file": self.digests[0][:_DIGITS],
            "SHA-256 of the image files": self.digests[1][:_DIGITS],
        }

    @functools.cached_property
    def _known(self) -> frozenset[int]:
        return frozenset(self.categories.ids)

    def decode(self, content: bytes, reduction: int = 1) -> np.ndarray | None:
        """Pixels of the encoded file of one of these images, see `image_files.decode`."""
        return image_files.decode(content, reduction, self.value_range)

    def why_undecodable(self, index: int) -> str:
        """What is wrong with an image of which `decode` makes nothing, and what to do."""
        reason = image_files.explain(self.record(index)[0], self.value_range)
        return f"{self.name(index)} cannot be decoded: {reason}; replace the file, or take it out of the JSON"

    def name(self, index: int) -> str:
        """What an image is called in messages."""
        return f"{self.image_path(index)} (image id {self.ids[index]})"

    def image_path(self, index: int) -> Path:
        """Path of the original image file."""
        return self.images_path / self.file_names[index]


def load_split(data: DataConfig, split: Literal["train", "eval"]) -> Dataset:
    """Check and open a split; writes the procedural set and the prepared records first where they are missing.

    Only `data.categories` count, and for training only images with `data.min_keypoints`; images without an instance
    are background. Raises DataError, before anything is trained, for data that does not fit together (see
    `annotations`), and for training data without an instance. What was dropped, and how many instances exceed
    `max_instances`, is logged.
    """
    if data.shapes is not None:
        generate.write(data.shapes, Path(data.root))
    chosen = data.train if split == "train" else data.eval
    json_path, images = Path(data.root) / chosen.annotations, Path(data.root) / chosen.images
    cache = Path(data.cache_dir) if data.cache_dir else records.default_cache()
    folder, index = records.open_prepared(json_path, images, chosen.image_ids, cache)
    _check_values(json_path, index.values, data)
    categories = index.categories.select(data.categories)
    sums = _sums(index.tallies, categories)
    instances, _, _, crowds = sums.sum(axis=0).tolist()
    reason = nothing_to_learn(json_path, categories.names, instances, crowds, index.problems)
    if reason and (split == "train" or not categories.names):
        raise DataError(reason)
    rows = _rows_to_use(json_path, sums[:, 2], data.min_keypoints if split == "train" else 0)
    sizes = np.stack([index.heights, index.widths], axis=1).astype(np.int32)
    dataset = Dataset(
        annotations_path=json_path,
        images_path=images,
        categories=categories,
        ids=np.asarray(index.ids, np.int64)[rows],
        file_names=tuple(index.file_names[row] for row in rows),
        sizes=sizes[rows],
        instances=sums[rows, 0],
        has_masks=bool(sums[:, 1].any()),
        has_keypoints=bool(sums[:, 2].any()),
        problems=tuple(index.problems),
        value_range=data.value_range,
        rows=rows,
        digests=(index.annotations_digest, index.images_digest),
        reader=records.RecordReader(folder),
    )
    _report(dataset, index.suspicions, data.max_instances)
    return dataset


def _check_values(path: Path, values: Sequence[value_range.Values], data: DataConfig) -> None:
    """Raise DataError for images that need a value range and have none; log what does not suit the images."""
    if refusal := value_range.refusal(values, data.value_range):
        raise_refusals(path, [refusal])
    for line in value_range.warnings(values, data.value_range):
        log.warning("%s: %s", path, line)


def _sums(tallies: Sequence[Sequence[records.InstanceCounts]], categories: Categories) -> np.ndarray:
    """Instances, those with a segmentation, labeled keypoints, and crowds of each image: (n, 4) int32."""
    chosen = set(categories.ids)
    rows = [(i, *tally[1:]) for i, image in enumerate(tallies) for tally in image if tally.category_id in chosen]
    flat = np.array(rows, np.int32).reshape(-1, 5)
    sums = np.zeros((len(tallies), 4), np.int32)
    np.add.at(sums, flat[:, 0], flat[:, 1:])
    return sums


def _rows_to_use(path: Path, keypoints: np.ndarray, fewest: int) -> np.ndarray:
    """Which images (m,) of n have at least `fewest` of the labeled `keypoints` (n,). Raises DataError for none."""
    rows = np.flatnonzero(keypoints >= fewest)
    if not len(rows):
        raise DataError(
            f"{path}: no image has the data.min_keypoints={fewest} labeled keypoints that training asks for"
        )
    if len(rows) < len(keypoints):
        log.info("%s: %d of %d images have %d labeled keypoints or more", path, len(rows), len(keypoints), fewest)
    return rows


def _report(dataset: Dataset, suspicions: Sequence[str], max_instances: int) -> None:
    """Log what training will not see, and what looks wrong."""
    for line in [*suspicions, *describe_problems(dataset.problems)]:
        log.warning("%s: %s", dataset.annotations_path, line)
    crowded = np.flatnonzero(dataset.instances > max_instances)
    if len(crowded):
        surplus = int((dataset.instances[crowded] - max_instances).sum())
        log.warning(
            "%s: %d images have more than data.max_instances=%d instances; the %d smallest ones are not trained on;"
            " image ids %s",
            dataset.annotations_path,
            len(crowded),
            max_instances,
            surplus,
            listing(dataset.ids[crowded].tolist()),
        )
