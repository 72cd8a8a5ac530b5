"""Selection of the images that the page shows, deterministic for a dataset."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from mrcnn_jax.data.findings import Problem, Refusal
from mrcnn_jax.tools.check.survey import LARGE, Survey

_MAX_ASPECT = 6.0  # of images that are longer or higher than that, the middle is shown
_CONTEXT = 6.0  # side of the window around a small object, in longer sides of its box
_MIN_WINDOW = 48.0  # pixels

Window = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels of the image


class ImageChoice(NamedTuple):
    """An image of the page."""

    group: str
    image: int  # index
    window: Window  # the part that is shown
    note: str = ""


_GROUPS = ("With findings", "Most crowded", "Smallest objects", "One of each class", "Without instances", "At random")


def select_images(survey: Survey, share: float = 1.0) -> list[ImageChoice]:
    """Return images in groups, about 50 times `share` at most. An image is shown whole only once."""
    selected: set[int] = set()
    refused = {refusal.image_id for refusal in survey.refusals}
    choices = []
    for group, max_count, candidates in _candidates(survey):
        remaining = max(1, round(max_count * share))
        for image, note in candidates:
            if remaining and image not in selected:
                selected.add(image)
                choices.append(ImageChoice(group, image, _whole_or_middle(*survey.sizes[image].tolist()), note))
                remaining -= 1
    small = _smallest(survey, max(1, round(6 * share)), refused)
    return sorted([*choices, *small], key=lambda choice: _GROUPS.index(choice.group))


def _candidates(survey: Survey) -> Iterator[tuple[str, int, Iterable[tuple[int, str]]]]:
    """Yield the name of a group, its maximum size, and (image, note) in descending priority."""
    yield "With findings", 12, [(i, "") for i in _with_findings(survey)]
    crowded = np.argsort(-survey.instances, kind="stable")
    yield "Most crowded", 4, [(i, "") for i in crowded.tolist() if survey.instances[i] > 1]
    yield "One of each class", 24, _of_each_class(survey)
    order = np.random.default_rng(0).permutation(len(survey.sizes)).tolist()
    yield "Without instances", 2, [(i, "") for i in order if survey.instances[i] == 0]
    yield "At random", 8, [(i, "") for i in order]


def _with_findings(survey: Survey) -> list[int]:
    """Return the images with findings: the first of each kind, then the second of each kind, and so on."""
    row = {image.id: i for i, image in enumerate(survey.content.images)}
    kinds: dict[str, dict[int, None]] = defaultdict(dict)  # images in order, each once
    findings: list[Refusal | Problem] = [*survey.refusals, *survey.content.problems]
    for finding in findings:
        if finding.image_id in row:
            kinds[finding.kind][row[finding.image_id]] = None
    alternating = itertools.chain.from_iterable(itertools.zip_longest(*kinds.values()))
    return [i for i in dict.fromkeys(alternating) if i is not None]


def _of_each_class(survey: Survey) -> list[tuple[int, str]]:
    """Return the image of the largest instance of each class, alternating between rare and frequent classes."""
    annotations, names = survey.annotations, survey.content.categories.names
    order = np.lexsort((-annotations.areas, annotations.classes, annotations.crowd))
    plain = order[~annotations.crowd[order]]
    classes, firsts = np.unique(annotations.classes[plain], return_index=True)
    largest = dict(zip((classes - 1).tolist(), annotations.images[plain[firsts]].tolist(), strict=True))
    ranked = sorted(largest, key=lambda k: (survey.class_instances[k], k))
    alternating = [k for pair in zip(ranked, reversed(ranked), strict=True) for k in pair]
    return [(largest[k], names[k]) for k in dict.fromkeys(alternating)]


def _smallest(survey: Survey, max_count: int, refused: set[int | None]) -> list[ImageChoice]:
    """Return windows around the smallest objects, one per image."""
    annotations, images = survey.annotations, survey.content.images
    choices: dict[int, ImageChoice] = {}
    for k in np.argsort(annotations.areas, kind="stable").tolist():
        i = int(annotations.images[k])
        if len(choices) == max_count or annotations.areas[k] >= LARGE:
            break
        if not annotations.crowd[k] and i not in choices and images[i].id not in refused:
            x, y, width, height = annotations.boxes[k].tolist()
            side = max(_MIN_WINDOW, _CONTEXT * max(width, height))
            window = _square_window(x + width / 2, y + height / 2, side, *survey.sizes[i].tolist())
            name = survey.content.categories.names[annotations.classes[k] - 1]
            choices[i] = ImageChoice("Smallest objects", i, window, f"{name}, {annotations.areas[k]:.4g} square pixels")
    return list(choices.values())


def _square_window(x: float, y: float, side: float, height: int, width: int) -> Window:
    """Return a square around (x, y), shifted into the image and clipped to it."""
    x0, y0 = max(0, min(x - side / 2, width - side)), max(0, min(y - side / 2, height - side))
    return (int(x0), int(y0), min(int(x0 + side), width), min(int(y0 + side), height))


def _whole_or_middle(height: int, width: int) -> Window:
    if max(height, width) <= _MAX_ASPECT * min(height, width):
        return (0, 0, width, height)
    return _square_window(width / 2, height / 2, _MAX_ASPECT * min(height, width), height, width)
