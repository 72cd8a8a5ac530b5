"""The HTML page of `mrcnn check`: one file without scripts that needs no network."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from markupsafe import Markup

from mrcnn_jax.errors import format_list
from mrcnn_jax.tools.check import picture
from mrcnn_jax.tools.check.charts import charts
from mrcnn_jax.tools.check.select_images import ImageChoice, select_images
from mrcnn_jax.tools.check.survey import Survey, class_rows, summary_rows
from mrcnn_jax.tools.pages import rendering
from mrcnn_jax.tools.pages.drawing import read_image
from mrcnn_jax.tools.pages.rendering import counted

# Byte budgets
_ALL_IMAGES = 3_600_000
_ONE_IMAGE = 150_000
_ALL_FINDINGS = 600_000


def render(
    title: str,
    surveys: Sequence[Survey],
    broken: Sequence[str],
    notes: Sequence[str],
    progress: Callable[[Iterable[Markup], int], Iterable[Markup]],
) -> str:
    """Return the page of all surveys. `broken`: errors of files that could not be read; `notes`: further messages.

    `progress(images, total)` yields the drawn images unchanged and displays how many there are.
    """
    choices = [(i, choice) for i, survey in enumerate(surveys) for choice in select_images(survey, 1 / len(surveys))]
    byte_budget = min(_ONE_IMAGE, _ALL_IMAGES // max(len(choices), 1))
    findings = [_findings_by_image(survey) for survey in surveys]
    drawn = (
        _figure(surveys[i], choice, f"image{k}", findings[i], byte_budget) for k, (i, choice) in enumerate(choices)
    )
    groups: list[dict[str, list[Markup]]] = [{} for _ in surveys]
    for (i, choice), figure in zip(choices, progress(drawn, len(choices)), strict=True):
        groups[i].setdefault(choice.group, []).append(figure)
    sections = [
        {
            "survey": survey,
            "findings": _shorten(survey.findings, _ALL_FINDINGS // len(surveys)),
            "summary": summary_rows(survey),
            "charts": charts(survey),
            "classes": class_rows(survey),
            "groups": own_groups,
        }
        for survey, own_groups in zip(surveys, groups, strict=True)
    ]
    return rendering.render("check/page.html.jinja", subject=title, sections=sections, broken=broken, notes=notes)


def _shorten(lines: Sequence[str], byte_budget: int) -> list[str]:
    max_length = byte_budget // max(len(lines), 1)
    return [line if len(line) <= max_length else f"{line[:max_length]} ... (the command prints all)" for line in lines]


def _findings_by_image(survey: Survey) -> dict[int | None, list[str]]:
    """Return the refusals and problems of each image, by its id."""
    findings: dict[int | None, list[str]] = defaultdict(list)
    for refusal in survey.refusals:
        findings[refusal.image_id].append(f"{refusal.kind}: {refusal.item}")
    for problem in survey.content.problems:
        findings[problem.image_id].append(f"dropped, {problem.kind}: annotation {problem.annotation_id}")
    return findings


def _figure(
    survey: Survey, choice: ImageChoice, anchor: str, findings: Mapping[int | None, Sequence[str]], byte_budget: int
) -> Markup:
    entry, (x0, y0, x1, y1) = survey.content.images[choice.image], choice.window
    height, width = survey.sizes[choice.image].tolist()
    notes = [f"{height}x{width}", counted(int(survey.instances[choice.image]), "instance")]
    notes += [choice.note] if choice.note else []
    notes += [] if choice.window == (0, 0, width, height) else ["part of the image"]
    drawn, image = Markup(), read_image(survey.folder / entry.file_name, survey.value_range)
    if image is not None:
        drawn, num_left_out = picture.draw(image, entry, survey.content.categories, choice.window, byte_budget)
        notes += [f"{counted(num_left_out, 'small annotation')} not drawn"] if num_left_out else []
    aspect = (x1 - x0) / (y1 - y0)
    macros = rendering.macros("check/figure.html.jinja")
    return macros.figure(anchor, aspect, entry, drawn, notes, format_list(findings.get(entry.id, ()), 5))
