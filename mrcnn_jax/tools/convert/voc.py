"""Conversion of PASCAL VOC (Everingham et al., The PASCAL VOC Challenge 2012) and of similar files of labeling tools.

- Boxes are the first and last pixels, counted from 1: (x0, y0, x1, y1) covers [x0 - 1, x1] x [y0 - 1, y1]. With
  `zero_based`, for tools that write coordinates instead (CVAT, VoTT), nothing is subtracted.
- `difficult` objects become crowds (`iscrowd`): both VOC's and COCO's evaluation then ignore them, and training too.
- Masks are those of SegmentationObject without 255 (borders of objects, unlabeled pixels). Their class is that of most
  of their pixels in SegmentationClass, or, for other category names than VOC's, that of their box. A box belongs to
  the instance of its class that it overlaps most, with an IoU of at least 1/2 if the box determines the class.
  Contradictory files are refused. A difficult box without instance becomes a rectangular crowd; other boxes without
  instance are left out and noted.
- VOC's twenty categories have ids 1..20 in alphabetical order. Other categories are numbered in alphabetical order over
  all XML files of the folder, unless `named` has their ids.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from mrcnn_jax.config.dataset_categories import VOC
from mrcnn_jax.data import file_names, image_formats
from mrcnn_jax.errors import DataError, format_list
from mrcnn_jax.tools.convert import files, labels, voc_xml
from mrcnn_jax.tools.convert.categories import CategoryNames
from mrcnn_jax.tools.convert.files import ConversionError
from mrcnn_jax.tools.convert.voc_xml import VOCAnnotation, VOCObject
from mrcnn_jax.tools.convert.writer import Annotation, Conversion, ConvertedImage, Note

NAMES = tuple(VOC.values())
_VOID = (255, 0xE0E0C0)  # palette index, and color in images that were saved in colors
_MATCH_IOU = 0.5  # minimum, for a box to determine the class of an instance

ObjectBox = tuple[VOCObject, np.ndarray]  # with its box (4,), x0 y0 x1 y1 in pixels


class VOCDataset(NamedTuple):
    """Files and category ids of a dataset."""

    images: Path
    files: dict[str, Path]  # image files relative to `images`, by path without suffix
    root: Path
    ids: dict[str, int]  # category ids by name
    official: bool  # all categories are VOC's, so that SegmentationClass has VOC's values
    zero_based: bool
    masks: bool  # whether to convert the masks


def convert(
    root: Path,
    *,
    split: str = "",
    boxes: bool = False,
    images: Path | None = None,
    named: CategoryNames | None = None,
    zero_based: bool = False,
) -> Conversion:
    """Convert a folder with Annotations/, JPEGImages/ and, for masks, SegmentationObject/ and SegmentationClass/.

    XML files and images may also be in `root` itself, and images in `images`. If there are masks, only images with
    masks are converted, except with `boxes`, which ignores masks. `split` names a list in ImageSets.
    Raises DataError that lists all unsuitable files.
    """
    annotations = _first_folder(root, ("Annotations", "annotations", ""), (".xml",))
    xml_files = files.find_files(annotations, (".xml",))
    xml_paths = [annotations / file for file in xml_files]
    contents = files.convert_all(annotations, voc_xml.read, xml_paths, "XML files read")
    records = dict(zip(files.by_stem(annotations, xml_files), contents, strict=True))
    folder = images if images is not None else _first_folder(root, ("JPEGImages", "images", ""), image_formats.SUFFIXES)
    masks = (root / "SegmentationObject").is_dir() and not boxes
    stems = _stems(root, split, records, masks)
    names = sorted({obj.name for record in records.values() for obj in record.objects})
    official = set(names) <= set(NAMES)
    ids = {name: i for i, name in enumerate(NAMES if official else names, 1)}
    if named is not None:
        ids = {name: i for i, name in named.names.items()}
    image_files = files.by_stem(folder, files.find_files(folder))
    dataset = VOCDataset(folder, image_files, root, ids, official, zero_based, masks)
    selected = [(stem, records.get(stem, VOCAnnotation(annotations / f"{stem}.xml", "", None, ()))) for stem in stems]
    converted = files.convert_all(root, functools.partial(_convert_image, dataset), selected, "images converted")
    without_masks = len(records.keys() - set(stems)) if masks and not split else 0
    remarks = (f"images without masks are left out ({without_masks}); --boxes converts all images, without masks",)
    return Conversion(folder, {i: name for name, i in ids.items()}, converted, remarks if without_masks else ())


def _first_folder(root: Path, names: Sequence[str], suffixes: Sequence[str]) -> Path:
    """Return the first of these folders of `root` with such files. Raises DataError if there is none."""
    files.require_folder(root)
    for name in names:
        if (root / name).is_dir() and any(p.suffix.lower() in suffixes for p in (root / name).iterdir()):
            return root / name
    nested = [str(path.parent) for pattern in ("*", "*/*") for path in root.glob(f"{pattern}/Annotations")]
    hint = f"did you mean {format_list(nested)}?" if nested else "is it the folder with Annotations/ and JPEGImages/?"
    raise DataError(f"{root}: no {' or '.join(sorted(suffixes))} files; {hint}")


def _stems(root: Path, split: str, records: dict[str, VOCAnnotation], masks: bool) -> list[str]:
    """Return the paths without suffix of the images to convert."""
    if not split and not masks:
        return list(records)
    if not split:
        instances = root / "SegmentationObject"
        return list(files.by_stem(instances, files.find_files(instances, labels.SUFFIXES)))
    lists = root / "ImageSets" / ("Segmentation" if masks else "Main")
    path = lists / f"{split}.txt"
    if not path.is_file():
        splits = sorted(file.stem for file in lists.glob("*.txt") if "_" not in file.stem)
        raise DataError(f"--split={split}: no file {path}; there are {format_list(splits) or 'none'}")
    stems = [line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not masks and (absent := [stem for stem in stems if stem not in records]):
        raise DataError(f"{path} lists images without an XML file ({len(absent)}): {format_list(absent)}; add them")
    return stems


def _convert_image(dataset: VOCDataset, entry: tuple[str, VOCAnnotation]) -> ConvertedImage:
    stem, record = entry
    name, size = _image(dataset, stem, record)
    notes: list[Note] = []
    boxes = _boxes(dataset, record, size, notes)
    annotations = (
        _mask_annotations(dataset, stem, size, boxes, notes) if dataset.masks else _box_annotations(dataset, boxes)
    )
    return ConvertedImage(name, *size, annotations, tuple(notes))


def _box_annotations(dataset: VOCDataset, boxes: Sequence[ObjectBox]) -> list[Annotation]:
    annotations = []
    for obj, box in boxes:
        x0, y0, x1, y1 = box.tolist()
        fields = {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0)}
        annotations.append({"category_id": dataset.ids[obj.name], "iscrowd": int(obj.difficult), **fields})
    return annotations


def _mask_annotations(
    dataset: VOCDataset, stem: str, size: tuple[int, int], boxes: Sequence[ObjectBox], notes: list[Note]
) -> list[Annotation]:
    path = _label_file(dataset.root / "SegmentationObject", stem)
    instances = labels.read(path, size)
    instances[np.isin(instances, _VOID)] = 0
    regions = labels.encode_regions(path, instances)
    class_names = _class_names(dataset, stem, instances, list(regions))
    matches = _match(path, regions, class_names, boxes)
    annotations: list[Annotation] = []
    for (value, region), class_name, match in zip(regions.items(), class_names, matches, strict=True):
        category = boxes[match][0].name if match >= 0 else class_name
        if not category:
            notes.append(("left out, instance without class and box", f"{path.name} value {value}"))
            continue
        crowd = match >= 0 and boxes[match][0].difficult
        annotations.append({"category_id": dataset.ids[category], "iscrowd": int(crowd), **region})
    for obj, box in (boxes[i] for i in range(len(boxes)) if i not in matches):
        if obj.difficult:
            annotations.append({"category_id": dataset.ids[obj.name], "iscrowd": 1, **_rectangle(path, box, size)})
        else:
            notes.append(("left out, box without an instance in SegmentationObject", obj.location))
    return annotations


def _image(dataset: VOCDataset, stem: str, record: VOCAnnotation) -> tuple[str, tuple[int, int]]:
    """Return file name, height and width of the image with the name of the XML file, else with the name in it."""
    file = dataset.files.get(stem)
    if file is None and record.file_name and (dataset.images / record.file_name).is_file():
        file = Path(record.file_name)
    if file is None:
        similar = file_names.describe_similar(dataset.images, record.file_name or stem)
        culprit = f"{record.path}, and there is no {record.file_name!r}" if record.file_name else f"{record.path}"
        culprit += f"; {similar}" if similar else ""
        kind = f"annotations without an image in {dataset.images}"
        raise ConversionError(kind, culprit, "add it, or give --images")
    size = files.image_size(dataset.images / file)
    if record.size is not None and record.size != size:
        culprit = f"{record.path} says {record.size[0]}x{record.size[1]}, the image {size[0]}x{size[1]}"
        advice = "their boxes may be scaled too; if they are right, correct <size> or set it to 0"
        raise ConversionError("XML files whose size (height x width) is not the image's", culprit, advice)
    if unknown := sorted({obj.name for obj in record.objects} - dataset.ids.keys()):
        culprit = f"{record.path}: {format_list(unknown)}"
        raise ConversionError("names that are not categories", culprit, "add them to --categories")
    return file.as_posix(), size


def _boxes(dataset: VOCDataset, record: VOCAnnotation, size: tuple[int, int], notes: list[Note]) -> list[ObjectBox]:
    """Return objects with their boxes, clipped to the image; append to `notes` what was left out or changed."""
    kept = []
    for obj in record.objects:
        if obj.box is None:
            notes.append(("left out, no box of four numbers", obj.location))
            continue
        if not dataset.zero_based and min(obj.box[:2]) < 1:
            remark = "boxes begin before pixel 1, unlike VOC's: give --zero-based if they count from 0"
            notes.append((remark, obj.location))
        box = np.array(obj.box) - (0 if dataset.zero_based else (1, 1, 0, 0))
        inside = np.clip(box, 0, (size[1], size[0]) * 2)
        if np.any(box[2:] <= box[:2]):
            notes.append(("left out, box without area", obj.location))
        elif np.any(inside[2:] <= inside[:2]):
            notes.append(("left out, box outside the image", obj.location))
        else:
            if np.abs(inside - box).max() > 1:
                notes.append(("clipped, box extends beyond the image by more than a pixel", obj.location))
            kept.append((obj, inside))
    return kept


def _label_file(folder: Path, stem: str) -> Path:
    for suffix in labels.SUFFIXES:
        if (folder / f"{stem}{suffix}").is_file():
            return folder / f"{stem}{suffix}"
    raise ConversionError(f"images without a mask in {folder}", f"{stem}.png", "add it, or give --boxes")


def _class_names(dataset: VOCDataset, stem: str, instances: np.ndarray, values: Sequence[int]) -> list[str]:
    """Return the class of most pixels of each instance in SegmentationClass; empty if unknown."""
    folder = dataset.root / "SegmentationClass"
    if not dataset.official or not folder.is_dir():
        return [""] * len(values)
    classes = labels.read(_label_file(folder, stem), (instances.shape[0], instances.shape[1]))
    names = []
    for value in values:
        counts = np.bincount(np.clip(classes[instances == value], 0, 21), minlength=22)[1:21]  # without void and colors
        name = NAMES[counts.argmax()] if counts.any() else ""
        names.append(name if name in dataset.ids else "")
    return names


def _match(
    path: Path, regions: dict[int, labels.Region], class_names: Sequence[str], boxes: Sequence[ObjectBox]
) -> list[int]:
    """Return the index of the box of each region, or -1, greedily by IoU.

    Raises ConversionError if the class of a region contradicts that of its box.
    """
    sides = [[*box[:2], *(box[2:] - box[:2])] for _, box in boxes]
    ious = coco_mask.iou([region["bbox"] for region in regions.values()], sides, [0] * len(boxes))
    overlaps = np.reshape(ious, (len(regions), len(boxes)))
    names, box_names = np.array(class_names, str)[:, None], np.array([obj.name for obj, _ in boxes], str)
    fits = np.where(names == "", overlaps >= _MATCH_IOU, (names == box_names) & (overlaps > 0))
    for value, name, row, fitting in zip(regions, class_names, overlaps, fits, strict=True):
        if name and not fitting.any() and row.max(initial=0) >= _MATCH_IOU:
            culprit = f"{path} value {value} is {name!r}, its box {boxes[int(row.argmax())][0].name!r}"
            advice = "if SegmentationClass has other values than VOC, remove it: boxes then determine the classes"
            raise ConversionError("classes in SegmentationClass that differ from the XML file", culprit, advice)
    matches = [-1] * len(regions)
    remaining = overlaps * fits
    while remaining.any():
        i, j = np.unravel_index(remaining.argmax(), remaining.shape)
        matches[i] = int(j)
        remaining[i] = remaining[:, j] = 0
    return matches


def _rectangle(path: Path, box: np.ndarray, size: tuple[int, int]) -> labels.Region:
    """Return the region of all pixels that `box` touches."""
    x0, y0 = np.floor(box[:2]).astype(int)
    x1, y1 = np.ceil(box[2:]).astype(int)
    inside = np.zeros(size, np.int32)
    inside[y0:y1, x0:x1] = 1
    return labels.encode_regions(path, inside)[1]
