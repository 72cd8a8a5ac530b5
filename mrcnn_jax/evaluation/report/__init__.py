"""The report of an evaluation: one HTML page of tables, curves, errors and pictures, of whoever's results.

words               what tables, metrics and outcomes are called
tables confusion    numbers
charts              curves and histograms
choose pictures     which images to look at, and how they are drawn
page                the page; report.css and report.js are its style and its script
"""

from __future__ import annotations

import functools
from pathlib import Path

from etils import epath

from mrcnn_jax.data.value_range import Range
from mrcnn_jax.evaluation.analysis import analyse
from mrcnn_jax.evaluation.coco import Scores
from mrcnn_jax.evaluation.report import page
from mrcnn_jax.progress import track


def write(
    scores: Scores,
    images: Path,
    output: epath.PathLike,
    *,
    title: str = "results",
    value_range: Range | None = None,
) -> None:
    """Write the report of `scores` to `output`; the pictures are in the folder `images`, as far as they are there.

    `title` says what was evaluated. value_range: `data.value_range` of the model that was.
    """
    bones = {
        i: [(first - 1, second - 1) for first, second in category.get("skeleton", ())]
        for i, category in scores.truth.cats.items()
    }
    watch = functools.partial(track, what="pictures drawn")
    drawn = page.render(title, analyse(scores), images, bones, watch, value_range)
    # Half a character in a name is no reason to have no report.
    epath.Path(output).write_bytes(drawn.encode("utf-8", errors="replace"))
