"""A COCO file and its images, judged as training judges them, and the numbers in it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mrcnn_jax.config import DataConfig
from mrcnn_jax.data import image_files, value_range
from mrcnn_jax.data.annotations import AnnotationFile, ImageEntry
from mrcnn_jax.data.findings import (
    Refusal,
    describe_problems,
    describe_refusals,
    no_instances_message,
    no_masks_message,
)
from mrcnn_jax.data.image_files import ImageCheck
from mrcnn_jax.data.mask_crops import annotation_area
from mrcnn_jax.data.segmentation_checks import MASK_PROBLEMS
from mrcnn_jax.data.value_range import MeasuredRange, Range
from mrcnn_jax.tools.check.sources import Source, split_of, words

MAX_INSTANCES = DataConfig.max_instances  # instances of an image that training sees, unless it is told otherwise
SMALL, LARGE = 32**2, 96**2  # square pixels: COCO's small, medium and large objects
AREAS = ("small", "medium", "large")

_Key = tuple[str, int, int, int]
Watch = Callable[[Iterable[ImageCheck], int], Iterable[ImageCheck]]


class Annotated(NamedTuple):
    """The m annotations that training would read, crowds included."""

    images: np.ndarray  # (m,) int, index of the image
    classes: np.ndarray  # (m,) int, 1..C
    areas: np.ndarray  # (m,) float, square pixels
    boxes: np.ndarray  # (m, 4) float, x y width height
    crowd: np.ndarray  # (m,) bool
    rle: np.ndarray  # (m,) bool: its mask is run-length encoded
    outlined: np.ndarray  # (m,) bool: it has a mask
    keypoints: np.ndarray  # (m,) int, how many are labeled


@dataclass(frozen=True, eq=False)
class Survey:
    """What is known of one file. Arrays have a row for each of the n images or C classes."""

    path: Path
    folder: Path
    content: AnnotationFile
    refusals: list[Refusal]
    nothing: str  # why a model could learn nothing from it, or no masks; empty where it could
    warnings: list[str]  # what training does not mind, and may be wrong all the same
    values: list[MeasuredRange]  # of images of more than 8 bits
    value_range: Range | None  # that they are shown with: as given, else what suits them
    annotated: Annotated
    sizes: np.ndarray  # (n, 2) int, height and width
    instances: np.ndarray  # (n,) int, without crowds
    class_instances: np.ndarray  # (C,) int, without crowds
    class_images: np.ndarray  # (C,) int, images with such an instance

    @property
    def findings(self) -> list[str]:
        """A line for each kind of finding, all of them by name, in the words of training."""
        dropped = [f"{self.path}: {line}" for line in describe_problems(self.content.problems, None)]
        refused = [*describe_refusals(self.path, self.refusals, None), self.nothing]
        return [line for line in (*refused, *dropped) if line]

    @property
    def status(self) -> str:
        """`refused`, `dropped` or `clean`: whether training starts, and whether it sees everything."""
        return "refused" if self.refusals or self.nothing else "dropped" if self.content.problems else "clean"


def survey(sources: Sequence[Source], watch: Watch, value_range: Range | None = None) -> list[Survey]:
    """Judge and count every file. An image that several files name is read once. `watch(results, total)` passes the
    results on, and shows how many have come. `value_range` as in `data.value_range`."""
    wanted: dict[Path, dict[_Key, ImageEntry]] = {}
    for source in sources:
        wanted.setdefault(source.folder, {}).update((_key(image), image) for image in source.content.images)
    keys = [(folder, key) for folder, images in wanted.items() for key in images]
    judged = dict(zip(keys, list(watch(_examine(wanted), len(keys))), strict=True))
    surveys = []
    for source in sources:
        found = [judged[source.folder, _key(image)] for image in source.content.images]
        surveys.append(_count(source, found, value_range))
    return surveys


def facts(survey: Survey) -> list[tuple[str, str]]:
    """What there is to say of a data set in a few lines: (heading, text)."""
    annotated = survey.annotated
    crowds = int(annotated.crowd.sum())
    used = int((survey.class_instances > 0).sum())
    return [
        ("images", f"{len(survey.sizes):,}{_of(int((survey.instances == 0).sum()), 'without instances')}"),
        ("instances", f"{int(survey.instances.sum()):,}{_of(crowds, 'crowds beside them')}"),
        ("classes", f"{len(survey.class_instances):,}{_of(len(survey.class_instances) - used, 'without instances')}"),
        ("masks", _masks(annotated)),
        ("keypoints", _keypoints(survey)),
        *_picture_sizes(survey.sizes),
        *[("values", f"{v.low:g} to {v.high:g}, {_type(v)}") for v in survey.values],
        ("areas", _areas(annotated)),
        ("instances per image", _crowding(survey)),
    ]


def by_frequency(survey: Survey) -> list[tuple[str, int, int, int]]:
    """(name, category id, instances, images) of each class, the most frequent first."""
    categories = survey.content.categories
    counts = (survey.class_instances.tolist(), survey.class_images.tolist())
    rows = zip(categories.names, categories.ids, *counts, strict=True)
    return sorted(rows, key=lambda row: (-row[2], row[0], row[1]))


def area_groups(annotated: Annotated) -> list[int]:
    """How many instances, without crowds, are small, medium and large to COCO."""
    return np.bincount(np.digitize(annotated.areas[~annotated.crowd], (SMALL, LARGE)), minlength=3).tolist()


def surplus(survey: Survey) -> tuple[int, int]:
    """How many images have more instances than slots, and how many instances are too many."""
    beyond = survey.instances - MAX_INSTANCES
    return int((beyond > 0).sum()), int(beyond[beyond > 0].sum())


def _key(image: ImageEntry) -> _Key:
    """Whatever a judgment depends on or names."""
    return image.file_name, image.id, image.height, image.width


def _examine(wanted: dict[Path, dict[_Key, ImageEntry]]) -> Iterator[ImageCheck]:
    for folder, images in wanted.items():
        yield from image_files.check_images(folder, list(images.values()))


def _count(source: Source, found: Sequence[ImageCheck], scale: Range | None) -> Survey:
    images, values = source.content.images, value_range.merge_ranges(one.values for one in found)
    unscaled = value_range.refusal(values, scale)
    refusals = [*source.content.refusals, *image_files.collect_refusals(found), *([unscaled] if unscaled else [])]
    remarks = describe_refusals(source.path, [warning for one in found for warning in one.warnings], None)
    suspicions = [*source.content.warnings, *value_range.warnings(values, scale)]
    annotated = _gather(images, source.content.categories.class_of())
    plain = ~annotated.crowd
    classes = len(source.content.categories.ids)
    pairs = np.unique(annotated.images[plain].astype(np.int64) * (classes + 1) + annotated.classes[plain])
    return Survey(
        path=source.path,
        folder=source.folder,
        content=source.content,
        refusals=refusals,
        nothing="" if refusals else _nothing(source, annotated),
        warnings=[*remarks, *(f"{source.path}: {line}" for line in suspicions)],
        values=values,
        value_range=scale or (value_range.suggest_range(values) if values else None),
        annotated=annotated,
        sizes=np.array([(image.height, image.width) for image in images], np.int64).reshape(-1, 2),
        instances=np.bincount(annotated.images[plain], minlength=len(images)),
        class_instances=np.bincount(annotated.classes[plain], minlength=classes + 1)[1:],
        class_images=np.bincount(pairs % (classes + 1), minlength=classes + 1)[1:],
    )


def _nothing(source: Source, annotated: Annotated) -> str:
    """`Survey.nothing` of a file that is meant for training, as far as its name says."""
    if split_of(source.path) in ("val", "test") or "unlabeled" in words(source.path.stem):
        return ""
    plain, problems = ~annotated.crowd, source.content.problems
    instances, crowds = int(plain.sum()), int(annotated.crowd.sum())
    reason = no_instances_message(source.path, source.content.categories.names, instances, crowds, problems)
    lost = not annotated.outlined[plain].any() and any(problem.kind in MASK_PROBLEMS for problem in problems)
    return reason or (no_masks_message(source.path, problems) if lost else "")


def _gather(images: Sequence[ImageEntry], class_of: dict[int, int]) -> Annotated:
    rows = [(i, a) for i, image in enumerate(images) for a in image.annotations if a["category_id"] in class_of]
    masks = [a.get("segmentation") for _, a in rows]
    return Annotated(
        images=np.array([i for i, _ in rows], np.int64),
        classes=np.array([class_of[a["category_id"]] for _, a in rows], np.int64),
        areas=np.array([annotation_area(a, images[i].height, images[i].width) for i, a in rows], np.float64),
        boxes=np.array([a["bbox"] for _, a in rows], np.float64).reshape(-1, 4),
        crowd=np.array([bool(a.get("iscrowd")) for _, a in rows], bool),
        rle=np.array([isinstance(mask, dict) for mask in masks], bool),
        outlined=np.array([bool(mask) for mask in masks], bool),
        keypoints=np.array([sum(v > 0 for v in (a.get("keypoints") or ())[2::3]) for _, a in rows], np.int64),
    )


def _of(count: int, what: str) -> str:
    return f", {count:,} {what}" if count else ""


def _masks(annotated: Annotated) -> str:
    rle, polygons = int(annotated.rle.sum()), int((annotated.outlined & ~annotated.rle).sum())
    if not rle + polygons:
        return "none"
    parts = ((polygons, "of polygons"), (rle, "run-length encoded"))
    return ", ".join(f"{count:,} {what}" for count, what in parts if count)


def _keypoints(survey: Survey) -> str:
    names = survey.content.categories.keypoint_schema.names
    if not survey.content.categories.keypoint_counts():
        return "none"
    shared = f"{len(names)} keypoints" if names else "categories with different keypoints: not trainable together"
    labeled = survey.annotated.keypoints[~survey.annotated.crowd]
    with_some = f"{int((labeled > 0).sum()):,} instances with labeled ones"
    return f"{shared}; {with_some}, {int(labeled.sum()):,} labeled in all"


def _picture_sizes(sizes: np.ndarray) -> list[tuple[str, str]]:
    """The image with the middle number of pixels is the median one."""
    if not len(sizes):
        return []
    order = np.argsort(sizes.prod(axis=1), kind="stable")
    smallest, median, largest = ("x".join(map(str, sizes[order[i]])) for i in (0, (len(order) - 1) // 2, -1))
    distinct, counts = np.unique(sizes, axis=0, return_counts=True)
    common = [f"{h}x{w} ({counts[i]:,})" for i in np.argsort(-counts, kind="stable")[:3] for h, w in [distinct[i]]]
    aspects = np.sort(sizes[:, 1] / sizes[:, 0])
    middle = aspects[(len(aspects) - 1) // 2]
    return [
        ("height x width", f"smallest {smallest}, median {median}, largest {largest}"),
        ("", f"{len(distinct):,} different; most often {', '.join(common)}"),
        ("width / height", f"least {aspects[0]:.2f}, median {middle:.2f}, greatest {aspects[-1]:.2f}"),
    ]


def _type(values: MeasuredRange) -> str:
    return f"unsigned integers of {values.bits} bits" if values.bits else "floats, signed or 32-bit integers"


def _areas(annotated: Annotated) -> str:
    groups = area_groups(annotated)
    limits = (f"below {math.isqrt(SMALL)}²", "between", f"from {math.isqrt(LARGE)}²")
    total = max(sum(groups), 1)
    parts = zip(AREAS, limits, groups, strict=True)
    return ", ".join(f"{name} ({limit}) {n:,} = {n / total:.0%}" for name, limit, n in parts)


def _crowding(survey: Survey) -> str:
    counts = survey.instances
    if not len(counts):
        return "none"
    images, instances = surplus(survey)
    most = int(counts.argmax())
    text = f"median {np.median(counts):g}, most {counts[most]:,} (image {survey.content.images[most].id})"
    if images:
        text += f"; {images:,} images have more than data.max_instances={MAX_INSTANCES}"
        text += f", the {instances:,} smallest not trained on"
    return text
