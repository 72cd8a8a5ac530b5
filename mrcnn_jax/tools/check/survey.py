"""Statistics of a COCO file and its images, and what training would refuse or drop."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mrcnn_jax.config import DataConfig
from mrcnn_jax.data import findings, image_files, value_range
from mrcnn_jax.data.annotations import AnnotationFile, ImageEntry
from mrcnn_jax.data.findings import Refusal
from mrcnn_jax.data.image_files import ImageCheck
from mrcnn_jax.data.mask_crops import annotation_area
from mrcnn_jax.data.segmentation_checks import MASK_PROBLEMS
from mrcnn_jax.data.value_range import MeasuredRange, Range
from mrcnn_jax.tools.check.sources import DatasetFile, name_words, split_of
from mrcnn_jax.tools.pages.rendering import counted

MAX_INSTANCES = DataConfig.max_instances  # per image in training, by default
SMALL, LARGE = 32**2, 96**2  # square pixels: limits of COCO's small, medium and large objects
AREAS = ("small (below 32²)", "medium (between)", "large (from 96²)")

Progress = Callable[[Iterable[ImageCheck], int], Iterable[ImageCheck]]


class AnnotationArrays(NamedTuple):
    """The m annotations that training would read, including crowds."""

    images: np.ndarray  # (m,) int, index of the image
    classes: np.ndarray  # (m,) int, 1..C
    areas: np.ndarray  # (m,) float, square pixels
    boxes: np.ndarray  # (m, 4) float, x y width height
    crowd: np.ndarray  # (m,) bool
    rle: np.ndarray  # (m,) bool: the mask is run-length encoded
    has_mask: np.ndarray  # (m,) bool
    keypoints: np.ndarray  # (m,) int, number of labeled keypoints


@dataclass(frozen=True, eq=False)
class Survey:
    """Statistics and findings of one file with n images and C classes."""

    path: Path
    folder: Path
    content: AnnotationFile
    refusals: list[Refusal]
    untrainable: str  # why no instance, or no mask, is left to train on; empty if some are
    warnings: list[str]  # what training accepts although it may be wrong
    values: list[MeasuredRange]  # pixel values of images with more than 8 bits
    value_range: Range | None  # to show these images with: as given, else suggested
    annotations: AnnotationArrays
    sizes: np.ndarray  # (n, 2) int, height and width
    instances: np.ndarray  # (n,) int, without crowds
    class_instances: np.ndarray  # (C,) int, without crowds
    class_images: np.ndarray  # (C,) int, images with an instance of the class, without crowds

    @property
    def findings(self) -> list[str]:
        """Messages about refusals and dropped annotations, one for each kind, as in training but complete."""
        dropped = [f"{self.path}: {line}" for line in findings.describe_problems(self.content.problems, None)]
        refused = [*findings.describe_refusals(self.path, self.refusals, None), self.untrainable]
        return [line for line in (*refused, *dropped) if line]

    @property
    def status(self) -> str:
        """`refused` if training would not start, `dropped` if it would leave something out, else `clean`."""
        return "refused" if self.refusals or self.untrainable else "dropped" if self.content.problems else "clean"


def survey(files: Sequence[DatasetFile], progress: Progress, value_range: Range | None = None) -> list[Survey]:
    """Return the survey of every file. Images that several files contain are read once.

    `progress(results, total)` yields the results unchanged and displays how many there are. `value_range` is
    `data.value_range` of the configuration.
    """
    images = {(file.folder, _key(image)): image for file in files for image in file.content.images}
    folders = itertools.groupby(images, key=lambda key: key[0])
    results = (
        result for folder, keys in folders for result in image_files.check_images(folder, [images[key] for key in keys])
    )
    checked = dict(zip(images, list(progress(results, len(images))), strict=True))
    return [
        _survey_file(file, [checked[file.folder, _key(image)] for image in file.content.images], value_range)
        for file in files
    ]


def summary_rows(survey: Survey) -> list[tuple[str, str]]:
    """Return the statistics of a dataset as (heading, text)."""
    annotations = survey.annotations
    crowds = int(annotations.crowd.sum())
    num_classes, used = len(survey.class_instances), int((survey.class_instances > 0).sum())
    return [
        ("images", f"{len(survey.sizes):,}{_and_count(int((survey.instances == 0).sum()), 'without instances')}"),
        ("instances", f"{int(survey.instances.sum()):,}{_and_count(crowds, 'more with iscrowd=1')}"),
        ("classes", f"{num_classes:,}{_and_count(num_classes - used, 'without instances')}"),
        ("masks", _masks(annotations)),
        ("keypoints", _keypoints(survey)),
        *_image_sizes(survey.sizes),
        *[("values", f"{v.low:g} to {v.high:g}, {_type(v)}") for v in survey.values],
        ("areas", _areas(annotations)),
        ("instances per image", _crowding(survey)),
    ]


def class_rows(survey: Survey) -> list[tuple[str, int, int, int]]:
    """Return (name, category id, instances, images) of each class, the most frequent first."""
    categories = survey.content.categories
    counts = (survey.class_instances.tolist(), survey.class_images.tolist())
    rows = zip(categories.names, categories.ids, *counts, strict=True)
    return sorted(rows, key=lambda row: (-row[2], row[0], row[1]))


def area_groups(annotations: AnnotationArrays) -> list[int]:
    """Return the numbers of small, medium and large instances by COCO's limits, without crowds."""
    return np.bincount(np.digitize(annotations.areas[~annotations.crowd], (SMALL, LARGE)), minlength=3).tolist()


def _key(image: ImageEntry) -> Hashable:
    """Return what the check of an image and its messages depend on."""
    return image.file_name, image.id, image.height, image.width


def _survey_file(file: DatasetFile, examined: Sequence[ImageCheck], given_range: Range | None) -> Survey:
    images, values = file.content.images, value_range.merge_ranges(result.values for result in examined)
    refusals = [*file.content.refusals, *image_files.collect_refusals(examined)]
    refusals += filter(None, [value_range.refusal(values, given_range)])
    image_warnings = findings.describe_refusals(file.path, [w for result in examined for w in result.warnings], None)
    suspicions = [*file.content.warnings, *value_range.warnings(values, given_range)]
    annotations = _annotation_arrays(images, file.content.categories.class_of())
    plain = ~annotations.crowd
    classes = len(file.content.categories.ids)
    pairs = np.unique(annotations.images[plain].astype(np.int64) * (classes + 1) + annotations.classes[plain])
    return Survey(
        path=file.path,
        folder=file.folder,
        content=file.content,
        refusals=refusals,
        untrainable="" if refusals else _untrainable(file, annotations),
        warnings=[*image_warnings, *(f"{file.path}: {line}" for line in suspicions)],
        values=values,
        value_range=given_range or (value_range.suggest_range(values) if values else None),
        annotations=annotations,
        sizes=np.array([(image.height, image.width) for image in images], np.int64).reshape(-1, 2),
        instances=np.bincount(annotations.images[plain], minlength=len(images)),
        class_instances=np.bincount(annotations.classes[plain], minlength=classes + 1)[1:],
        class_images=np.bincount(pairs % (classes + 1), minlength=classes + 1)[1:],
    )


def _untrainable(file: DatasetFile, annotations: AnnotationArrays) -> str:
    """Return `Survey.untrainable`; empty for a file that is not for training, by its name."""
    if split_of(file.path) in ("val", "test") or "unlabeled" in name_words(file.path.stem):
        return ""
    plain, problems = ~annotations.crowd, file.content.problems
    instances, crowds = int(plain.sum()), int(annotations.crowd.sum())
    reason = findings.no_instances_message(file.path, file.content.categories.names, instances, crowds, problems)
    no_mask_left = not annotations.has_mask[plain].any() and any(problem.kind in MASK_PROBLEMS for problem in problems)
    return reason or (findings.no_masks_message(file.path, problems) if no_mask_left else "")


def _annotation_arrays(images: Sequence[ImageEntry], class_of: dict[int, int]) -> AnnotationArrays:
    rows = [(i, a) for i, image in enumerate(images) for a in image.annotations if a["category_id"] in class_of]
    masks = [a.get("segmentation") for _, a in rows]
    return AnnotationArrays(
        images=np.array([i for i, _ in rows], np.int64),
        classes=np.array([class_of[a["category_id"]] for _, a in rows], np.int64),
        areas=np.array([annotation_area(a, images[i].height, images[i].width) for i, a in rows], np.float64),
        boxes=np.array([a["bbox"] for _, a in rows], np.float64).reshape(-1, 4),
        crowd=np.array([bool(a.get("iscrowd")) for _, a in rows], bool),
        rle=np.array([isinstance(mask, dict) for mask in masks], bool),
        has_mask=np.array([bool(mask) for mask in masks], bool),
        keypoints=np.array([sum(v > 0 for v in (a.get("keypoints") or ())[2::3]) for _, a in rows], np.int64),
    )


def _and_count(count: int, text: str) -> str:
    return f", {count:,} {text}" if count else ""


def _masks(annotations: AnnotationArrays) -> str:
    rle, polygons = int(annotations.rle.sum()), int((annotations.has_mask & ~annotations.rle).sum())
    parts = ((polygons, "as polygons"), (rle, "as RLE"))
    return ", ".join(f"{count:,} {text}" for count, text in parts if count) or "none"


def _keypoints(survey: Survey) -> str:
    names = survey.content.categories.keypoint_schema.names
    if not survey.content.categories.keypoint_counts():
        return "none"
    schema = f"{len(names)} keypoints" if names else "categories with different keypoints: not trainable together"
    labeled = survey.annotations.keypoints[~survey.annotations.crowd]
    instances = counted(int((labeled > 0).sum()), "instance")
    return f"{schema}; {instances} with labeled keypoints, {int(labeled.sum()):,} labeled in all"


def _image_sizes(sizes: np.ndarray) -> list[tuple[str, str]]:
    """Return rows about the sizes (n, 2); the median is that of the number of pixels."""
    if not len(sizes):
        return []
    order, middle = np.argsort(sizes.prod(axis=1), kind="stable"), (len(sizes) - 1) // 2
    smallest, median, largest = ("x".join(map(str, sizes[order[i]])) for i in (0, middle, -1))
    distinct, counts = np.unique(sizes, axis=0, return_counts=True)
    common = [f"{h}x{w} ({counts[i]:,})" for i in np.argsort(-counts, kind="stable")[:3] for h, w in [distinct[i]]]
    aspects = np.sort(sizes[:, 1] / sizes[:, 0])
    return [
        ("height x width", f"smallest {smallest}, median {median}, largest {largest}"),
        ("", f"{len(distinct):,} different; most often {', '.join(common)}"),
        ("width / height", f"least {aspects[0]:.2f}, median {aspects[middle]:.2f}, greatest {aspects[-1]:.2f}"),
    ]


def _type(values: MeasuredRange) -> str:
    return f"unsigned integers of {values.bits} bits" if values.bits else "floats, signed or 32-bit integers"


def _areas(annotations: AnnotationArrays) -> str:
    counts = area_groups(annotations)
    total = max(sum(counts), 1)
    return ", ".join(f"{name} {n:,} = {n / total:.0%}" for name, n in zip(AREAS, counts, strict=True))


def _crowding(survey: Survey) -> str:
    counts = survey.instances
    if not len(counts):
        return "none"
    largest, excess = int(counts.argmax()), counts[counts > MAX_INSTANCES] - MAX_INSTANCES
    text = f"median {np.median(counts):g}, most {counts[largest]:,} (image {survey.content.images[largest].id})"
    if len(excess):
        images = f"{counted(len(excess), 'image')} {'has' if len(excess) == 1 else 'have'}"
        text += f"; {images} more than data.max_instances={MAX_INSTANCES}: training leaves out the"
        text += f" {counted(excess.sum(), 'smallest instance')}"
    return text
