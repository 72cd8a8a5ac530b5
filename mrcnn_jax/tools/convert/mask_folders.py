"""Conversion of folders of images and label masks. The user states the meaning of mask values:

- "instances": each value except 0 is one instance, connected or not; all have one category.
- "classes": each value except 0 is a class, and each 8-connected component of it an instance. Touching objects of one
  class become one instance.
- "files": each file in the folder of an image is one instance, the pixels that are not 0.

Pixels with the value `ignore` become a crowd (`iscrowd`) of every category, in which detections are ignored. An image
with an empty mask is background.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NoReturn

import numpy as np

from mrcnn_jax.data.findings import raise_refusals
from mrcnn_jax.errors import DataError, format_list
from mrcnn_jax.tools.convert import files, labels
from mrcnn_jax.tools.convert.categories import CategoryNames, single_category
from mrcnn_jax.tools.convert.files import ConversionError, Pairs
from mrcnn_jax.tools.convert.writer import Annotation, Conversion

_LOSSY_SUFFIXES = (".jpg", ".jpeg", ".webp")


def convert(
    images: Path,
    masks: Path,
    values: Literal["instances", "classes", "files"],
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
    if values == "classes" and named is None:
        _raise_unnamed(images, masks, pairs)
    classes = named if values == "classes" else None
    categories = single_category(named, values) if classes is None else _class_categories(classes, ignore)

    def annotate(paths: Sequence[Path], size: tuple[int, int]) -> list[Annotation]:
        if values == "files":
            return [_single_instance(path, size) for path in paths]
        return _label_annotations(paths[0], size, classes, ignore, sorted(categories))

    converted = files.convert_images(masks, images, pairs, annotate)
    max_instances = max(len(image.annotations) for image in converted)
    is_suspicious = values == "instances" and len(pairs) > 1 and max_instances == 1
    advice = "If the masks only separate objects from background, use --values=classes"
    remarks = (f"No image has more than one instance. {advice}",) if is_suspicious else ()
    return Conversion(images, categories, converted, remarks)


def _class_categories(classes: CategoryNames, ignore: int | None) -> dict[int, str]:
    """Return the names of the classes by their values in the masks; colors are numbered from 1."""
    if ignore in classes.names:
        raise DataError(f"--ignore={ignore} is also the category {classes.names[ignore]!r}")
    return dict(enumerate(classes.names.values(), 1)) if classes.colors else classes.names


def _label_annotations(
    path: Path, size: tuple[int, int], classes: CategoryNames | None, ignore: int | None, category_ids: Sequence[int]
) -> list[Annotation]:
    """Return the instances of a label mask; the pixels with the value `ignore` are a crowd of every category."""
    pixels = labels.read(path, size, colors=classes.colors if classes else None)
    crowds: list[labels.Region] = []
    if ignore is not None:
        crowds = list(labels.encode_regions(path, (pixels == ignore).astype(np.int32)).values())
        pixels[pixels == ignore] = 0
    if classes is None:
        annotations = [{"category_id": 1, **region} for region in labels.encode_regions(path, pixels).values()]
    else:
        annotations = _components(path, pixels, classes)
    return annotations + [{"category_id": i, "iscrowd": 1, **crowd} for crowd in crowds for i in category_ids]


def _pair_files(images: Path, masks: Path, suffix: str) -> Pairs:
    """Return every image with its label image. Raises DataError that lists unmatched files."""
    is_same = images.resolve() == masks.resolve()
    if is_same and not suffix:
        raise DataError(f"{images} contains images and masks: give the --suffix of the names of masks")
    # JPEG masks are refused with a message, unless both folders are the same.
    suffixes = labels.SUFFIXES if is_same else (*labels.SUFFIXES, *_LOSSY_SUFFIXES)
    mask_files = files.find_files(masks, suffixes, without=_inside(images, masks))
    by_mask = files.by_stem(masks, [file for file in mask_files if file.stem.endswith(suffix)])
    image_files = files.find_files(images, without=_inside(masks, images))
    image_files = [file for file in image_files if not (is_same and file.stem.endswith(suffix))]
    by_image = {stem + suffix: file for stem, file in files.by_stem(images, image_files).items()}
    unmatched_images = [str(file) for stem, file in by_image.items() if stem not in by_mask]
    unmatched_masks = [str(file) for stem, file in by_mask.items() if stem not in by_image]
    no_match = by_mask and len(unmatched_images) == len(by_image)
    if no_match and (likely := _likely_suffix(image_files, next(iter(by_mask)))):
        raise DataError(f"{masks}: no mask is named like its image; give --suffix={likely}")
    files.refuse_unmatched(
        images,
        (f"images without a mask in {masks}", unmatched_images, "add it, or move the image"),
        (f"masks without an image in {images}", unmatched_masks, "add it, or move the mask"),
    )
    return {file: [masks / by_mask[stem]] for stem, file in by_image.items()}


def _pair_folders(images: Path, masks: Path, suffix: str) -> Pairs:
    """Return every image with its files of instances. Raises DataError that lists unmatched images."""
    if images.resolve() == masks.resolve():
        image_files = [file for file in files.find_files(images) if file.parent.name == "images"]
        folders = {file: file.parent.parent / "masks" for file in image_files}
    else:
        image_files = files.find_files(images, without=_inside(masks, images))
        inner = {file: Path(stem + suffix) / "masks" for stem, file in files.by_stem(images, image_files).items()}
        folders = {file: f if (masks / f).is_dir() else f.parent for file, f in inner.items()}
    by_folder: dict[Path, list[Path]] = {}
    for file in files.find_files(masks, (*labels.SUFFIXES, *_LOSSY_SUFFIXES)):
        by_folder.setdefault(file.parent, []).append(masks / file)
    unmatched = [str(file) for file, folder in folders.items() if folder not in by_folder]
    files.refuse_unmatched(images, (f"images without a mask in {masks}", unmatched, "add it, or move the image"))
    return {file: by_folder[folder] for file, folder in folders.items()}


def _inside(inner: Path, outer: Path) -> Path | None:
    """Return `inner` as a path below `outer`; None if it is not inside of it."""
    resolved, root = inner.resolve(), outer.resolve()
    return outer / resolved.relative_to(root) if root in resolved.parents else None


def _likely_suffix(images: Sequence[Path], mask: str) -> str:
    """Return what the name of a mask has after that of its image; empty if there is no such image."""
    stems = [file.with_suffix("").as_posix() for file in images]
    return mask.removeprefix(max((stem for stem in stems if mask.startswith(stem)), key=len, default=mask))


def _components(path: Path, pixels: np.ndarray, named: CategoryNames) -> list[Annotation]:
    """Return the components of each class; category ids are the values, or the indices of their colors from 1."""
    ids = {value: i if named.colors else value for i, value in enumerate(named.names, 1)}
    present = set(labels.unique_values(pixels)) - {0}
    if unnamed := sorted(present - ids.keys()):
        shown = [f"#{value:06x}" if named.colors else str(value) for value in unnamed]
        advice = "name them in --categories, or exclude one value with --ignore"
        raise ConversionError("masks with values that have no name", f"{path}: {format_list(shown)}", advice)
    annotations: list[Annotation] = []
    for value in sorted(present, key=ids.__getitem__):
        parts = labels.encode_regions(path, labels.connected_components(pixels == value)).values()
        # OpenCV does not guarantee the order of components.
        ordered = sorted(parts, key=lambda region: (region["bbox"], region["segmentation"]["counts"]))
        annotations += [{"category_id": ids[value], **region} for region in ordered]
    return annotations


def _single_instance(path: Path, size: tuple[int, int]) -> Annotation:
    """Return the instance in a file of its own."""
    regions = list(labels.encode_regions(path, labels.read(path, size)).values())
    if len(regions) != 1:
        advice = "with --values=files, each file marks one instance by one value; remove empty files"
        culprit = f"{path} has {len(regions)} values except 0"
        raise ConversionError("masks that do not mark one instance", culprit, advice)
    return {"category_id": 1, **regions[0]}


def _raise_unnamed(images: Path, masks: Path, pairs: Pairs) -> NoReturn:
    """Raise DataError with the values of one mask as an example."""
    image, (path,) = next(iter(pairs.items()))
    try:
        values = labels.unique_values(labels.read(path, files.image_size(images / image)))
    except ConversionError as error:
        raise_refusals(masks, [error.refusal])
    advice = "give --categories=NAME,NAME,... for 1, 2, ..., or a file of names; --ignore=VALUE for pixels to ignore"
    raise DataError(f"--values=classes needs names. {path} has {format_list([v for v in values if v])}; {advice}")
