"""A COCO-style data set ready to be read: `load_split` checks, prepares and opens one split of the configuration."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mrcnn_jax.config import DataConfig
from mrcnn_jax.data import records, shapes
from mrcnn_jax.data.annotations import Categories, DataError, Problem, listing

__all__ = ["Categories", "DataError", "Dataset", "Problem", "load_split"]

log = logging.getLogger(__name__)


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
    has_masks: bool  # every instance has a segmentation
    problems: tuple[Problem, ...]  # what was left out
    reader: records.RecordReader = field(repr=False)

    def __len__(self) -> int:
        return len(self.ids)

    def record(self, index: int) -> tuple[bytes, list[dict[str, Any]]]:
        """The encoded image file, and its COCO annotations, crowds included."""
        return self.reader[index]

    def image_path(self, index: int) -> Path:
        """Path of the original image file."""
        return self.images_path / self.file_names[index]


def load_split(data: DataConfig, split: Literal["train", "eval"]) -> Dataset:
    """Check and open a split; writes the procedural set and the prepared records first where they are missing.

    Raises DataError, before anything is trained, for data that does not fit together (see `annotations`). What was
    dropped, and how many instances exceed `max_instances`, is logged.
    """
    if data.shapes is not None:
        shapes.write(data.shapes, Path(data.root))
    chosen = data.train if split == "train" else data.eval
    json_path, images = Path(data.root) / chosen.annotations, Path(data.root) / chosen.images
    cache = Path(data.cache_dir).expanduser() if data.cache_dir else records.default_cache()
    folder, index = records.open_prepared(json_path, images, chosen.image_ids, cache)
    dataset = Dataset(
        annotations_path=json_path,
        images_path=images,
        categories=index.categories,
        ids=np.asarray(index.ids, np.int64),
        file_names=tuple(index.file_names),
        sizes=np.stack([index.heights, index.widths], axis=1).astype(np.int32),
        instances=np.asarray(index.instances, np.int32),
        has_masks=index.has_masks,
        problems=tuple(index.problems),
        reader=records.RecordReader(folder),
    )
    _report(dataset, data.max_instances)
    return dataset


def _report(dataset: Dataset, max_instances: int) -> None:
    """Log what training will not see."""
    for line in _describe(dataset.problems):
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


def _describe(problems: Sequence[Problem]) -> list[str]:
    """One line for each kind of problem: how many, and the annotations by id."""
    lines = []
    for kind, count in Counter(problem.kind for problem in problems).items():
        named = [f"{p.annotation_id} (image {p.image_id})" for p in problems if p.kind == kind]
        lines.append(f"dropped {count}, {kind}: annotation {listing(named)}")
    return lines
