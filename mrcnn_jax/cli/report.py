"""Write an HTML report of COCO results from any program.

The report has tables, curves, errors and images.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

from mrcnn_jax.cli import common
from mrcnn_jax.errors import DataError, format_list
from mrcnn_jax.evaluation import coco_metrics, result_file
from mrcnn_jax.evaluation.coco_ground_truth import counts_in_table, load_ground_truth
from mrcnn_jax.runtime import files
from mrcnn_jax.tools.report.write import write_report

log = logging.getLogger(__name__)


def main(arguments: Sequence[str]) -> None:
    parser = common.make_parser("report", __doc__)
    common.add(parser, "results", "RESULTS.json", "COCO results: a list of records")
    common.add(parser, "annotations", "ANNOTATIONS.json", "ground truth in COCO format")
    common.add(parser, "--images", "DIR", "directory with the images", required=True)
    common.add(parser, "--output", "FILE", "HTML file to write (default: %(default)s)", default="report.html")
    options, _ = common.parse(parser, arguments)
    report(options.results, options.annotations, options.images, options.output)
    print(f"wrote {options.output}")


def report(results: Path, annotations: Path, images: Path, output: Path) -> None:
    """Write the report. Raises DataError, FileNotFoundError or ConfigError for unusable files."""
    if not images.is_dir():
        raise DataError(f"--images={images}: no such directory")
    files.check_output(output, "--output", parents=False)
    records = result_file.read(results)
    truth = load_ground_truth(annotations)
    if not any(record["category_id"] in truth.cats for record in records):
        ids = format_list(sorted({record["category_id"] for record in records}))
        known = format_list(sorted(truth.cats))
        raise DataError(f"no category id in {results} ({ids}) is in {annotations} ({known})")
    iou_types = [name for name in coco_metrics.FIELDS if coco_metrics.with_field(records, name)]
    annotated = {name: coco_metrics.with_field(truth.dataset["annotations"], name) for name in iou_types}
    scored = [name for name in iou_types if any(counts_in_table(entry, name) for entry in annotated[name])]
    if not scored:
        types = f"the types in {results} ({format_list(iou_types)})"
        raise DataError(f"{annotations} has no annotations of {types}; give other annotations")
    try:
        result_file.check_file_names(truth, records)
        records = result_file.encode_masks(truth, records)
        warnings = result_file.plausibility_notes(truth, records)
        for warning in warnings:
            log.warning("%s", warning)
        scores = coco_metrics.score(annotations, records, iou_types=scored, images=images)
    except ValueError as error:
        raise DataError(f"{results} does not match {annotations}: {error}") from error
    write_report(dataclasses.replace(scores, notes=(*warnings, *scores.notes)), images, output, title=results.name)
