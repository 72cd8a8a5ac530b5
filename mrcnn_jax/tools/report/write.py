"""The HTML report of an evaluation: one file that needs no network and is readable without scripts."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from etils import epath
from markupsafe import Markup

from mrcnn_jax.data.value_range import Range
from mrcnn_jax.errors import format_error
from mrcnn_jax.evaluation.analysis import Analysis
from mrcnn_jax.evaluation.analysis.analyze import analyze
from mrcnn_jax.evaluation.coco_metrics import Scores
from mrcnn_jax.runtime.progress import track
from mrcnn_jax.tools.pages import rendering
from mrcnn_jax.tools.report import charts, labels, pictures, tables
from mrcnn_jax.tools.report.select_images import select_images

log = logging.getLogger(__name__)

# Byte budgets
_ALL_IMAGES = 2_600_000
_ONE_IMAGE = 150_000
_CLASS_TABLES = 1_100_000  # twice as much as LVIS needs


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
    html = render(title, analyze(scores), images, skeletons, progress, value_range)
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


def render(
    title: str,
    analysis: Analysis,
    folder: Path,
    skeletons: Mapping[int, Sequence[tuple[int, int]]],
    progress: Callable[[Iterable[Markup], int], Iterable[Markup]],
    value_range: Range | None = None,
) -> str:
    """Return the page. `folder` has the images; `skeletons` are pairs of keypoint indices from 0, by category id.

    `progress(images, total)` yields the drawn images unchanged and displays how many there are.
    """
    selected = select_images(analysis.images)
    byte_budget = min(_ONE_IMAGE, _ALL_IMAGES // max(len(selected), 1))
    names = {category.id: category.name for category in analysis.categories}
    legend = pictures.Legend(names, {i: k for k, i in enumerate(names)}, skeletons)
    drawn = (
        pictures.figure(group, f"image{k}", image, folder, legend, byte_budget, value_range)
        for k, (group, image) in enumerate(selected)
    )
    figures: dict[str, list[Markup]] = {}
    for (group, _), figure in zip(selected, progress(drawn, len(selected)), strict=True):
        figures.setdefault(group, []).append(figure)
    primary = labels.primary_table(analysis)
    instances = [instance for image in analysis.images for instance in image.instances]
    return rendering.render(
        "report/page.html.jinja",
        subject=title,
        analysis=analysis,
        labels=labels,
        primary=primary.iou_type,
        metrics=tables.metrics(analysis.tables),
        curves=[charts.curves(table) for table in analysis.tables],
        classes={t.iou_type: tables.classes(t, _CLASS_TABLES // len(analysis.tables)) for t in analysis.tables},
        errors=[tables.errors(table) for table in analysis.tables if table.errors is not None],
        confusion=[tables.matrix(primary, analysis.categories), tables.most_frequent(primary, analysis.categories)],
        histograms=[charts.histogram(table, analysis.threshold) for table in analysis.tables],
        figures=figures,
        has_masks=any(instance.segmentation is not None for instance in instances),
        has_keypoints=any(instance.keypoints is not None for instance in instances),
    )
