"""Writing of the report of an evaluation."""

from __future__ import annotations

import functools
import logging
from pathlib import Path

from etils import epath

from mrcnn_jax.data.value_range import Range
from mrcnn_jax.errors import format_error
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
    """Write the report of `scores` to `output`, with the images that exist in the folder `images`.

    `title` names what was evaluated; `value_range` is `data.value_range` of the model.
    """
    skeletons = {
        i: [(first - 1, second - 1) for first, second in category.get("skeleton", ())]
        for i, category in scores.ground_truth.cats.items()
    }
    progress = functools.partial(track, what="images drawn")
    html = page.render(title, analyze(scores), images, skeletons, progress, value_range)
    # Names may contain unpaired surrogates.
    epath.Path(output).write_bytes(html.encode("utf-8", errors="replace"))


def try_write(
    scores: Scores, images: Path, output: epath.Path, *, title: str, value_range: Range | None = None
) -> None:
    """Call `write_report` and log its failures, on which the metrics do not depend."""
    try:
        write_report(scores, images, output, title=title, value_range=value_range)
    except Exception as error:
        log.warning("no report written: %s", format_error(error), exc_info=True)
        output.unlink(missing_ok=True)  # it may be that of an earlier evaluation
