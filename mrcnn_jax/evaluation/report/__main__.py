"""`python -m mrcnn_jax.evaluation.report RESULTS.json ANNOTATIONS.json --images=DIR`: a report of anyone's results."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from mrcnn_jax import paths
from mrcnn_jax.config import ConfigError
from mrcnn_jax.data.errors import DataError, listing
from mrcnn_jax.evaluation import coco, result_file
from mrcnn_jax.evaluation.report import write
from mrcnn_jax.paths import user_path

log = logging.getLogger(__name__)


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
    except (ConfigError, DataError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"the report is in {given.output}")
    return 0


def report(results: Path, annotations: Path, images: Path, output: Path) -> None:
    """The command without its command line. Raises DataError, FileNotFoundError or ConfigError for wrong arguments."""
    if not images.is_dir():
        raise DataError(f"no folder {images}; make it, or give another --images")
    paths.check_output(output, "--output", parents=False)
    records = result_file.read(results)
    truth = coco.ground_truth(annotations)
    if not any(record["category_id"] in truth.cats for record in records):
        found = listing(sorted({record["category_id"] for record in records}))
        known = listing(sorted(truth.cats))
        raise DataError(f"all results of {results} are of categories ({found}) that {annotations} has not ({known})")
    iou_types = [name for name in coco.FIELDS if coco.with_field(records, name)]
    annotated = truth.dataset["annotations"]
    scored = [name for name in iou_types if any(coco.counts(a, name) for a in coco.with_field(annotated, name))]
    if not scored:
        raise DataError(
            f"{annotations} has nothing of what {results} has ({listing(iou_types)}); give other annotations"
        )
    try:
        result_file.check_names(truth, records)
        records = result_file.with_run_lengths(truth, records)
        doubts = result_file.doubts(truth, records)
        for note in doubts:
            log.warning("%s", note)
        scores = coco.score(annotations, records, iou_types=scored, images=images)
    except ValueError as error:
        raise DataError(f"{results} does not fit {annotations}: {error}") from error
    write(dataclasses.replace(scores, notes=(*doubts, *scores.notes)), images, output, title=results.name)


if __name__ == "__main__":
    sys.exit(main())
