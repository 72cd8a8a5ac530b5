"""Check a dataset as training reads it, including every image.

Prints tables and all problems, and writes an HTML page. The exit status is
0 if no problems were found, 1 if training would refuse the dataset or drop
part of it, 2 if there is nothing to check or no instance to train on.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pathlib import Path

from mrcnn_jax.cli import common
from mrcnn_jax.data.value_range import Range
from mrcnn_jax.errors import DataError
from mrcnn_jax.runtime import files
from mrcnn_jax.runtime.progress import track
from mrcnn_jax.tools.check import compare, page, sources, table
from mrcnn_jax.tools.check.survey import Survey, survey


def main(arguments: Sequence[str]) -> int:
    parser = common.make_parser("check", __doc__)
    common.add(parser, "data", "DATA", "directory with COCO JSON files and images, or one COCO JSON file")
    common.add(parser, "--images", "DIR", "directory with the images (default: search for them)")
    common.add(parser, "--output", "FILE", "HTML page to write (default: check-NAME.html)")
    accept = "exit with status 0 even if training would drop data"
    parser.add_argument("--accept-dropped", action="store_true", help=accept)
    high_bits = "value of data.value_range in the configuration, for images with more than 8 bits"
    parser.add_argument("--value_range", nargs=2, type=float, metavar=("LOW", "HIGH"), help=high_bits)
    options, _ = common.parse(parser, arguments)
    low, high = options.value_range or (0, 1)
    if not -math.inf < low < high < math.inf:
        raise DataError(f"--value_range {low:g} {high:g}: give two finite values, LOW < HIGH")
    value_range = (low, high) if options.value_range else None
    return check(options.data, options.images, options.output, options.accept_dropped, value_range)


def check(
    data: Path, images: Path | None, output: Path | None, accept_dropped: bool, value_range: Range | None = None
) -> int:
    """Check a dataset, print the problems, write the HTML page, and return the exit status."""
    output = output or Path(f"check-{data.resolve().stem}.html")
    files.check_output(output, "--output", parents=False)
    dataset = sources.find_files(data, images)
    surveys = survey(dataset.files, functools.partial(track, what="images checked"), value_range)
    warnings = [*(line for one in surveys for line in one.warnings), *compare.warnings(surveys)]
    notes = [f"not checked: {line}" for line in dataset.skipped] + [f"warning: {line}" for line in warnings]
    html = page.render(str(data), surveys, dataset.broken, notes, functools.partial(track, what="images drawn"))
    output.write_text(html, encoding="utf-8", errors="replace")  # names may contain lone surrogates
    for one in surveys:
        table.show(one)
    for line in (*notes, *dataset.broken, *(line for one in surveys for line in one.findings)):
        print(line)
    print(f"{_verdict(surveys, dataset.broken, warnings)}; images and histograms in {output}")
    if any(one.untrainable for one in surveys):
        return 2
    faults = {"refused"} if accept_dropped else {"refused", "dropped"}
    return 1 if dataset.broken or any(one.status in faults for one in surveys) else 0


def _verdict(surveys: Sequence[Survey], broken: Sequence[str], warnings: Sequence[str]) -> str:
    refused = [*broken, *(reason for one in surveys for reason in (*one.refusals, one.untrainable) if reason)]
    dropped = [problem for one in surveys for problem in one.content.problems]
    problems = len(refused or dropped or warnings)
    counted = f"{problems:,} {'problem' if refused or dropped else 'warning'}{'s' if problems > 1 else ''}"
    if refused:
        return f"refused: training would not start ({counted})"
    if dropped:
        return f"training would start, but drop data ({counted})"
    return f"training would start, with {counted}" if warnings else "no problems found"
