"""COCO results in a file of any program: read, checked record by record, and brought into one form."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from mrcnn_jax.data.segmentation_checks import safe_segmentation
from mrcnn_jax.errors import DataError, listing, shown
from mrcnn_jax.runtime.progress import track

Record = dict[str, Any]

_PLACES = ("bbox", "segmentation", "keypoints")  # a result has one of them at least
_EXACT = 2**53  # from here on not every whole number is a floating-point number
_FARTHEST = 1e9  # pixels; areas and distances of larger coordinates are no finite numbers


def read(path: Path) -> list[Record]:
    """The records of a file, with the fields of COCO's results alone, and `file_name` where they have it.

    A list of records, an object around it, or a record on each line. Fields of a place that are null or empty are
    missing fields; numbers may be written as text. Raises DataError, which names records and field, for what cannot be
    read; FileNotFoundError.
    """
    records = _list_of_records(path)
    for name, (value_of, needed) in _FIELDS.items():
        wrong = []
        for number, record in enumerate(records):
            given = record.pop(name, None)
            if name in _PLACES and (given is None or given in ([], {})):
                continue
            value = value_of(given)
            if value is None:
                wrong.append(f"{number} ({shown(given if isinstance(given, str) else json.dumps(given))})")
            record[name] = value
        if wrong:
            raise DataError(
                f"records of {path} without a usable {name} ({len(wrong)}): {listing(wrong)}, from 0; write {needed}"
            )
    records = [{name: record[name] for name in (*_FIELDS, "file_name") if name in record} for record in records]
    if bare := [number for number, record in enumerate(records) if not any(name in record for name in _PLACES)]:
        raise DataError(f"records of {path} without {', '.join(_PLACES)} ({len(bare)}): {listing(bare)}, from 0")
    if not records:
        raise DataError(f"{path} has no records: there is nothing to report")
    return records


def _list_of_records(path: Path) -> list[Record]:
    try:
        content = _json(path)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from None
    if isinstance(content, dict):
        content = _wrapped(content)
    if not isinstance(content, list) or not all(isinstance(record, dict) for record in content):
        raise DataError(f"{path} is no list of result records: [{{image_id, category_id, score, bbox, ...}}, ...]")
    return content


def _wrapped(content: dict[str, Any]) -> Any:
    """What may be the records in an object: its `annotations`, its only list, or the object itself."""
    lists = [value for value in content.values() if isinstance(value, list)]
    if "image_id" in content:
        return [content]
    return content.get("annotations", lists[0] if len(lists) == 1 else None)


def _json(path: Path) -> Any:
    """The content of a JSON file; of one with a value on each line, their list."""
    content = path.read_bytes()
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        reason: Exception = error
    values = []
    for number, line in enumerate(content.splitlines(), 1):
        try:
            values += [json.loads(line)] if line.strip() else []
        except (ValueError, RecursionError) as error:
            where = f"line {number}: {error}" if values else reason
            raise DataError(f"{path} is no JSON: {where}") from None
    return values


def _number(value: Any) -> float | None:
    """A finite number."""
    try:
        number = float(value) if isinstance(value, str) else value
        return number if type(number) in (int, float) and math.isfinite(number) else None
    except (ValueError, OverflowError):
        return None


def _whole(value: Any) -> int | None:
    """An id: a whole number, which may be written as 7.0."""
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,19}", value):
        return int(value)
    number = _number(value)
    exact = type(number) is int or (number is not None and number == int(number) and abs(number) < _EXACT)
    return int(number) if number is not None and exact else None


def _coordinates(value: Any) -> list[float] | None:
    if not isinstance(value, list):
        return None
    numbers = [number for number in map(_number, value) if number is not None and abs(number) <= _FARTHEST]
    return numbers if len(numbers) == len(value) else None


def _box(value: Any) -> list[float] | None:
    numbers = _coordinates(value)
    return numbers if numbers is not None and len(numbers) == 4 and min(numbers[2:]) >= 0 else None


def _points(value: Any) -> list[float] | None:
    numbers = _coordinates(value)
    return numbers if numbers is not None and len(numbers) % 3 == 0 else None


def _mask(value: Any) -> Any:
    """What may be run lengths or polygons; `with_run_lengths`, which knows the images, reads them."""
    polygons = isinstance(value, list) and all(isinstance(polygon, list) for polygon in value)
    return value if polygons or (isinstance(value, dict) and {"size", "counts"} <= value.keys()) else None


_FIELDS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "image_id": (_whole, "the id that the annotations have for the image, a whole number"),
    "category_id": (_whole, "the id that the annotations have for the category, a whole number"),
    "score": (_number, "a finite number; annotations, which have none, are no results"),
    "bbox": (_box, "x, y, width, height in pixels, no side below 0"),
    "segmentation": (_mask, "run lengths, {size, counts}, or polygons, [[x, y, x, y, ...], ...]"),
    "keypoints": (_points, "x, y in pixels and score of each keypoint"),
}


def check_names(truth: COCO, records: Sequence[Record]) -> None:
    """Raise ValueError for records whose `file_name` is not that of their image: their ids are those of another file.

    Folders and suffixes may differ, which copies of a data set do.
    """
    wrong = {}
    for record in records:
        image, name = truth.imgs.get(record["image_id"]), record.get("file_name")
        if image is not None and isinstance(name, str) and _stem(name) != _stem(image["file_name"]):
            wrong[record["image_id"]] = f"{image['id']} ({shown(name)}, annotated {shown(image['file_name'])})"
    if wrong:
        raise ValueError(
            f"image ids that stand for other files ({len(wrong)}): {listing(list(wrong.values()))}; write those of"
            " the annotations"
        )


def _stem(name: str) -> str:
    return PurePosixPath(name.replace("\\", "/")).stem


def with_run_lengths(truth: COCO, records: Sequence[Record]) -> list[Record]:
    """The records with their masks as compressed run lengths.

    pycocotools trusts what it is given, and reads beyond its memory for some: so every mask is checked. Records of
    unknown images are left for `coco.score`. Raises ValueError for masks that do not fit their images.
    """
    converted, wrong = [], []
    for number, record in enumerate(track(records, len(records), "results checked")):
        image = truth.imgs.get(record["image_id"])
        if "segmentation" in record and image is not None:
            mask = _run_lengths(record["segmentation"], image["height"], image["width"])
            if mask is None:
                wrong.append(f"{number} (image {record['image_id']})")
            record = {**record, "segmentation": mask}
        converted.append(record)
    if wrong:
        raise ValueError(
            f"records whose segmentation is neither run lengths of the image's size nor polygons ({len(wrong)}):"
            f" {listing(wrong)}, from 0; write them with pycocotools.mask.encode"
        )
    return converted


def _run_lengths(mask: Any, height: int, width: int) -> dict[str, Any] | None:
    """A mask as compressed run lengths of so many pixels; None if it cannot be read."""
    if isinstance(mask, dict) and mask["size"] != [height, width]:
        return None
    if safe_segmentation(mask, height, width) is None:
        return None
    if isinstance(mask, dict) and isinstance(mask["counts"], str):
        return mask
    runs = coco_mask.frPyObjects(mask, height, width)
    runs = coco_mask.merge(runs) if isinstance(runs, list) else runs
    return {"size": [height, width], "counts": runs["counts"].decode()}


def doubts(truth: COCO, records: Sequence[Record]) -> list[str]:
    """Notes on what the records, though each can be read, say together that is hardly meant."""
    notes = []
    scores = [record["score"] for record in records]
    if min(scores) < 0 or max(scores) > 1:
        notes.append(
            f"scores are {min(scores):g} to {max(scores):g}: tables go by their order alone, but pictures, confusion"
            " and histogram take them as 0 to 1"
        )
    if repeated := len(records) - len({hash(json.dumps(record)) for record in records}):
        notes.append(f"{repeated} of {len(records)} results repeat another one: they count as false alarms")
    return notes + _box_doubts(truth, records)


def _box_doubts(truth: COCO, records: Sequence[Record]) -> list[str]:
    """A note on boxes that all look as if they were written in another convention than COCO's."""
    boxes = [(r["bbox"], truth.imgs[r["image_id"]]) for r in records if "bbox" in r and r["image_id"] in truth.imgs]
    convention = "COCO's boxes are x, y, width, height in pixels"
    if boxes and all(x + w <= 1 and y + h <= 1 for (x, y, w, h), _ in boxes):
        return [f"all boxes lie within one pixel and look like shares of the image's size: {convention}"]
    beyond = sum(x + w > image["width"] + 1 or y + h > image["height"] + 1 for (x, y, w, h), image in boxes)
    corners = all(x <= w <= image["width"] + 1 and y <= h <= image["height"] + 1 for (x, y, w, h), image in boxes)
    if corners and 10 * beyond > len(boxes):
        return [f"{beyond} of {len(boxes)} boxes leave their images and all look like x0, y0, x1, y1: {convention}"]
    return []
