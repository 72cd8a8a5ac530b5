"""The page of an evaluation: one file that needs no network, and that reads as well where no script is run."""

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
from mrcnn_jax.tools.report.select_images import GROUPS, choose

T = TypeVar("T")

_PICTURES = 2_600_000  # bytes that all pictures of a page may have together
_ROOM = 150_000  # and a single picture
_CLASSES = 1_100_000  # and all tables of classes: the ones of LVIS twice
_PREDICTED = ("correct", "classification", "localization", "both", "duplicate", "background")
_TRUE = ("found", "missed", "crowd")

Bones = Mapping[int, Sequence[tuple[int, int]]]
Watch = Callable[[Iterable[T], int], Iterable[T]]


def render(
    title: str,
    analysis: Analysis,
    folder: Path,
    bones: Bones,
    watch: Watch[Html],
    value_range: Range | None = None,
) -> Html:
    """The whole page. `folder` has the images; `bones` join keypoints (from 0) of a category with lines.

    `watch(pictures, total)` passes the pictures on as they are made.
    """
    sections = [
        _section("scores", "Scores", tables.metrics(analysis.tables)),
        _section("curves", "Precision and recall", _curves(analysis)),
        _section("classes", "Classes", _classes(analysis)),
        _errors(analysis),
        _section("confusion", "Confusion", _confusion(analysis)),
        _section("confidence", "Scores of predictions", _confidence(analysis)),
        _section("pictures", "Pictures", _pictures(analysis, folder, bones, watch, value_range)),
    ]
    shown = [section for section in sections if section is not None]
    links = [tag("a", name, href=f"#{anchor}") for anchor, name, _ in shown]
    header = tag(
        "header",
        tag("h1", f"Evaluation of {title}"),
        tag("p", tables.summary(analysis), class_="where"),
        [tag("p", f"{note}.", class_="where") for note in analysis.notes],
        tables.headline(analysis.tables),
        tag("nav", links, aria_label="parts of the page"),
    )
    here = Path(__file__)
    body = [section for _, _, section in shown]
    style, script = here.with_name("report.css"), here.with_name("report.js")
    return document(f"Evaluation of {title}", style, header, body, script=script)


_Section = tuple[str, str, Html]  # anchor, name, the element


def _section(anchor: str, name: str, *content: Child) -> _Section:
    return anchor, name, tag("section", tag("h2", name), *content, id=anchor)


def _curves(analysis: Analysis) -> Html:
    about = tag("p", "Detections taken in the order of their scores; the mean over the classes that occur.")
    drawn = tag("div", [charts.curves(table) for table in analysis.tables], class_="charts")
    return join(about, _class_choice(analysis, "curves-class"), drawn)


def _class_choice(analysis: Analysis, anchor: str) -> Html:
    """What the script alone can answer to; hidden where it does not run."""
    options = [tag("option", "all classes", value="")]
    options += [tag("option", category.name, value=k) for k, category in enumerate(analysis.categories)]
    choice = tag("select", options, id=anchor, class_="of-class", autocomplete="off")
    return tag("label", "class ", choice, class_="scripted")


def _classes(analysis: Analysis) -> Html:
    hint = "Click on the head of a column to sort, on a class to see its curves and its pictures."
    iou_types = [table.iou_type for table in analysis.tables]
    drawn = [tables.classes(table, _CLASSES // len(analysis.tables)) for table in analysis.tables]
    return tables.tabs(
        "classes", iou_types, primary_table(analysis).iou_type, tag("p", hint, class_="scripted where"), drawn
    )


def _errors(analysis: Analysis) -> _Section | None:
    found = [tables.errors(table) for table in analysis.tables if table.errors is not None]
    about = tag(
        "p",
        "What AP50 would gain if errors of one kind were mended and all others stayed: the kinds are TIDE's (Bolya et "
        "al. 2020), at an overlap of 0.5, and 0.1 as the least. The gains do not add up.",
    )
    return _section("errors", "Errors", about, tag("div", found, class_="charts")) if found else None


def _confusion(analysis: Analysis) -> Html:
    table = primary_table(analysis)
    about = (
        f"{HEADINGS[table.iou_type]} predicted with a score of at least {analysis.threshold:g}, each held against the "
        "instance that it overlaps most, by at least 0.5, of whatever class. The darker a cell, the larger its share "
        "of the row."
    )
    matrix = confusion.matrix(table, analysis.categories)
    listed = confusion.most_frequent(table, analysis.categories)
    return join(tag("p", about), tag("div", matrix, listed, class_="beside"))


def _confidence(analysis: Analysis) -> Html:
    about = (
        f"Right at an overlap of 0.5, or wrong. Pictures and confusion show predictions from {analysis.threshold:g} on."
    )
    drawn = [charts.histogram(table, analysis.threshold) for table in analysis.tables]
    return join(tag("p", about), tag("div", drawn, class_="charts"))


def _pictures(analysis: Analysis, folder: Path, bones: Bones, watch: Watch[Html], value_range: Range | None) -> Html:
    chosen = choose(analysis.images)
    room = min(_ROOM, _PICTURES // max(len(chosen), 1))
    ids = [category.id for category in analysis.categories]
    names = {category.id: category.name for category in analysis.categories}
    legend = pictures.Legend(names, {i: k for k, i in enumerate(ids)}, bones)
    made = (
        pictures.figure(group, f"picture{k}", image, folder, legend, room, value_range)
        for k, (group, image) in enumerate(chosen)
    )
    drawn = zip((group for group, _ in chosen), watch(made, len(chosen)), strict=True)
    groups = [_group(name, [figure for _, figure in found]) for name, found in _grouped(drawn)]
    what = HEADINGS[primary_table(analysis).iou_type].lower()
    about = (
        f"Predictions with a score of at least {analysis.threshold:g}, judged by their {what} at an overlap of 0.5. "
        "Best and worst by F1. Click on a picture to enlarge it."
    )
    return join(tag("p", about), _controls(analysis, [name for name in GROUPS if name in dict(chosen)]), groups)


def _grouped(drawn: Iterable[tuple[str, Html]]) -> Iterator[tuple[str, list[tuple[str, Html]]]]:
    for name, pairs in itertools.groupby(drawn, key=lambda pair: pair[0]):
        yield name, list(pairs)


def _group(name: str, figures: Sequence[Html]) -> Html:
    return tag("div", tag("h3", GROUPS[name]), tag("div", figures, class_="pictures"), class_="group")


def _controls(analysis: Analysis, groups: Sequence[str]) -> Html:
    """What is shown of the pictures: layers by the style sheet alone, the rest by the script."""
    instances = [one for image in analysis.images for one in image.instances]
    layers = {
        "masks": any(one.segmentation is not None for one in instances) and "masks",
        "boxes": "boxes",
        "skeletons": any(one.keypoints is not None for one in instances) and "keypoints",
        "names": "names",
    }
    switches = [
        tag("label", tag("input", type="checkbox", checked="", class_=f"show-{layer}", autocomplete="off"), name)
        for layer, name in layers.items()
        if name
    ]
    outcomes = [
        tag("optgroup", [tag("option", OUTCOMES[name].name, value=name) for name in kinds], label=label)
        for label, kinds in (("predicted", _PREDICTED), ("annotated", _TRUE))
    ]
    every = tag("option", "all", value="")
    group = tag("select", every, [tag("option", GROUPS[g], value=g) for g in groups], id="group", autocomplete="off")
    outcome = tag("select", every, outcomes, id="outcome", autocomplete="off")
    low = f"{analysis.threshold:.2f}"
    slider = tag("input", type="range", id="score", min=low, max=1, step=0.01, value=low, autocomplete="off")
    chosen = [
        _class_choice(analysis, "pictures-class"),
        tag("label", "group ", group, class_="scripted"),
        tag("label", "outcome ", outcome, class_="scripted"),
        tag("label", "score from ", slider, " ", tag("output", low, for_="score"), class_="scripted"),
    ]
    key = [tag("li", tag("i", class_=f"o-{name}"), OUTCOMES[name].name) for name in (*_PREDICTED, *_TRUE[1:])]
    return tag(
        "div",
        tag("div", chosen, tag("span", id="status", role="status", class_="scripted"), class_="filters"),
        tag("p", switches, class_="switches"),
        tag("ul", key, class_="legend"),
        class_="controls",
    )
