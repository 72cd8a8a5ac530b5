"""The HTML page of `mrcnn check`: one file without scripts that needs no network."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from markupsafe import Markup

from mrcnn_jax.data import image_files
from mrcnn_jax.errors import format_list
from mrcnn_jax.tools.check import picture
from mrcnn_jax.tools.check.charts import charts
from mrcnn_jax.tools.check.select_images import ImageChoice, select_images
from mrcnn_jax.tools.check.survey import Survey, class_rows, summary_rows
from mrcnn_jax.tools.pages import rendering
from mrcnn_jax.tools.pages.rendering import counted

T = TypeVar("T")

# Byte budgets
_ALL_IMAGES = 3_600_000
_ONE_IMAGE = 150_000
_ALL_FINDINGS = 600_000

Progress = Callable[[Iterable[T], int], Iterable[T]]


def render(
    title: str, surveys: Sequence[Survey], broken: Sequence[str], notes: Sequence[str], progress: Progress[Markup]
) -> str:
    """Return the page of all surveys. `broken`: errors of files that could not be read; `notes`: further messages.

    `progress(images, total)` yields the drawn images unchanged and displays how many there are.
    """
    selected = [select_images(survey, 1 / len(surveys)) for survey in surveys]
    total = sum(map(len, selected))
    byte_budget = min(_ONE_IMAGE, _ALL_IMAGES // max(total, 1))
    parts = list(zip(surveys, selected, strict=True))
    drawn = (figure for i, part in enumerate(parts) for figure in _figures(f"file{i}", *part, byte_budget))
    figures = iter(list(progress(drawn, total)))
    sections = [_section(*part, figures, _ALL_FINDINGS // len(surveys)) for part in parts]
    return rendering.render("check/page.html.jinja", subject=title, sections=sections, broken=broken, notes=notes)


def _section(
    survey: Survey, choices: Sequence[ImageChoice], figures: Iterator[Markup], byte_budget: int
) -> dict[str, Any]:
    """Return the content of a section, with the next `figures` of the page."""
    groups: dict[str, list[Markup]] = {}
    for choice in choices:
        groups.setdefault(choice.group, []).append(next(figures))
    lines = survey.findings
    max_length = byte_budget // max(len(lines), 1)
    return {
        "survey": survey,
        "summary": summary_rows(survey),
        "classes": class_rows(survey),
        "charts": charts(survey),
        "groups": groups,
        "findings": [
            line if len(line) <= max_length else f"{line[:max_length]} ... (the command prints all)" for line in lines
        ],
    }


def _figures(anchor: str, survey: Survey, choices: Sequence[ImageChoice], byte_budget: int) -> Iterator[Markup]:
    findings: dict[int | None, list[str]] = defaultdict(list)
    for refusal in survey.refusals:
        findings[refusal.image_id].append(f"{refusal.kind}: {refusal.item}")
    for problem in survey.content.problems:
        findings[problem.image_id].append(f"dropped, {problem.kind}: annotation {problem.annotation_id}")
    for i, choice in enumerate(choices):
        own_findings = findings[survey.content.images[choice.image].id]
        yield _figure(survey, choice, f"{anchor}-image{i}", own_findings, byte_budget)


def _figure(survey: Survey, choice: ImageChoice, anchor: str, findings: Sequence[str], byte_budget: int) -> Markup:
    entry, (x0, y0, x1, y1) = survey.content.images[choice.image], choice.window
    height, width = survey.sizes[choice.image].tolist()
    notes = [f"{height}x{width}", counted(int(survey.instances[choice.image]), "instance")]
    notes += [choice.note] if choice.note else []
    notes += [] if choice.window == (0, 0, width, height) else ["part of the image"]
    drawn = Markup()
    try:
        content = (survey.folder / entry.file_name).read_bytes()
        image = image_files.decode(content, value_range=survey.value_range)
    except OSError:
        image = None
    if image is not None:
        drawn, num_left_out = picture.draw(image, entry, survey.content.categories, choice.window, byte_budget)
        notes += [f"{counted(num_left_out, 'small annotation')} not drawn"] if num_left_out else []
    aspect = (x1 - x0) / (y1 - y0)
    macros = rendering.macros("check/figure.html.jinja")
    return macros.figure(anchor, aspect, entry, drawn, notes, format_list(findings, 5))
