"""Folders of images and label masks. What the values of the masks mean is said by the user, never guessed.

- "instances": each value but 0 is one instance, in as many pieces as it has; all of one category.
- "classes": each value but 0 is a class, and each connected region of it (pixels touch at sides and corners) an
  instance. Objects of one class that touch become one instance: masks of classes do not say where one ends.
- "files": each file in the folder of an image is one instance: its pixels that are not 0.

The value `ignore` is nobody's: its pixels become an ignored region (`iscrowd`) of every category, in which detections
do not count. A mask without instances belongs to an image of background.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

import numpy as np

from mrcnn_jax.data.findings import Refusal, raise_refusals
from mrcnn_jax.errors import DataError, listing
from mrcnn_jax.tools.convert import categories as naming
from mrcnn_jax.tools.convert import files, labels
from mrcnn_jax.tools.convert.categories import Named
from mrcnn_jax.tools.convert.files import Rejected
from mrcnn_jax.tools.convert.writer import Conversion, Picture

Values = Literal["instances", "classes", "files"]
_SINGLE = "No image has more than one instance. Where masks only tell objects from background, use --values=classes"
_LOSSY = (".jpg", ".jpeg", ".webp")


class Pair(NamedTuple):
    """An image and its masks: one label image, or a file for each instance. Paths are relative to their folders."""

    image: Path
    masks: tuple[Path, ...]


def convert(
    images: Path, masks: Path, values: Values, named: Named | None = None, ignore: int | None = None, suffix: str = ""
) -> Conversion:
    """Read the folders `images` and `masks`; names pair files: `a/b.jpg` and `a/b<suffix>.png`.

    With values="files" the masks of `a/b.jpg` are those in the folder `a/b<suffix>`, or in the folder `masks` in
    there. If both folders are one, it is laid out as the Data Science Bowl of 2018: `b/images/*`, `b/masks/*`.
    Category ids are the values of the masks ("classes"), or 1. Raises DataError that names every file that will not do.
    """
    if values == "files" and ignore is not None:
        raise DataError("--ignore is a value of label masks; --values=files has none")
    pairs = (_pair_folders if values == "files" else _pair_files)(images, masks, suffix)
    if not pairs:
        raise DataError(f"{images}: no images that could be converted; --help says how they are to lie")
    if values == "classes":
        meaning = named if named is not None else _unnamed(images, masks, pairs[0])
        names = dict(enumerate(meaning.names.values(), 1)) if meaning.colors else meaning.names
        if ignore in meaning.names:
            raise DataError(f"--ignore={ignore} is the category {meaning.names[ignore]!r} too")
        read = functools.partial(_from_classes, images, masks, ignore, meaning)
    else:
        names = naming.one(named, values)
        read = functools.partial(_from_instances, images, masks, ignore)
        if values == "files":
            read = functools.partial(_from_files, images, masks)
    pictures = files.gather(masks, read, pairs, "images converted")
    single = values == "instances" and len(pairs) > 1 and max(len(picture.annotations) for picture in pictures) == 1
    return Conversion(images, names, pictures, (_SINGLE,) if single else ())


def _pair_files(images: Path, masks: Path, suffix: str) -> list[Pair]:
    """Every image with its label mask. Raises DataError that names those without a partner."""
    lossy = tuple(ending for ending in _LOSSY if images.resolve() != masks.resolve())  # JPEG masks are refused by name
    mask_files = files.find(masks, (*labels.SUFFIXES, *lossy), without=_inside(images, masks))
    image_files = files.find(images, without=_inside(masks, images))
    if images.resolve() == masks.resolve():
        if not suffix:
            raise DataError(f"{images} holds images and masks: give the --suffix that names of masks end in")
        image_files = [file for file in image_files if not file.stem.endswith(suffix)]
    mask_files = [file for file in mask_files if file.stem.endswith(suffix)]
    by_image, by_mask = files.by_stem(images, image_files), files.by_stem(masks, mask_files)
    with_suffix = {stem + suffix: file for stem, file in by_image.items()}
    lonely = [str(file) for stem, file in with_suffix.items() if stem not in by_mask]
    strangers = [str(file) for stem, file in by_mask.items() if stem not in with_suffix]
    if by_mask and len(lonely) == len(by_image) and (suffix_there := _likely_suffix(by_image, by_mask)):
        raise DataError(f"{masks}: no mask is named like its image; give --suffix={suffix_there}")
    _refuse_lonely(images, masks, lonely, strangers)
    return [Pair(file, (by_mask[stem],)) for stem, file in with_suffix.items()]


def _pair_folders(images: Path, masks: Path, suffix: str) -> list[Pair]:
    """Every image with the files of its instances."""
    if images.resolve() == masks.resolve():
        image_files = [file for file in files.find(images) if file.parent.name == "images"]
        folders = {file: file.parent.parent / "masks" for file in image_files}
    else:
        image_files = files.find(images, without=_inside(masks, images))
        stems = files.by_stem(images, image_files)
        inner = {file: Path(stem + suffix) / "masks" for stem, file in stems.items()}
        folders = {file: f if (masks / f).is_dir() else f.parent for file, f in inner.items()}
    parts: dict[Path, list[Path]] = {}
    for file in files.find(masks, (*labels.SUFFIXES, *_LOSSY)):
        parts.setdefault(file.parent, []).append(file)
    lonely = [str(file) for file, folder in folders.items() if folder not in parts]
    _refuse_lonely(images, masks, lonely, [])
    return [Pair(file, tuple(parts[folder])) for file, folder in folders.items()]


def _inside(inner: Path, outer: Path) -> Path | None:
    """`inner` where it lies in `outer`, as files of `outer` are found."""
    here, there = inner.resolve(), outer.resolve()
    return outer / here.relative_to(there) if there in here.parents else None


def _refuse_lonely(images: Path, masks: Path, lonely: Sequence[str], strangers: Sequence[str]) -> None:
    refusals = [Refusal(f"images without a mask in {masks}", name, "add it, or move the image") for name in lonely]
    refusals += [Refusal(f"masks without an image in {images}", name, "add it, or move the mask") for name in strangers]
    raise_refusals(images, refusals)


def _likely_suffix(images: dict[str, Path], masks: dict[str, Path]) -> str:
    """What the name of a mask has more than that of its image; empty where none begins like an image's."""
    mask = next(iter(masks))
    begins = max((stem for stem in images if mask.startswith(stem)), key=len, default=mask)
    return mask.removeprefix(begins)


def _from_instances(images: Path, masks: Path, ignore: int | None, pair: Pair) -> Picture:
    size = files.image_size(images / pair.image)
    values = labels.read(masks / pair.masks[0], size)
    regions = np.where(values == ignore, 0, values) if ignore is not None else values
    annotations = [{"category_id": 1, **region} for region in labels.encode(masks / pair.masks[0], regions).values()]
    return Picture(pair.image.as_posix(), *size, annotations + _ignored(masks / pair.masks[0], values, ignore, [1]))


def _from_classes(images: Path, masks: Path, ignore: int | None, meaning: Named, pair: Pair) -> Picture:
    """`meaning` names the values; a category id is the value, or the place of its color."""
    size = files.image_size(images / pair.image)
    path = masks / pair.masks[0]
    values = labels.read(path, size, colors=meaning.colors)
    found = set(labels.present(values)) - {0, ignore}
    if strange := sorted(found - meaning.names.keys()):
        shown = [f"#{value:06x}" if meaning.colors else str(value) for value in strange]
        advice = "name them in --categories, or leave them out by --ignore (a single value)"
        raise Rejected("masks with values that have no name", f"{path}: {listing(shown)}", advice)
    ids = {value: i if meaning.colors else value for i, value in enumerate(meaning.names, 1)}
    annotations: list[dict[str, Any]] = []
    for value in sorted(found, key=ids.__getitem__):
        parts = labels.components(values == value)
        regions = [{"category_id": ids[value], **region} for region in labels.encode(path, parts).values()]
        # In which order OpenCV numbers parts is not promised.
        annotations += sorted(regions, key=lambda region: (region["bbox"], region["segmentation"]["counts"]))
    return Picture(pair.image.as_posix(), *size, annotations + _ignored(path, values, ignore, sorted(ids.values())))


def _from_files(images: Path, masks: Path, pair: Pair) -> Picture:
    size = files.image_size(images / pair.image)
    annotations = []
    for path in pair.masks:
        values = labels.read(masks / path, size)
        inside = [value for value in labels.present(values) if value]
        if len(inside) != 1:
            what = f"{masks / path} has {len(inside)} values beside 0"
            advice = "each file of --values=files marks one instance by one value; take out empty ones"
            raise Rejected("masks that do not mark one instance", what, advice)
        (region,) = labels.encode(path, values).values()
        annotations.append({"category_id": 1, **region})
    return Picture(pair.image.as_posix(), *size, annotations)


def _ignored(path: Path, values: np.ndarray, ignore: int | None, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """The pixels of the value `ignore` as a region to ignore for each category."""
    if ignore is None:
        return []
    regions = labels.encode(path, (values == ignore).astype(np.int32)).values()
    return [{"category_id": i, "iscrowd": 1, **region} for region in regions for i in category_ids]


def _unnamed(images: Path, masks: Path, pair: Pair) -> NoReturn:
    """Say which values the masks have, on the example of one."""
    path = masks / pair.masks[0]
    try:
        found = labels.present(labels.read(path, files.image_size(images / pair.image)))
    except Rejected as rejected:
        raise_refusals(masks, [rejected.refusal])
    advice = "give --categories=NAME,NAME,... for 1, 2, ..., or a file of names; --ignore=VALUE for pixels of nobody"
    raise DataError(f"--values=classes needs names. {path} has {listing([v for v in found if v])}; {advice}")
