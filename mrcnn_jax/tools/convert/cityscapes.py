"""Conversion of Cityscapes (Cordts et al. 2016), from `*_gtFine_instanceIds.png` and the images of leftImg8bit.

A value of at least 1000 is an instance of class `value // 1000`. A smaller one is a class: a group of instances, or a
class without instances (cityscapesScripts, helpers/labels.py). Groups of the eight classes that the benchmark
evaluates become crowds (`iscrowd`). Category ids are Cityscapes' own.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from mrcnn_jax.data.findings import Refusal, raise_refusals
from mrcnn_jax.errors import DataError, format_list
from mrcnn_jax.tools.convert import files, labels
from mrcnn_jax.tools.convert.writer import Conversion, ConvertedImage

NAMES = {24: "person", 25: "rider", 26: "car", 27: "truck", 28: "bus", 31: "train", 32: "motorcycle", 33: "bicycle"}
_IMAGE, _MASK = "_leftImg8bit", "_gtFine_instanceIds"


def convert(root: Path, split: str) -> Conversion:
    """Convert a split (train, val) of the folder with gtFine/ and leftImg8bit/.

    Raises DataError that lists all images without annotations, annotations without an image, and unreadable files.
    """
    images, annotations = (files.require_folder(root / kind) for kind in ("leftImg8bit", "gtFine"))
    if not (images / split).is_dir() or not (annotations / split).is_dir():
        splits = sorted(folder.name for folder in annotations.iterdir() if folder.is_dir())
        raise DataError(f"--split={split}: not in both {images} and {annotations}; there are {format_list(splits)}")
    images, annotations = images / split, annotations / split
    names = [_stem(file, _IMAGE) for file in files.find_files(images) if file.stem.endswith(_IMAGE)]
    masks = {_stem(file, _MASK) for file in files.find_files(annotations, (".png",)) if file.stem.endswith(_MASK)}
    unmatched_images = [
        Refusal(f"images without *{_MASK}.png in {annotations}", n, "add it: gtFine_trainvaltest.zip has it")
        for n in names
        if n not in masks
    ]
    unmatched_masks = [
        Refusal(f"annotations without an image in {images}", n, "add it: leftImg8bit_trainvaltest.zip has it")
        for n in sorted(masks - set(names))
    ]
    raise_refusals(root, unmatched_images + unmatched_masks)
    read = functools.partial(_convert_image, images, annotations)
    return Conversion(images, dict(NAMES), files.convert_all(root, read, names, "images converted"))


def _stem(file: Path, ending: str) -> str:
    """Return the common part of file names, such as aachen/aachen_000000_000019."""
    return file.with_suffix("").as_posix().removesuffix(ending)


def _convert_image(images: Path, annotations: Path, name: str) -> ConvertedImage:
    file_name, path = f"{name}{_IMAGE}.png", annotations / f"{name}{_MASK}.png"
    size = files.image_size(images / file_name)
    values = labels.read(path, size)
    classes = np.where(values >= 1000, values // 1000, values)
    regions = labels.encode_regions(path, np.where(np.isin(classes, list(NAMES)), values, 0))
    entries = [
        {"category_id": value // 1000 if value >= 1000 else value, "iscrowd": int(value < 1000), **region}
        for value, region in regions.items()
    ]
    return ConvertedImage(file_name, *size, entries)
