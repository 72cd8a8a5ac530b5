"""Cityscapes (Cordts et al. 2016): the fine annotations' `*_gtFine_instanceIds.png`, with the images of leftImg8bit.

A value from 1000 on is an instance of class `value // 1000`; a smaller one is the class of a group whose instances are
not told apart, or of what has none (cityscapesScripts, helpers/labels.py). Groups of the eight classes that the
benchmark evaluates become ignored regions (`iscrowd`). Category ids are Cityscapes' own.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from mrcnn_jax.data.findings import Refusal, raise_refusals
from mrcnn_jax.errors import DataError, listing
from mrcnn_jax.tools.convert import files, labels
from mrcnn_jax.tools.convert.writer import Conversion, Picture

NAMES = {24: "person", 25: "rider", 26: "car", 27: "truck", 28: "bus", 31: "train", 32: "motorcycle", 33: "bicycle"}
_IMAGE, _MASK = "_leftImg8bit", "_gtFine_instanceIds"


def convert(root: Path, split: str) -> Conversion:
    """Read a split (train, val) of the folder with gtFine/ and leftImg8bit/. Raises DataError that names every culprit.

    Images without a file of instances are refused, and the other way round.
    """
    images, truth = (files.existing(root / kind) for kind in ("leftImg8bit", "gtFine"))
    if not (images / split).is_dir() or not (truth / split).is_dir():
        there = sorted(folder.name for folder in truth.iterdir() if folder.is_dir())
        raise DataError(f"--split={split}: not in both {images} and {truth}; there are {listing(there)}")
    images, truth = images / split, truth / split
    names = [_stem(file, _IMAGE) for file in files.find(images) if file.stem.endswith(_IMAGE)]
    masks = {_stem(file, _MASK) for file in files.find(truth, (".png",)) if file.stem.endswith(_MASK)}
    lonely = [
        Refusal(f"images without *{_MASK}.png in {truth}", n, "add it: gtFine_trainvaltest.zip has it")
        for n in names
        if n not in masks
    ]
    strangers = [
        Refusal(f"annotations without an image in {images}", n, "add it: leftImg8bit_trainvaltest.zip has it")
        for n in sorted(masks - set(names))
    ]
    raise_refusals(root, lonely + strangers)
    read = functools.partial(_picture, images, truth)
    return Conversion(images, dict(NAMES), files.gather(root, read, names, "images converted"))


def _stem(file: Path, ending: str) -> str:
    """Such as aachen/aachen_000000_000019."""
    return file.with_suffix("").as_posix().removesuffix(ending)


def _picture(images: Path, truth: Path, name: str) -> Picture:
    file_name, path = f"{name}{_IMAGE}.png", truth / f"{name}{_MASK}.png"
    size = files.image_size(images / file_name)
    values = labels.read(path, size)
    classes = np.where(values >= 1000, values // 1000, values)
    regions = labels.encode(path, np.where(np.isin(classes, list(NAMES)), values, 0))
    annotations = [
        {"category_id": value // 1000 if value >= 1000 else value, "iscrowd": int(value < 1000), **region}
        for value, region in regions.items()
    ]
    return Picture(file_name, *size, annotations)
