"""`python -m mrcnn_jax.evaluation.report RESULTS.json ANNOTATIONS.json --images=DIR`: a report of anyone's results."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mrcnn_jax.data.errors import DataError, listing
from mrcnn_jax.evaluation import coco
from mrcnn_jax.evaluation.report import write
from mrcnn_jax.paths import user_path

_FIELDS = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}  # of a result record


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _are_numbers(value: Any, count: int | None = None) -> bool:
    return isinstance(value, list) and all(map(_is_number, value)) and count in (None, len(value))


# What a field of a record has to be. The last three may be missing.
_SOUND = {
    "image_id": _is_number,
    "category_id": _is_number,
    "score": _is_number,
    "bbox": lambda value: value is None or _are_numbers(value, 4),
    "segmentation": lambda value: value is None or (isinstance(value, dict) and {"size", "counts"} <= value.keys()),
    "keypoints": lambda value: value is None or _are_numbers(value),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Score COCO results, of whatever program, and write a page of tables, curves, errors and pictures. Exit status 2
    for files that cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m mrcnn_jax.evaluation.report", description=main.__doc__)
    parser.add_argument("results", type=user_path, metavar="RESULTS.json", help="a list of COCO result records")
    parser.add_argument(
        "annotations", type=user_path, metavar="ANNOTATIONS.json", help="what is true, in COCO's format"
    )
    parser.add_argument("--images", type=user_path, metavar="DIR", required=True, help="the folder with the images")
    parser.add_argument(
        "--output", type=user_path, metavar="FILE", default=Path("report.html"), help="(default: %(default)s)"
    )
    given = parser.parse_args(arguments)
    try:
        report(given.results, given.annotations, given.images, given.output)
    except (DataError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"the report is in {given.output}")
    return 0


def report(results: Path, annotations: Path, images: Path, output: Path) -> None:
    """The command without its command line. Raises DataError or FileNotFoundError for what cannot be used."""
    for folder, option in ((images, "--images"), (output.parent, "--output")):
        if not folder.is_dir():
            raise DataError(f"no folder {folder}; make it, or give another {option}")
    records = read(results)
    iou_types = [name for name in _FIELDS if all(_FIELDS[name] in record for record in records)]
    truth = coco.ground_truth(annotations)
    scored = [name for name in iou_types if any(entry.get(_FIELDS[name]) for entry in truth.dataset["annotations"])]
    if not scored:
        raise DataError(
            f"{annotations} has nothing of what {results} has ({listing(iou_types)}); give other annotations"
        )
    try:
        coco.check_masks(truth, records)
        scores = coco.score(annotations, records, iou_types=scored, images=images)
    except ValueError as error:
        raise DataError(f"{results} does not fit {annotations}: {error}") from error
    write(scores, images, output, title=results.name)


def read(path: Path) -> list[dict[str, Any]]:
    """The records of a results file. Raises DataError, which says what is wrong, FileNotFoundError."""
    try:
        records = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path} is no JSON: {error}") from error
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise DataError(f"{path} is no list of result records: [{{image_id, category_id, score, bbox, ...}}, ...]")
    for name, sound in _SOUND.items():
        if wrong := [k for k, record in enumerate(records) if not sound(record.get(name))]:
            raise DataError(f"records of {path} without a usable {name} ({len(wrong)}): {listing(wrong)}, from 0")
    if not records:
        raise DataError(f"{path} has no records: there is nothing to report")
    return records


if __name__ == "__main__":
    sys.exit(main())
