"""The HTML page of `mrcnn check`: one file without scripts that needs no network."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from mrcnn_jax.data import image_files
from mrcnn_jax.errors import format_list
from mrcnn_jax.tools.check import picture
from mrcnn_jax.tools.check.charts import charts
from mrcnn_jax.tools.check.select_images import ImageChoice, select_images
from mrcnn_jax.tools.check.survey import Survey, class_rows, counted, summary_rows
from mrcnn_jax.tools.pages.document import document
from mrcnn_jax.tools.pages.html import Html, join, tag

T = TypeVar("T")

# Byte budgets
_ALL_IMAGES = 3_600_000
_ONE_IMAGE = 150_000
_ALL_FINDINGS = 600_000

_LAYERS = ("masks", "boxes", "skeletons", "names")
_STATUS = {
    "clean": "Training starts and uses the whole dataset.",
    "dropped": "Training starts, without what is listed here.",
    "refused": "Training does not start with this dataset.",
}

Progress = Callable[[Iterable[T], int], Iterable[T]]


def render(
    title: str, surveys: Sequence[Survey], broken: Sequence[str], notes: Sequence[str], progress: Progress[Html]
) -> Html:
    """Return the page of all surveys. `broken`: errors of files that could not be read; `notes`: further messages.

    `progress(images, total)` yields the drawn images unchanged and displays how many there are.
    """
    selected = [select_images(survey, 1 / len(surveys)) for survey in surveys]
    total = sum(map(len, selected))
    byte_budget = min(_ONE_IMAGE, _ALL_IMAGES // max(total, 1))
    anchors = [f"file{i}" for i in range(len(surveys))]
    parts = zip(anchors, surveys, selected, strict=True)
    drawn = itertools.chain.from_iterable(_figures(*part, byte_budget) for part in parts)
    figures = iter(list(progress(drawn, total)))
    sections = []
    for anchor, survey, choices in zip(anchors, surveys, selected, strict=True):
        own_figures = list(itertools.islice(figures, len(choices)))
        sections.append(_section(anchor, survey, choices, own_figures, _ALL_FINDINGS // len(surveys)))
    links = [tag("a", survey.path.name, href=f"#{anchor}") for anchor, survey in zip(anchors, surveys, strict=True)]
    body = [
        tag("header", tag("h1", f"Check of {title}"), tag("nav", links) if len(links) > 1 else ()),
        [tag("div", tag("p", line), class_="status refused") for line in broken],
        tag("div", [tag("p", line) for line in notes], class_="status dropped") if notes else (),
        sections,
    ]
    return document(f"Check of {title}", Path(__file__).with_name("page.css"), *body)


def _section(
    anchor: str, survey: Survey, choices: Sequence[ImageChoice], figures: Sequence[Html], byte_budget: int
) -> Html:
    return tag(
        "section",
        tag("h2", survey.path.name),
        tag("p", f"{survey.path}, images in {survey.folder}", class_="note"),
        _status(survey, byte_budget),
        tag("dl", [(tag("dt", name), tag("dd", text)) for name, text in summary_rows(survey)]),
        tag("div", charts(survey), class_="charts"),
        tag("h3", "Classes"),
        _class_table(survey),
        tag("h3", "Images") if figures else (),
        _layer_toggles(anchor) if figures else (),
        [
            join(tag("h4", group), tag("div", [figure for _, figure in pairs], class_="images"))
            for group, pairs in _grouped(choices, figures)
        ],
        id=anchor,
    )


def _grouped(
    choices: Sequence[ImageChoice], figures: Sequence[Html]
) -> Iterator[tuple[str, list[tuple[ImageChoice, Html]]]]:
    for group, pairs in itertools.groupby(zip(choices, figures, strict=True), key=lambda pair: pair[0].group):
        yield group, list(pairs)


def _status(survey: Survey, byte_budget: int) -> Html:
    """Return the status with all findings, shortened to the budget since the command prints them completely."""
    lines = survey.findings
    max_length = byte_budget // max(len(lines), 1)
    shown = [line if len(line) <= max_length else f"{line[:max_length]} ... (the command prints all)" for line in lines]
    status = tag("p", _STATUS[survey.status])
    return tag("div", status, [tag("p", line, class_="finding") for line in shown], class_=f"status {survey.status}")


def _class_table(survey: Survey) -> Html:
    """Return a table of all classes with their counts, and a bar for the number of instances."""
    rows = class_rows(survey)
    largest = max((row[2] for row in rows), default=0)
    head = tag("tr", [tag("th", name) for name in ("class", "id", "instances", "images", "")])
    body = []
    for name, category_id, instances, images in rows:
        bar = tag("i", style=f"width:{100 * instances / largest:.2f}%") if instances else ""
        counts = [tag("td", f"{n:,}" if n else "none", class_="number") for n in (instances, images)]
        cells = [tag("td", name), tag("td", category_id, class_="number"), counts, tag("td", bar, class_="bar")]
        body.append(tag("tr", cells, class_=None if instances else "unused"))
    return tag("div", tag("table", tag("thead", head), tag("tbody", body)), class_="table-frame")


def _layer_toggles(anchor: str) -> Html:
    """Return checkboxes, with which the stylesheet shows or hides the layers."""
    boxes = [
        tag("label", tag("input", type="checkbox", checked="", class_=f"show-{layer}"), layer) for layer in _LAYERS
    ]
    return tag("p", boxes, " Click on an image to enlarge it.", class_="toggles", id=f"{anchor}-images")


def _figures(anchor: str, survey: Survey, choices: Sequence[ImageChoice], byte_budget: int) -> Iterator[Html]:
    findings: dict[int, list[str]] = {}
    for refusal in survey.refusals:
        if refusal.image_id is not None:
            findings.setdefault(refusal.image_id, []).append(f"{refusal.kind}: {refusal.item}")
    for problem in survey.content.problems:
        findings.setdefault(problem.image_id, []).append(f"dropped, {problem.kind}: annotation {problem.annotation_id}")
    for i, choice in enumerate(choices):
        own_findings = findings.get(survey.content.images[choice.image].id, [])
        yield _figure(survey, choice, f"{anchor}-image{i}", own_findings, byte_budget)


def _figure(survey: Survey, choice: ImageChoice, anchor: str, findings: Sequence[str], byte_budget: int) -> Html:
    entry = survey.content.images[choice.image]
    height, width = survey.sizes[choice.image].tolist()
    x0, y0, x1, y1 = choice.window
    is_whole = choice.window == (0, 0, width, height)
    notes = [f"{height}x{width}", counted(int(survey.instances[choice.image]), "instance"), choice.note]
    notes += [] if is_whole else ["part of the image"]
    try:
        content = (survey.folder / entry.file_name).read_bytes()
        image = image_files.decode(content, value_range=survey.value_range)
    except OSError:
        image = None
    if image is None:
        drawn = tag("p", "cannot be shown", class_="unavailable")
    else:
        drawn, incomplete = picture.draw(image, entry, survey.content.categories, choice.window, byte_budget)
        notes += [f"{counted(incomplete, 'small annotation')} not drawn completely"] if incomplete else []
    caption = [tag("b", entry.file_name), f" id {entry.id}, ", ", ".join(filter(None, notes))]
    return tag(
        "figure",
        tag("a", drawn, href=f"#{anchor}"),
        tag("figcaption", caption, tag("p", format_list(findings, 5), class_="finding") if findings else ()),
        id=anchor,
        style=f"--r:{max(0.4, (x1 - x0) / (y1 - y0)):.3f}",
    )
