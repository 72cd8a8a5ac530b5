"""Check a dataset as training would read it, every image of it: tables, all problems by name, and an HTML page.

The exit status is 0 if nothing is wrong, 1 if training would refuse the dataset or leave something out, 2 if there is
nothing to check or nothing to learn from.
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
from mrcnn_jax.runtime.files import user_path
from mrcnn_jax.runtime.progress import track
from mrcnn_jax.tools.check import compare, page, sources, table
from mrcnn_jax.tools.check.survey import Survey, counted, survey


def main(arguments: Sequence[str]) -> int:
    parser = common.make_parser("check", __doc__)
    parser.add_argument(
        "data", type=user_path, metavar="DATA", help="a folder with COCO JSON files and their images, or a JSON"
    )
    parser.add_argument(
        "--images", type=user_path, metavar="FOLDER", help="where the images are, if not found by itself"
    )
    parser.add_argument("--output", type=user_path, metavar="FILE", help="the page (default: check-<name>.html here)")
    parser.add_argument(
        "--accept-dropped", action="store_true", help="exit status 0 whenever training would start, whatever it drops"
    )
    parser.add_argument(
        "--value_range", nargs=2, type=float, metavar=("LOW", "HIGH"), help="data.value_range of the configuration"
    )
    options, _ = common.parse(parser, arguments)
    return check(options.data, options.images, options.output, options.accept_dropped, _range(options.value_range))


def _range(given: Sequence[float] | None) -> Range | None:
    if given is not None and not -math.inf < given[0] < given[1] < math.inf:
        raise DataError(f"--value_range {given[0]:g} {given[1]:g}: give two values, LOW < HIGH")
    return None if given is None else (given[0], given[1])


def check(
    data: Path, images: Path | None, output: Path | None, accept_dropped: bool, value_range: Range | None = None
) -> int:
    """Check, print and write the page; return the exit status."""
    output = output or Path(f"check-{data.resolve().stem}.html")
    files.check_output(output, "--output", parents=False)
    found = sources.find_files(data, images)
    surveys = survey(found.files, functools.partial(track, what="images checked"), value_range)
    warnings = [*(line for one in surveys for line in one.warnings), *compare.warnings(surveys)]
    notes = [f"not checked: {line}" for line in found.skipped] + [f"warning: {line}" for line in warnings]
    drawn = page.render(str(data), surveys, found.broken, notes, functools.partial(track, what="pictures drawn"))
    output.write_text(drawn, encoding="utf-8", errors="replace")  # half a character in a name
    for one in surveys:
        table.show(one)
    for line in (*notes, *found.broken, *(line for one in surveys for line in one.findings)):
        print(line)
    print(f"{_verdict(surveys, found.broken, warnings)}; pictures and histograms in {output}")
    if any(one.untrainable for one in surveys):
        return 2
    refused = found.broken or any(one.status == "refused" for one in surveys)
    dropped = any(one.status == "dropped" for one in surveys)
    return 1 if refused or (dropped and not accept_dropped) else 0


def _verdict(surveys: Sequence[Survey], broken: Sequence[str], warnings: Sequence[str]) -> str:
    refused = [*broken, *(reason for one in surveys for reason in (*one.refusals, one.untrainable) if reason)]
    dropped = [problem for one in surveys for problem in one.content.problems]
    if refused:
        return f"refused: training does not start, for {counted(len(refused), 'reason')}"
    if dropped:
        return f"training starts, without {counted(len(dropped), 'faulty annotation')} (whole or in part)"
    if warnings:
        return f"training starts, with {counted(len(warnings), 'warning')}"
    return "nothing is wrong"
