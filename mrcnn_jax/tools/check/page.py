"""The page: one file that needs no network, and in which nothing is run."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from mrcnn_jax.data import image_files
from mrcnn_jax.errors import listing
from mrcnn_jax.tools.check import picture
from mrcnn_jax.tools.check.charts import charts
from mrcnn_jax.tools.check.select_images import Choice, choose
from mrcnn_jax.tools.check.survey import Survey, by_frequency, facts
from mrcnn_jax.tools.pages.document import document
from mrcnn_jax.tools.pages.html import Html, join, tag

T = TypeVar("T")

_PICTURES = 3_600_000  # bytes that all pictures of a page may have together
_TEXT = 600_000  # and all findings
_ROOM = 150_000  # and a single picture
_LAYERS = ("masks", "boxes", "skeletons", "names")
_VERDICTS = {
    "clean": "Training starts, and sees all of it.",
    "dropped": "Training starts without what is listed here.",
    "refused": "Training does not start with this.",
}

Watch = Callable[[Iterable[T], int], Iterable[T]]


def render(
    title: str, surveys: Sequence[Survey], broken: Sequence[str], notes: Sequence[str], watch: Watch[Html]
) -> Html:
    """The whole page. `broken`: files that could not be read; `notes`: what else there is to know.

    `watch(pictures, total)` passes the pictures on as they are made.
    """
    chosen = [choose(survey, 1 / len(surveys)) for survey in surveys]
    total = sum(map(len, chosen))
    room = min(_ROOM, _PICTURES // max(total, 1))
    anchors = [f"file{i}" for i in range(len(surveys))]
    parts = zip(anchors, surveys, chosen, strict=True)
    made = itertools.chain.from_iterable(_figures(*part, room) for part in parts)
    figures = iter(list(watch(made, total)))
    sections = []
    for anchor, survey, choices in zip(anchors, surveys, chosen, strict=True):
        drawn = list(itertools.islice(figures, len(choices)))
        sections.append(_section(anchor, survey, choices, drawn, _TEXT // len(surveys)))
    contents = [tag("a", survey.path.name, href=f"#{anchor}") for anchor, survey in zip(anchors, surveys, strict=True)]
    body = [
        tag("header", tag("h1", f"Check of {title}"), tag("nav", contents) if len(contents) > 1 else ()),
        [tag("div", tag("p", line), class_="verdict refused") for line in broken],
        tag("div", [tag("p", line) for line in notes], class_="verdict dropped") if notes else (),
        sections,
    ]
    return document(f"Check of {title}", Path(__file__).with_name("page.css"), *body)


def _section(anchor: str, survey: Survey, choices: Sequence[Choice], drawn: Sequence[Html], room: int) -> Html:
    return tag(
        "section",
        tag("h2", survey.path.name),
        tag("p", f"{survey.path}, images in {survey.folder}", class_="where"),
        _verdict(survey, room),
        tag("dl", [(tag("dt", name), tag("dd", text)) for name, text in facts(survey)]),
        tag("div", charts(survey), class_="charts"),
        tag("h3", "Classes"),
        _classes(survey),
        tag("h3", "Pictures") if drawn else (),
        _switches(anchor) if drawn else (),
        [
            join(tag("h4", group), tag("div", [figure for _, figure in pairs], class_="pictures"))
            for group, pairs in _grouped(choices, drawn)
        ],
        id=anchor,
    )


def _grouped(choices: Sequence[Choice], drawn: Sequence[Html]) -> Iterator[tuple[str, list[tuple[Choice, Html]]]]:
    for group, pairs in itertools.groupby(zip(choices, drawn, strict=True), key=lambda pair: pair[0].group):
        yield group, list(pairs)


def _verdict(survey: Survey, room: int) -> Html:
    """What was found, line by line; as much of it as there is room for, since the command has printed all."""
    lines = survey.findings
    shortest = room // max(len(lines), 1)
    shown = [line if len(line) <= shortest else f"{line[:shortest]} ... (the command prints all)" for line in lines]
    verdict = tag("p", _VERDICTS[survey.status])
    return tag("div", verdict, [tag("p", line, class_="finding") for line in shown], class_=f"verdict {survey.status}")


def _classes(survey: Survey) -> Html:
    """Every class with its numbers, and a bar by the number of its instances."""
    rows = by_frequency(survey)
    most = max((row[2] for row in rows), default=0)
    head = tag("tr", [tag("th", name) for name in ("class", "id", "instances", "images", "")])
    body = []
    for name, category_id, instances, images in rows:
        bar = tag("i", style=f"width:{100 * instances / most:.2f}%") if instances else ""
        numbers = [tag("td", f"{n:,}" if n else "none", class_="number") for n in (instances, images)]
        cells = [tag("td", name), tag("td", category_id, class_="number"), numbers, tag("td", bar, class_="bar")]
        body.append(tag("tr", cells, class_=None if instances else "none"))
    return tag("div", tag("table", tag("thead", head), tag("tbody", body)), class_="classes")


def _switches(anchor: str) -> Html:
    """Boxes to tick; the style sheet hides the layers of those that are not."""
    boxes = [
        tag("label", tag("input", type="checkbox", checked="", class_=f"show-{layer}"), layer) for layer in _LAYERS
    ]
    return tag("p", boxes, " Click on a picture to enlarge it.", class_="switches", id=f"{anchor}-pictures")


def _figures(anchor: str, survey: Survey, choices: Sequence[Choice], room: int) -> Iterator[Html]:
    """A figure for each choice."""
    said: dict[int, list[str]] = {}
    for refusal in survey.refusals:
        if refusal.image_id is not None:
            said.setdefault(refusal.image_id, []).append(f"{refusal.kind}: {refusal.item}")
    for problem in survey.content.problems:
        said.setdefault(problem.image_id, []).append(f"{problem.kind}: annotation {problem.annotation_id}")
    for i, choice in enumerate(choices):
        findings = said.get(survey.content.images[choice.image].id, [])
        yield _figure(survey, choice, f"{anchor}-picture{i}", findings, room)


def _figure(survey: Survey, choice: Choice, anchor: str, findings: Sequence[str], room: int) -> Html:
    entry = survey.content.images[choice.image]
    height, width = survey.sizes[choice.image].tolist()
    x0, y0, x1, y1 = choice.window
    whole = choice.window == (0, 0, width, height)
    about = [f"{height}x{width}", f"{survey.instances[choice.image]} instances", choice.note]
    about += [] if whole else ["part of the image"]
    try:
        content = (survey.folder / entry.file_name).read_bytes()
        image = image_files.decode(content, value_range=survey.value_range)
    except OSError:
        image = None
    if image is None:
        drawn = tag("p", "cannot be shown", class_="missing")
    else:
        drawn, left_out = picture.draw(image, entry, survey.content.categories, choice.window, room)
        about += [f"{left_out:,} small ones not drawn in full"] if left_out else []
    caption = [tag("b", entry.file_name), f" id {entry.id}, ", ", ".join(filter(None, about))]
    return tag(
        "figure",
        tag("a", drawn, href=f"#{anchor}"),
        tag("figcaption", caption, tag("p", listing(findings, 5), class_="finding") if findings else ()),
        id=anchor,
        style=f"--r:{max(0.4, (x1 - x0) / (y1 - y0)):.3f}",
    )
