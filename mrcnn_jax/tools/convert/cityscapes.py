"""Conversion of Cityscapes (Cordts et al. 2016), from `*_gtFine_instanceIds.png` and the images of leftImg8bit.

A value of at least 1000 is an instance of class `value // 1000`. A smaller one is a class: a group of instances, or a
class without instances (cityscapesScripts, helpers/labels.py). Groups of the eight classes that the benchmark
evaluates become crowds (`iscrowd`). Category ids are Cityscapes' own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from mrcnn_jax.config.dataset_categories import CITYSCAPES
from mrcnn_jax.errors import DataError, format_list
from mrcnn_jax.tools.convert import files, labels
from mrcnn_jax.tools.convert.writer import Annotation, Conversion

_IMAGE, _MASK = "_leftImg8bit", "_gtFine_instanceIds"


def convert(root: Path, split: str) -> Conversion:
    """Convert a split (train, val) of the folder with gtFine/ and leftImg8bit/.

    Raises DataError that lists all images without annotations, annotations without an image, and unreadable files.
    """
    parents = [files.require_folder(root / kind) for kind in ("leftImg8bit", "gtFine")]
    images, annotations = (parent / split for parent in parents)
    if not images.is_dir() or not annotations.is_dir():
        splits = format_list(sorted(folder.name for folder in parents[1].iterdir() if folder.is_dir()))
        raise DataError(f"--split={split}: not in both {parents[0]} and {parents[1]}; there are {splits}")
    image_files = _by_name(files.find_files(images), _IMAGE)
    mask_files = _by_name(files.find_files(annotations, (".png",)), _MASK)
    unmatched_images = [name for name in image_files if name not in mask_files]
    unmatched_masks = [name for name in mask_files if name not in image_files]
    advice = "add it: {}_trainvaltest.zip has it"
    files.refuse_unmatched(
        root,
        (f"images without *{_MASK}.png in {annotations}", unmatched_images, advice.format("gtFine")),
        (f"annotations without an image in {images}", unmatched_masks, advice.format("leftImg8bit")),
    )
    pairs = {file: [annotations / mask_files[name]] for name, file in image_files.items()}
    return Conversion(images, dict(CITYSCAPES), files.convert_images(root, images, pairs, _annotations))


def _by_name(found: Iterable[Path], ending: str) -> dict[str, Path]:
    """Return the files with this ending by the rest of their path, such as aachen/aachen_000000_000019."""
    return {file.with_suffix("").as_posix().removesuffix(ending): file for file in found if file.stem.endswith(ending)}


def _annotations(paths: Sequence[Path], size: tuple[int, int]) -> list[Annotation]:
    values = labels.read(paths[0], size)
    classes = np.where(values >= 1000, values // 1000, values)
    regions = labels.encode_regions(paths[0], np.where(np.isin(classes, list(CITYSCAPES)), values, 0))
    return [
        {"category_id": value // 1000 if value >= 1000 else value, "iscrowd": int(value < 1000), **region}
        for value, region in regions.items()
    ]
