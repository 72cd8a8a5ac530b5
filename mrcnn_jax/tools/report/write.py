"""Writes the report of an evaluation."""

from __future__ import annotations

import functools
import logging
from pathlib import Path

from etils import epath

from mrcnn_jax.data.value_range import Range
from mrcnn_jax.errors import described
from mrcnn_jax.evaluation.analysis.analyze import analyze
from mrcnn_jax.evaluation.coco_metrics import Scores
from mrcnn_jax.runtime.progress import track
from mrcnn_jax.tools.report import page

log = logging.getLogger(__name__)


def write_report(
    scores: Scores,
    images: Path,
    output: epath.PathLike,
    *,
    title: str = "results",
    value_range: Range | None = None,
) -> None:
    """Write the report of `scores` to `output`, with images of the folder `images` as far as they are there.

    `title` names what was evaluated; `value_range` is `data.value_range` of the model.
    """
    bones = {
        i: [(first - 1, second - 1) for first, second in category.get("skeleton", ())]
        for i, category in scores.ground_truth.cats.items()
    }
    watch = functools.partial(track, what="pictures drawn")
    drawn = page.render(title, analyze(scores), images, bones, watch, value_range)
    # Half a character in a name is no reason to have no report.
    epath.Path(output).write_bytes(drawn.encode("utf-8", errors="replace"))


def try_write(
    scores: Scores, images: Path, output: epath.Path, *, title: str, value_range: Range | None = None
) -> None:
    """`write_report`, with failures logged: the metrics do not depend on it."""
    try:
        write_report(scores, images, output, title=title, value_range=value_range)
    except Exception as error:
        log.warning("there is no report: %s", described(error), exc_info=True)
        output.unlink(missing_ok=True)  # it would be that of an earlier evaluation
