"""VOC, as it is published (Everingham et al., The PASCAL VOC Challenge 2012) and as labeling tools write it.

- Boxes name their first and last pixels, counted from 1: (x0, y0, x1, y1) covers [x0 - 1, x1] x [y0 - 1, y1]. Tools
  that write positions instead (CVAT, VoTT) need `zero_based`; nothing is subtracted then.
- `difficult` objects become ignored regions (`iscrowd`): VOC's evaluation counts neither finding nor missing them, and
  so does COCO's with crowds. They are not trained on.
- With masks, instances are those of SegmentationObject, of which 255 (the border around objects, and what nobody
  labeled) is no part. Their class is what SegmentationClass says of most of their pixels, or, where names are not
  VOC's, that of the XML's box. A box belongs to the instance with its class that overlaps it most; by an IoU of at
  least 1/2 where the box is to say the class. Files that contradict each other are refused. A difficult box without
  an instance is ignored as a rectangle; any other is left out and named.
- Names of VOC's twenty categories have ids 1..20 in alphabetical order, whichever occur. Other names are numbered in
  alphabetical order over all XML files of the folder, unless `named` says their ids.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mrcnn_jax.data import file_names, image_formats
from mrcnn_jax.errors import DataError, listing
from mrcnn_jax.tools.convert import files, labels, voc_xml
from mrcnn_jax.tools.convert.categories import Named
from mrcnn_jax.tools.convert.files import Rejected
from mrcnn_jax.tools.convert.voc_xml import Record, VOCObject
from mrcnn_jax.tools.convert.writer import Conversion, Picture

NAMES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
_VOID = (255, 0xE0E0C0)  # its index in the palette, and its color where pictures were saved in colors
_MATCH_IOU = 0.5  # at least, for a box to name an instance


class Source(NamedTuple):
    """Where everything is, and what it means."""

    images: Path
    files: dict[str, Path]  # images by their names without ending, relative to `images`
    root: Path
    ids: dict[str, int]  # of the category names
    official: bool  # the names are VOC's, and so are the values of SegmentationClass
    zero_based: bool


def convert(
    root: Path,
    *,
    split: str = "",
    boxes: bool = False,
    images: Path | None = None,
    named: Named | None = None,
    zero_based: bool = False,
) -> Conversion:
    """Read a folder with Annotations/, JPEGImages/ and, for masks, SegmentationObject/ and SegmentationClass/.

    XML files and images may lie in `root` itself, and images elsewhere (`images`). Masks are read where there are some
    unless only `boxes` are wanted; then only images with masks count. `split` names a list in ImageSets. Raises
    DataError that names every file that will not do.
    """
    annotations = _first(root, ("Annotations", "annotations", ""), (".xml",))
    found = files.find(annotations, (".xml",))
    read = files.gather(annotations, lambda file: voc_xml.read(annotations / file), found, "XML files read")
    records = dict(zip(files.by_stem(annotations, found), read, strict=True))
    folder = images if images is not None else _first(root, ("JPEGImages", "images", ""), image_formats.SUFFIXES)
    masks = (root / "SegmentationObject").is_dir() and not boxes
    stems = _stems(root, split, records, masks)
    names = sorted({thing.name for record in records.values() for thing in record.things})
    official = set(names) <= set(NAMES)
    ids = {name: i for i, name in enumerate(NAMES if official else names, 1)}
    if named is not None:
        ids = {name: i for i, name in named.names.items()}
    source = Source(folder, files.by_stem(folder, files.find(folder)), root, ids, official, zero_based)
    picture = functools.partial(_with_masks if masks else _with_boxes, source)
    chosen = [(stem, records.get(stem, Record(annotations / f"{stem}.xml", "", None, ()))) for stem in stems]
    pictures = files.gather(root, picture, chosen, "images converted")
    without = len(records.keys() - set(stems)) if masks and not split else 0
    remarks = (f"{without} images have no mask and are left out; --boxes takes them all, without masks",)
    return Conversion(folder, {i: name for name, i in ids.items()}, pictures, remarks if without else ())


def _first(root: Path, names: Sequence[str], suffixes: Sequence[str]) -> Path:
    """The first of these folders of `root` that is there and has such files. Raises DataError for none."""
    files.existing(root)
    for name in names:
        if (root / name).is_dir() and any(p.suffix.lower() in suffixes for p in (root / name).iterdir()):
            return root / name
    inner = [str(path.parent) for path in root.glob("*/Annotations")] + [
        str(p.parent) for p in root.glob("*/*/Annotations")
    ]
    hint = f"; did you mean {listing(inner)}?" if inner else "; is it the folder with Annotations/ and JPEGImages/?"
    raise DataError(f"{root}: no {' or '.join(sorted(suffixes))} files{hint}")


def _stems(root: Path, split: str, records: dict[str, Record], masks: bool) -> list[str]:
    """Names of the images to use, without their ending."""
    if not split and not masks:
        return list(records)
    if not split:
        instances = root / "SegmentationObject"
        return list(files.by_stem(instances, files.find(instances, labels.SUFFIXES)))
    lists = root / "ImageSets" / ("Segmentation" if masks else "Main")
    path = lists / f"{split}.txt"
    if not path.is_file():
        there = sorted(file.stem for file in lists.glob("*.txt") if "_" not in file.stem)
        raise DataError(f"--split={split}: no file {path}; there are {listing(there) or 'none'}")
    stems = [line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not masks and (absent := [stem for stem in stems if stem not in records]):
        raise DataError(f"{path} lists images without an XML file ({len(absent)}): {listing(absent)}; add them")
    return stems


def _with_boxes(source: Source, entry: tuple[str, Record]) -> Picture:
    stem, record = entry
    name, size = _image(source, stem, record)
    annotations: list[dict[str, Any]] = []
    notes: list[tuple[str, str]] = []
    for thing, box in _boxes(source, record, size, notes):
        x0, y0, x1, y1 = box.tolist()
        sides = {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0)}
        annotations.append({"category_id": source.ids[thing.name], "iscrowd": int(thing.difficult), **sides})
    return Picture(name, *size, annotations, tuple(notes))


def _with_masks(source: Source, entry: tuple[str, Record]) -> Picture:
    stem, record = entry
    name, size = _image(source, stem, record)
    notes: list[tuple[str, str]] = []
    boxes = _boxes(source, record, size, notes)
    path = _label_file(source.root / "SegmentationObject", stem)
    instances = labels.read(path, size)
    instances[np.isin(instances, _VOID)] = 0
    regions = labels.encode(path, instances)
    named = _named_by_class(source, stem, instances, list(regions))
    overlaps = _overlaps([region["bbox"] for region in regions.values()], boxes)
    _check_classes(path, list(regions), named, boxes, overlaps)
    owners = _match(overlaps, named, boxes)
    annotations: list[dict[str, Any]] = []
    for (value, region), class_name, owner in zip(regions.items(), named, owners, strict=True):
        category = boxes[owner][0].name if owner >= 0 else class_name
        if not category:
            notes.append(("left out, instance without a box that names it", f"{path.name} value {value}"))
            continue
        crowd = owner >= 0 and boxes[owner][0].difficult
        annotations.append({"category_id": source.ids[category], "iscrowd": int(crowd), **region})
    for i, (thing, box) in enumerate(boxes):
        if i not in owners and thing.difficult:
            annotations.append({"category_id": source.ids[thing.name], "iscrowd": 1, **_rectangle(path, box, size)})
        elif i not in owners:
            notes.append(("left out, box without an instance in SegmentationObject", thing.where))
    return Picture(name, *size, annotations, tuple(notes))


def _image(source: Source, stem: str, record: Record) -> tuple[str, tuple[int, int]]:
    """The image of an XML file, by the file's own name as in VOC, or else by what it says; its height and width."""
    file = source.files.get(stem)
    if file is None and record.file_name and (source.images / record.file_name).is_file():
        file = Path(record.file_name)
    if file is None:
        hint = file_names.describe_similar(source.images, record.file_name or stem)
        said = f", and there is no {record.file_name!r}" if record.file_name else ""
        said += f"; {hint}" if hint else ""
        raise Rejected(
            f"annotations without an image in {source.images}", f"{record.path}{said}", "add it, or say --images"
        )
    size = files.image_size(source.images / file)
    if record.size is not None and record.size != size:
        sizes = f"{record.size[0]}x{record.size[1]}, the image {size[0]}x{size[1]}"
        advice = "their boxes may be of another size too; where they are right, correct <size>, or set it to 0"
        raise Rejected(
            "XML files whose size (height x width) is not the image's", f"{record.path} says {sizes}", advice
        )
    if unknown := sorted({thing.name for thing in record.things} - source.ids.keys()):
        raise Rejected("names that are no categories", f"{record.path}: {listing(unknown)}", "add them to --categories")
    return file.as_posix(), size


def _boxes(
    source: Source, record: Record, size: tuple[int, int], notes: list[tuple[str, str]]
) -> list[tuple[VOCObject, np.ndarray]]:
    """Objects with their boxes (4,), continuous and inside the image; `notes` says what was left out or changed."""
    kept = []
    for thing in record.things:
        if thing.box is None:
            notes.append(("left out, no box of four numbers", thing.where))
            continue
        if not source.zero_based and min(thing.box[:2]) < 1:
            notes.append(("boxes begin before pixel 1, as VOC's never do: give --zero-based if it is so", thing.where))
        box = np.array(thing.box) - (0 if source.zero_based else (1, 1, 0, 0))
        inside = np.clip(box, 0, (size[1], size[0]) * 2)
        if np.any(box[2:] <= box[:2]):
            notes.append(("left out, box without area", thing.where))
        elif np.any(inside[2:] <= inside[:2]):
            notes.append(("left out, box outside the image", thing.where))
        else:
            if np.abs(inside - box).max() > 1:
                notes.append(("clipped, box reaches beyond the image by more than a pixel", thing.where))
            kept.append((thing, inside))
    return kept


def _label_file(folder: Path, stem: str) -> Path:
    for suffix in labels.SUFFIXES:
        if (folder / f"{stem}{suffix}").is_file():
            return folder / f"{stem}{suffix}"
    raise Rejected(f"images without a mask in {folder}", f"{stem}.png", "add it, or take --boxes")


def _named_by_class(source: Source, stem: str, instances: np.ndarray, values: Sequence[int]) -> list[str]:
    """The name of most pixels of each of `values` in SegmentationClass; empty where that does not say."""
    folder = source.root / "SegmentationClass"
    if not source.official or not folder.is_dir():
        return [""] * len(values)
    classes = labels.read(_label_file(folder, stem), (instances.shape[0], instances.shape[1]))
    names = []
    for value in values:
        counts = np.bincount(np.clip(classes[instances == value], 0, 256))
        counts[21:] = 0  # void, and colors, which say nothing
        best = int(counts[1:].argmax()) if counts[1:].any() else -1
        names.append(NAMES[best] if best >= 0 and NAMES[best] in source.ids else "")
    return names


def _overlaps(regions: Sequence[Sequence[float]], boxes: Sequence[tuple[VOCObject, np.ndarray]]) -> np.ndarray:
    """IoU (n, m) of regions (x y width height) and boxes."""
    ours = np.array(regions, np.float64).reshape(-1, 1, 4)
    ours[..., 2:] += ours[..., :2]
    theirs = np.array([box for _, box in boxes], np.float64).reshape(1, -1, 4)
    sides = np.minimum(ours[..., 2:], theirs[..., 2:]) - np.maximum(ours[..., :2], theirs[..., :2])
    common = np.maximum(sides, 0).prod(axis=-1)
    areas = [(corners[..., 2:] - corners[..., :2]).prod(axis=-1) for corners in (ours, theirs)]
    return common / (areas[0] + areas[1] - common)


def _check_classes(
    path: Path,
    values: Sequence[int],
    named: Sequence[str],
    boxes: Sequence[tuple[VOCObject, np.ndarray]],
    overlaps: np.ndarray,
) -> None:
    """Raise Rejected where a region is of one class by its pixels, and clearly of another by its box."""
    for value, name, row in zip(values, named, overlaps, strict=True):
        same = any(iou > 0 and thing.name == name for iou, (thing, _) in zip(row, boxes, strict=True))
        if name and not same and row.max(initial=0) >= _MATCH_IOU:
            culprit = f"{path} value {value} is {name!r}, its box {boxes[int(row.argmax())][0].name!r}"
            advice = "if SegmentationClass counts classes of your own, take it away: boxes name the instances then"
            raise Rejected("classes in SegmentationClass that are others in the XML file", culprit, advice)


def _match(overlaps: np.ndarray, named: Sequence[str], boxes: Sequence[tuple[VOCObject, np.ndarray]]) -> list[int]:
    """For each of n regions (of the class `named`, if any) the number of its box or -1, by overlaps (n, m)."""
    owners = [-1] * len(named)
    for negative, i, j in sorted((-overlaps[i, j], i, j) for i, j in zip(*np.nonzero(overlaps), strict=True)):
        enough = named[i] == boxes[j][0].name if named[i] else -negative >= _MATCH_IOU
        if enough and owners[i] < 0 and j not in owners:
            owners[i] = int(j)
    return owners


def _rectangle(path: Path, box: np.ndarray, size: tuple[int, int]) -> dict[str, Any]:
    """All pixels that `box` touches, as a region."""
    x0, y0 = np.floor(box[:2]).astype(int)
    x1, y1 = np.ceil(box[2:]).astype(int)
    inside = np.zeros(size, np.int32)
    inside[y0:y1, x0:x1] = 1
    return labels.encode(path, inside)[1]
