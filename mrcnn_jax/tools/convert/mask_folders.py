"""Conversion of folders of images and label masks. The user states the meaning of mask values:

- "instances": each value except 0 is one instance, connected or not; all have one category.
- "classes": each value except 0 is a class, and each 8-connected component of it an instance. Touching objects of one
  class become one instance.
- "files": each file in the folder of an image is one instance, the pixels that are not 0.

Pixels with the value `ignore` become a crowd (`iscrowd`) of every category, in which detections are ignored. An image
with an empty mask is background.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

import numpy as np

from mrcnn_jax.data.findings import Refusal, raise_refusals
from mrcnn_jax.errors import DataError, format_list
from mrcnn_jax.tools.convert import files, labels
from mrcnn_jax.tools.convert.categories import CategoryNames, single_category
from mrcnn_jax.tools.convert.files import ConversionError
from mrcnn_jax.tools.convert.writer import Conversion, ConvertedImage

MeasuredRange = Literal["instances", "classes", "files"]
_ONE_INSTANCE = (
    "No image has more than one instance. If the masks only separate objects from background, use --values=classes"
)
_LOSSY_SUFFIXES = (".jpg", ".jpeg", ".webp")


class ImageWithMasks(NamedTuple):
    """An image with its label image, or its files of instances. Paths are relative to `images` and `masks`."""

    image: Path
    masks: tuple[Path, ...]


def convert(
    images: Path,
    masks: Path,
    values: MeasuredRange,
    named: CategoryNames | None = None,
    ignore: int | None = None,
    suffix: str = "",
) -> Conversion:
    """Convert the folders `images` and `masks`. Files are matched by name: `a/b.jpg` and `a/b<suffix>.png`.

    With values="files", the masks of `a/b.jpg` are in the folder `a/b<suffix>` or `a/b<suffix>/masks`. If both folders
    are the same, its layout is that of the 2018 Data Science Bowl: `b/images/*`, `b/masks/*`.
    Category ids are the values of the masks ("classes"), or 1. Raises DataError that lists all unsuitable files.
    """
    if values == "files" and ignore is not None:
        raise DataError("--ignore is a value of label masks, which --values=files does not have")
    pairs = (_pair_folders if values == "files" else _pair_files)(images, masks, suffix)
    if not pairs:
        raise DataError(f"{images}: no images to convert; see --help for the layout of the folders")
    if values == "classes":
        if named is None:
            _raise_unnamed(images, masks, pairs[0])
        categories = dict(enumerate(named.names.values(), 1)) if named.colors else named.names
        if ignore in named.names:
            raise DataError(f"--ignore={ignore} is also the category {named.names[ignore]!r}")
        read = functools.partial(_from_classes, images, masks, ignore, named)
    else:
        categories = single_category(named, values)
        read = functools.partial(_from_instances, images, masks, ignore)
        if values == "files":
            read = functools.partial(_from_files, images, masks)
    converted = files.convert_all(masks, read, pairs, "images converted")
    max_instances = max(len(image.annotations) for image in converted)
    is_suspicious = values == "instances" and len(pairs) > 1 and max_instances == 1
    return Conversion(images, categories, converted, (_ONE_INSTANCE,) if is_suspicious else ())


def _pair_files(images: Path, masks: Path, suffix: str) -> list[ImageWithMasks]:
    """Return every image with its label image. Raises DataError that lists unmatched files."""
    # JPEG masks are refused with a message, unless both folders are the same.
    lossy = tuple(ending for ending in _LOSSY_SUFFIXES if images.resolve() != masks.resolve())
    mask_files = files.find_files(masks, (*labels.SUFFIXES, *lossy), without=_inside(images, masks))
    image_files = files.find_files(images, without=_inside(masks, images))
    if images.resolve() == masks.resolve():
        if not suffix:
            raise DataError(f"{images} contains images and masks: give the --suffix of the names of masks")
        image_files = [file for file in image_files if not file.stem.endswith(suffix)]
    mask_files = [file for file in mask_files if file.stem.endswith(suffix)]
    by_image, by_mask = files.by_stem(images, image_files), files.by_stem(masks, mask_files)
    with_suffix = {stem + suffix: file for stem, file in by_image.items()}
    unmatched_images = [str(file) for stem, file in with_suffix.items() if stem not in by_mask]
    unmatched_masks = [str(file) for stem, file in by_mask.items() if stem not in with_suffix]
    if by_mask and len(unmatched_images) == len(by_image) and (likely := _likely_suffix(by_image, by_mask)):
        raise DataError(f"{masks}: no mask is named like its image; give --suffix={likely}")
    _refuse_unmatched(images, masks, unmatched_images, unmatched_masks)
    return [ImageWithMasks(file, (by_mask[stem],)) for stem, file in with_suffix.items()]


def _pair_folders(images: Path, masks: Path, suffix: str) -> list[ImageWithMasks]:
    """Return every image with its files of instances. Raises DataError that lists unmatched images."""
    if images.resolve() == masks.resolve():
        image_files = [file for file in files.find_files(images) if file.parent.name == "images"]
        folders = {file: file.parent.parent / "masks" for file in image_files}
    else:
        image_files = files.find_files(images, without=_inside(masks, images))
        stems = files.by_stem(images, image_files)
        inner = {file: Path(stem + suffix) / "masks" for stem, file in stems.items()}
        folders = {file: f if (masks / f).is_dir() else f.parent for file, f in inner.items()}
    by_folder: dict[Path, list[Path]] = {}
    for file in files.find_files(masks, (*labels.SUFFIXES, *_LOSSY_SUFFIXES)):
        by_folder.setdefault(file.parent, []).append(file)
    unmatched = [str(file) for file, folder in folders.items() if folder not in by_folder]
    _refuse_unmatched(images, masks, unmatched, [])
    return [ImageWithMasks(file, tuple(by_folder[folder])) for file, folder in folders.items()]


def _inside(inner: Path, outer: Path) -> Path | None:
    """Return `inner` as a path below `outer`; None if it is not inside of it."""
    resolved, root = inner.resolve(), outer.resolve()
    return outer / resolved.relative_to(root) if root in resolved.parents else None


def _refuse_unmatched(
    images: Path, masks: Path, unmatched_images: Sequence[str], unmatched_masks: Sequence[str]
) -> None:
    refusals = [
        Refusal(f"images without a mask in {masks}", name, "add it, or move the image") for name in unmatched_images
    ]
    refusals += [
        Refusal(f"masks without an image in {images}", name, "add it, or move the mask") for name in unmatched_masks
    ]
    raise_refusals(images, refusals)


def _likely_suffix(images: dict[str, Path], masks: dict[str, Path]) -> str:
    """Return what the name of the first mask has after that of its image; empty if there is no such image."""
    mask = next(iter(masks))
    prefix = max((stem for stem in images if mask.startswith(stem)), key=len, default=mask)
    return mask.removeprefix(prefix)


def _from_instances(images: Path, masks: Path, ignore: int | None, pair: ImageWithMasks) -> ConvertedImage:
    size = files.image_size(images / pair.image)
    values = labels.read(masks / pair.masks[0], size)
    regions = np.where(values == ignore, 0, values) if ignore is not None else values
    annotations = [
        {"category_id": 1, **region} for region in labels.encode_regions(masks / pair.masks[0], regions).values()
    ]
    return ConvertedImage(
        pair.image.as_posix(), *size, annotations + _ignored(masks / pair.masks[0], values, ignore, [1])
    )


def _from_classes(
    images: Path, masks: Path, ignore: int | None, named: CategoryNames, pair: ImageWithMasks
) -> ConvertedImage:
    """Convert an image; category ids are the values, or the indices of their colors from 1."""
    size = files.image_size(images / pair.image)
    path = masks / pair.masks[0]
    values = labels.read(path, size, colors=named.colors)
    present = set(labels.unique_values(values)) - {0, ignore}
    if unnamed := sorted(present - named.names.keys()):
        shown = [f"#{value:06x}" if named.colors else str(value) for value in unnamed]
        advice = "name them in --categories, or exclude one value with --ignore"
        raise ConversionError("masks with values that have no name", f"{path}: {format_list(shown)}", advice)
    ids = {value: i if named.colors else value for i, value in enumerate(named.names, 1)}
    annotations: list[dict[str, Any]] = []
    for value in sorted(present, key=ids.__getitem__):
        parts = labels.connected_components(values == value)
        regions = [{"category_id": ids[value], **region} for region in labels.encode_regions(path, parts).values()]
        # OpenCV does not guarantee the order of components.
        annotations += sorted(regions, key=lambda region: (region["bbox"], region["segmentation"]["counts"]))
    return ConvertedImage(
        pair.image.as_posix(), *size, annotations + _ignored(path, values, ignore, sorted(ids.values()))
    )


def _from_files(images: Path, masks: Path, pair: ImageWithMasks) -> ConvertedImage:
    size = files.image_size(images / pair.image)
    annotations = []
    for path in pair.masks:
        values = labels.read(masks / path, size)
        inside = [value for value in labels.unique_values(values) if value]
        if len(inside) != 1:
            culprit = f"{masks / path} has {len(inside)} values except 0"
            advice = "with --values=files, each file marks one instance by one value; remove empty files"
            raise ConversionError("masks that do not mark one instance", culprit, advice)
        (region,) = labels.encode_regions(path, values).values()
        annotations.append({"category_id": 1, **region})
    return ConvertedImage(pair.image.as_posix(), *size, annotations)


def _ignored(path: Path, values: np.ndarray, ignore: int | None, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """Return the region with the value `ignore` as a crowd of each category."""
    if ignore is None:
        return []
    regions = labels.encode_regions(path, (values == ignore).astype(np.int32)).values()
    return [{"category_id": i, "iscrowd": 1, **region} for region in regions for i in category_ids]


def _raise_unnamed(images: Path, masks: Path, pair: ImageWithMasks) -> NoReturn:
    """Raise DataError with the values of one mask as an example."""
    path = masks / pair.masks[0]
    try:
        values = labels.unique_values(labels.read(path, files.image_size(images / pair.image)))
    except ConversionError as error:
        raise_refusals(masks, [error.refusal])
    advice = "give --categories=NAME,NAME,... for 1, 2, ..., or a file of names; --ignore=VALUE for pixels to ignore"
    raise DataError(f"--values=classes needs names. {path} has {format_list([v for v in values if v])}; {advice}")
