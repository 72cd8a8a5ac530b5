"""COCO result files of any program: reading, validation and conversion to one form."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from pycocotools.coco import COCO

from mrcnn_jax.data.segmentation_checks import safe_segmentation
from mrcnn_jax.errors import DataError, format_list, format_value
from mrcnn_jax.runtime.progress import track

Record = dict[str, Any]

_LOCATIONS = ("bbox", "segmentation", "keypoints")  # a record has at least one of them
_MAX_EXACT = 2**53  # floats represent every smaller integer
_MAX_COORDINATE = 1e9  # pixels; areas and distances of larger coordinates may overflow


def read(path: Path) -> list[Record]:
    """Read the result records of a file, with COCO's fields, and `file_name` if given.

    The file is a list of records, an object with such a list, or one record per line. Boxes, masks and keypoints that
    are null or empty are missing; numbers may be strings. Raises DataError, which names field and records, for
    invalid values, and FileNotFoundError.
    """
    records = _list_of_records(path)
    for name, (parse, expected) in _FIELDS.items():
        invalid = []
        for index, record in enumerate(records):
            given = record.pop(name, None)
            if name in _LOCATIONS and (given is None or given in ([], {})):
                continue
            value = parse(given)
            if value is None:
                invalid.append(f"{index} ({format_value(given if isinstance(given, str) else json.dumps(given))})")
            record[name] = value
        if invalid:
            problem = f"records of {path} without a usable {name} ({len(invalid)}): {format_list(invalid)}"
            raise DataError(f"{problem}, counted from 0; write {expected}")
    records = [{name: record[name] for name in (*_FIELDS, "file_name") if name in record} for record in records]
    if empty := [index for index, record in enumerate(records) if not any(name in record for name in _LOCATIONS)]:
        fields = f"{', '.join(_LOCATIONS[:-1])} or {_LOCATIONS[-1]}"
        raise DataError(f"records of {path} without {fields} ({len(empty)}): {format_list(empty)}, counted from 0")
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
        content = _unwrap(content)
    if not isinstance(content, list) or not all(isinstance(record, dict) for record in content):
        raise DataError(f"{path} is not a list of result records: [{{image_id, category_id, score, bbox, ...}}, ...]")
    return content


def _unwrap(content: dict[str, Any]) -> Any:
    """Return the records of a JSON object: its `annotations`, its only list, or the object as one record."""
    lists = [value for value in content.values() if isinstance(value, list)]
    if "image_id" in content:
        return [content]
    return content.get("annotations", lists[0] if len(lists) == 1 else None)


def _json(path: Path) -> Any:
    """Return the content of a JSON file, or the list of values of a file with one per line."""
    content = path.read_bytes()
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        reason: Exception = error
    values = []
    for line_number, line in enumerate(content.splitlines(), 1):
        try:
            values += [json.loads(line)] if line.strip() else []
        except (ValueError, RecursionError) as error:
            message = f"line {line_number}: {error}" if values else reason
            raise DataError(f"{path} is not valid JSON: {message}") from None
    return values


def _number(value: Any) -> float | None:
    """Return a finite number; None for any other value."""
    try:
        number = float(value) if isinstance(value, str) else value
        return number if type(number) in (int, float) and math.isfinite(number) else None
    except (ValueError, OverflowError):
        return None


def _integer(value: Any) -> int | None:
    """Return an integer, which may be written as 7.0; None for any other value."""
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,19}", value):
        return int(value)
    number = _number(value)
    exact = type(number) is int or (number is not None and number == int(number) and abs(number) < _MAX_EXACT)
    return int(number) if number is not None and exact else None


def _coordinates(value: Any, is_valid: Callable[[list[float]], bool]) -> list[float] | None:
    """Return a list of coordinates; None for any other value."""
    given = value if isinstance(value, list) else [None]
    numbers = [number for number in map(_number, given) if number is not None and abs(number) <= _MAX_COORDINATE]
    return numbers if len(numbers) == len(given) and is_valid(numbers) else None


def _box(value: Any) -> list[float] | None:
    return _coordinates(value, lambda numbers: len(numbers) == 4 and min(numbers[2:]) >= 0)


def _points(value: Any) -> list[float] | None:
    return _coordinates(value, lambda numbers: len(numbers) % 3 == 0)


def _mask(value: Any) -> Any:
    """Return what has the structure of run lengths or polygons; `encode_masks` checks them against the image."""
    polygons = isinstance(value, list) and all(isinstance(polygon, list) for polygon in value)
    return value if polygons or (isinstance(value, dict) and {"size", "counts"} <= value.keys()) else None


_FIELDS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "image_id": (_integer, "the image id of the annotations, an integer"),
    "category_id": (_integer, "the category id of the annotations, an integer"),
    "score": (_number, "a finite number; annotations are not results and have no score"),
    "bbox": (_box, "x, y, width, height in pixels, with width and height of at least 0"),
    "segmentation": (_mask, "run lengths {size, counts} or polygons [[x, y, x, y, ...], ...]"),
    "keypoints": (_points, "x and y in pixels and the score of each keypoint"),
}


def check_file_names(truth: COCO, records: Sequence[Record]) -> None:
    """Raise ValueError for records whose `file_name` differs from that of the image with their image id.

    Folders and suffixes may differ, as in copies of a dataset.
    """
    differing = {}
    for record in records:
        image, name = truth.imgs.get(record["image_id"]), record.get("file_name")
        if image is not None and isinstance(name, str) and _stem(name) != _stem(image["file_name"]):
            names = f"{format_value(name)}, annotated {format_value(image['file_name'])}"
            differing[image["id"]] = f"{image['id']} ({names})"
    if differing:
        problem = f"image ids of other files ({len(differing)}): {format_list(list(differing.values()))}"
        raise ValueError(f"{problem}; write the image ids of the annotations")


def _stem(name: str) -> str:
    return PurePosixPath(name.replace("\\", "/")).stem


def encode_masks(truth: COCO, records: Sequence[Record]) -> list[Record]:
    """Return the records with their masks as compressed run lengths.

    Every mask is checked, because pycocotools reads out of bounds for some invalid ones. Records of unknown images are
    returned as they are, for `coco_metrics.score` to report. Raises ValueError for masks that do not fit their images.
    """
    converted, invalid = [], []
    for index, record in enumerate(track(records, len(records), "results checked")):
        image = truth.imgs.get(record["image_id"])
        if "segmentation" in record and image is not None:
            mask = _run_lengths(truth, record, image["height"], image["width"])
            if mask is None:
                invalid.append(f"{index} (image {record['image_id']})")
            record = {**record, "segmentation": mask}
        converted.append(record)
    if invalid:
        problem = "records whose segmentation is neither run lengths of the image's size nor polygons"
        found = f"{format_list(invalid)}, counted from 0; write them with pycocotools.mask.encode"
        raise ValueError(f"{problem} ({len(invalid)}): {found}")
    return converted


def _run_lengths(truth: COCO, record: Record, height: int, width: int) -> dict[str, Any] | None:
    """Return the mask of a record as compressed run lengths; None if it is invalid or not of the given size."""
    mask = record["segmentation"]
    if isinstance(mask, dict) and mask["size"] != [height, width]:
        return None
    if safe_segmentation(mask, height, width) is None:
        return None
    if isinstance(mask, dict) and isinstance(mask["counts"], str):
        return mask
    return {"size": [height, width], "counts": truth.annToRLE(record)["counts"].decode()}


def plausibility_notes(truth: COCO, records: Sequence[Record]) -> list[str]:
    """Return notes on valid records that are probably mistaken: score range, duplicates, box convention."""
    notes = []
    scores = [record["score"] for record in records]
    if min(scores) < 0 or max(scores) > 1:
        effect = "tables depend on their order only, but pictures, confusion and histogram expect 0 to 1"
        notes.append(f"scores are {min(scores):g} to {max(scores):g}: {effect}")
    if repeated := len(records) - len({hash(json.dumps(record)) for record in records}):
        repeats = f"{repeated} of {len(records)} results are duplicates of another one"
        notes.append(f"{repeats}: they count as false positives")
    return notes + _box_notes(truth, records)


def _box_notes(truth: COCO, records: Sequence[Record]) -> list[str]:
    """Return a note if the boxes appear to be in another convention than COCO's."""
    boxes = [(r["bbox"], truth.imgs[r["image_id"]]) for r in records if "bbox" in r and r["image_id"] in truth.imgs]
    convention = "COCO's boxes are x, y, width, height in pixels"
    if boxes and all(x + w <= 1 and y + h <= 1 for (x, y, w, h), _ in boxes):
        return [f"all boxes are within one pixel and look like fractions of the image's size: {convention}"]
    beyond = sum(x + w > image["width"] + 1 or y + h > image["height"] + 1 for (x, y, w, h), image in boxes)
    corners = all(x <= w <= image["width"] + 1 and y <= h <= image["height"] + 1 for (x, y, w, h), image in boxes)
    if corners and 10 * beyond > len(boxes):
        extending = f"{beyond} of {len(boxes)} boxes extend beyond their images"
        return [f"{extending} and all look like x0, y0, x1, y1: {convention}"]
    return []
