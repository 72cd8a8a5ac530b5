"""The HTML report of an evaluation: one file that needs no network and is readable without scripts."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from mrcnn_jax.data.value_range import Range
from mrcnn_jax.evaluation.analysis import Analysis
from mrcnn_jax.tools.pages.document import document
from mrcnn_jax.tools.pages.html import Child, Html, join, tag
from mrcnn_jax.tools.report import charts, confusion, pictures, tables
from mrcnn_jax.tools.report.labels import HEADINGS, OUTCOMES, primary_table
from mrcnn_jax.tools.report.select_images import GROUPS, select_images

T = TypeVar("T")

# Byte budgets
_ALL_IMAGES = 2_600_000
_ONE_IMAGE = 150_000
_CLASS_TABLES = 1_100_000  # twice as much as LVIS needs

_PREDICTED = ("correct", "classification", "localization", "both", "duplicate", "background")
_ANNOTATED = ("found", "missed", "crowd")

Skeletons = Mapping[int, Sequence[tuple[int, int]]]
Progress = Callable[[Iterable[T], int], Iterable[T]]


def render(
    title: str,
    analysis: Analysis,
    folder: Path,
    skeletons: Skeletons,
    progress: Progress[Html],
    value_range: Range | None = None,
) -> Html:
    """Return the page. `folder` has the images; `skeletons` are pairs of keypoint indices from 0, by category id.

    `progress(images, total)` yields the drawn images unchanged and displays how many there are.
    """
    sections = [
        _section("scores", "Scores", tables.metrics(analysis.tables)),
        _section("curves", "Precision and recall", _curves(analysis)),
        _section("classes", "Classes", _classes(analysis)),
        _errors(analysis),
        _section("confusion", "Confusion", _confusion(analysis)),
        _section("confidence", "Scores of predictions", _confidence(analysis)),
        _section("images", "Images", _images(analysis, folder, skeletons, progress, value_range)),
    ]
    shown = [section for section in sections if section is not None]
    links = [tag("a", name, href=f"#{anchor}") for anchor, name, _ in shown]
    header = tag(
        "header",
        tag("h1", f"Evaluation of {title}"),
        tag("p", tables.summary(analysis), class_="note"),
        [tag("p", f"{note}.", class_="note") for note in analysis.notes],
        tables.headline(analysis.tables),
        tag("nav", links, aria_label="sections of the page"),
    )
    here = Path(__file__)
    body = [section for _, _, section in shown]
    stylesheet, script = here.with_name("report.css"), here.with_name("report.js")
    return document(f"Evaluation of {title}", stylesheet, header, body, script=script)


_Section = tuple[str, str, Html]  # anchor, name, the element


def _section(anchor: str, name: str, *content: Child) -> _Section:
    return anchor, name, tag("section", tag("h2", name), *content, id=anchor)


def _curves(analysis: Analysis) -> Html:
    description = tag("p", "Detections in descending order of their scores; mean over the classes with instances.")
    figures = tag("div", [charts.curves(table) for table in analysis.tables], class_="charts")
    return join(description, _class_select(analysis, "curves-class"), figures)


def _class_select(analysis: Analysis, anchor: str) -> Html:
    """Return a menu of the classes, which needs report.js and is hidden without it."""
    options = [tag("option", "all classes", value="")]
    options += [tag("option", category.name, value=k) for k, category in enumerate(analysis.categories)]
    menu = tag("select", options, id=anchor, class_="class-select", autocomplete="off")
    return tag("label", "class ", menu, class_="js-only")


def _classes(analysis: Analysis) -> Html:
    hint = "Click on a column heading to sort, on a class to see its curves and images."
    iou_types = [table.iou_type for table in analysis.tables]
    class_tables = [tables.classes(table, _CLASS_TABLES // len(analysis.tables)) for table in analysis.tables]
    return tables.tabs(
        "classes", iou_types, primary_table(analysis).iou_type, tag("p", hint, class_="js-only note"), class_tables
    )


def _errors(analysis: Analysis) -> _Section | None:
    figures = [tables.errors(table) for table in analysis.tables if table.errors is not None]
    description = tag(
        "p",
        "What AP50 would gain if the errors of one kind were corrected. The kinds are those of TIDE (Bolya et al. "
        "2020), with a foreground overlap of 0.5 and a background overlap of 0.1. The gains do not add up.",
    )
    return _section("errors", "Errors", description, tag("div", figures, class_="charts")) if figures else None


def _confusion(analysis: Analysis) -> Html:
    table = primary_table(analysis)
    description = (
        f"{HEADINGS[table.iou_type]} predicted with a score of at least {analysis.threshold:g}, each matched to the "
        "instance of any class that it overlaps most, by at least 0.5. The color of a cell shows its share of the row."
    )
    matrix = confusion.matrix(table, analysis.categories)
    most_frequent = confusion.most_frequent(table, analysis.categories)
    return join(tag("p", description), tag("div", matrix, most_frequent, class_="side-by-side"))


def _confidence(analysis: Analysis) -> Html:
    description = (
        "Predictions by score, correct or wrong at an overlap of 0.5. Images and the confusion matrix contain those "
        f"with a score of at least {analysis.threshold:g}."
    )
    figures = [charts.histogram(table, analysis.threshold) for table in analysis.tables]
    return join(tag("p", description), tag("div", figures, class_="charts"))


def _images(
    analysis: Analysis, folder: Path, skeletons: Skeletons, progress: Progress[Html], value_range: Range | None
) -> Html:
    selected = select_images(analysis.images)
    byte_budget = min(_ONE_IMAGE, _ALL_IMAGES // max(len(selected), 1))
    ids = [category.id for category in analysis.categories]
    names = {category.id: category.name for category in analysis.categories}
    legend = pictures.Legend(names, {i: k for k, i in enumerate(ids)}, skeletons)
    drawn = (
        pictures.figure(group, f"image{k}", image, folder, legend, byte_budget, value_range)
        for k, (group, image) in enumerate(selected)
    )
    figures = zip((group for group, _ in selected), progress(drawn, len(selected)), strict=True)
    groups = [_group(name, [figure for _, figure in pairs]) for name, pairs in _grouped(figures)]
    kind = HEADINGS[primary_table(analysis).iou_type].lower()
    description = (
        f"Predictions with a score of at least {analysis.threshold:g}; outcomes by the overlap of {kind}, 0.5 for a "
        "correct one. Best and worst images by F1. Click on an image to enlarge it."
    )
    return join(tag("p", description), _controls(analysis, [name for name in GROUPS if name in dict(selected)]), groups)


def _grouped(figures: Iterable[tuple[str, Html]]) -> Iterator[tuple[str, list[tuple[str, Html]]]]:
    for name, pairs in itertools.groupby(figures, key=lambda pair: pair[0]):
        yield name, list(pairs)


def _group(name: str, figures: Sequence[Html]) -> Html:
    return tag("div", tag("h3", GROUPS[name]), tag("div", figures, class_="images"), class_="group")


def _controls(analysis: Analysis, groups: Sequence[str]) -> Html:
    """Return the controls of the images: the stylesheet shows or hides layers, report.js does the rest."""
    instances = [instance for image in analysis.images for instance in image.instances]
    layers = {
        "masks": any(instance.segmentation is not None for instance in instances) and "masks",
        "boxes": "boxes",
        "skeletons": any(instance.keypoints is not None for instance in instances) and "keypoints",
        "names": "names",
    }
    toggles = [
        tag("label", tag("input", type="checkbox", checked="", class_=f"show-{layer}", autocomplete="off"), name)
        for layer, name in layers.items()
        if name
    ]
    outcomes = [
        tag("optgroup", [tag("option", OUTCOMES[name].name, value=name) for name in kinds], label=label)
        for label, kinds in (("predicted", _PREDICTED), ("annotated", _ANNOTATED))
    ]
    all_option = tag("option", "all", value="")
    group = tag(
        "select", all_option, [tag("option", GROUPS[g], value=g) for g in groups], id="group", autocomplete="off"
    )
    outcome = tag("select", all_option, outcomes, id="outcome", autocomplete="off")
    threshold = f"{analysis.threshold:.2f}"
    slider = tag(
        "input", type="range", id="score", min=threshold, max=1, step=0.01, value=threshold, autocomplete="off"
    )
    filters = [
        _class_select(analysis, "images-class"),
        tag("label", "group ", group, class_="js-only"),
        tag("label", "outcome ", outcome, class_="js-only"),
        tag("label", "score at least ", slider, " ", tag("output", threshold, for_="score"), class_="js-only"),
    ]
    legend = [tag("li", tag("i", class_=f"o-{name}"), OUTCOMES[name].name) for name in (*_PREDICTED, *_ANNOTATED[1:])]
    return tag(
        "div",
        tag("div", filters, tag("span", id="status", role="status", class_="js-only"), class_="filters"),
        tag("p", toggles, class_="toggles"),
        tag("ul", legend, class_="legend"),
        class_="controls",
    )
