"""Which images a person should look at: the same for the same data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from mrcnn_jax.tools.check.survey import Survey

_EXTREME = 6.0  # of an image that is longer than so many times its height, or the reverse, the middle is shown
_AROUND = 6.0  # how much of its surroundings a small object is shown with: this times its longer side
_LEAST = 48.0  # but at least so many pixels

Window = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels of the image


class Choice(NamedTuple):
    """One picture of the page."""

    group: str
    image: int  # index
    window: Window  # the part that is shown
    note: str = ""


def choose(survey: Survey, share: float = 1.0) -> list[Choice]:
    """Pictures in groups, at most some fifty times `share`. An image is shown whole once only."""
    shown: set[int] = set()
    broken = {refusal.image_id for refusal in survey.refusals}
    choices = []
    for group, most, candidates in _groups(survey):
        room = max(1, round(most * share))
        for image, note in candidates:
            if room and image not in shown:
                shown.add(image)
                choices.append(Choice(group, image, _middle(*survey.sizes[image].tolist()), note))
                room -= 1
    small = _smallest(survey, max(1, round(6 * share)), broken)
    return sorted([*choices, *small], key=lambda choice: _ORDER.index(choice.group))


_ORDER = ("With findings", "Most crowded", "Smallest objects", "One of each class", "Without instances", "At random")


def _groups(survey: Survey) -> Iterator[tuple[str, int, Iterable[tuple[int, str]]]]:
    """Name, how many pictures, and images with a note each, the best ones first."""
    yield "With findings", 12, [(i, "") for i in _with_findings(survey)]
    crowded = np.argsort(-survey.instances, kind="stable")
    yield "Most crowded", 4, [(i, "") for i in crowded.tolist() if survey.instances[i] > 1]
    yield "One of each class", 24, _of_each_class(survey)
    order = np.random.default_rng(0).permutation(len(survey.sizes)).tolist()
    yield "Without instances", 2, [(i, "") for i in order if survey.instances[i] == 0]
    yield "At random", 8, [(i, "") for i in order]


def _with_findings(survey: Survey) -> list[int]:
    """One image of each kind of finding before the second of any."""
    row = {image.id: i for i, image in enumerate(survey.content.images)}
    kinds: dict[str, list[int]] = {}
    findings = [(refusal.kind, refusal.image_id) for refusal in survey.refusals]
    findings += [(problem.kind, problem.image_id) for problem in survey.content.problems]
    for kind, image_id in findings:
        if image_id in row:
            kinds.setdefault(kind, []).append(row[image_id])
    ranked = [(place, i) for images in kinds.values() for place, i in enumerate(dict.fromkeys(images))]
    return list(dict.fromkeys(i for _, i in sorted(ranked, key=lambda pair: pair[0])))


def _of_each_class(survey: Survey) -> list[tuple[int, str]]:
    """The largest instance of each class; the rarest and the most frequent classes first, in turns."""
    annotated, names = survey.annotated, survey.content.categories.names
    order = np.lexsort((-annotated.areas, annotated.classes, annotated.crowd))
    plain = order[~annotated.crowd[order]]
    classes, firsts = np.unique(annotated.classes[plain], return_index=True)
    largest = dict(zip((classes - 1).tolist(), annotated.images[plain[firsts]].tolist(), strict=True))
    ranked = sorted(largest, key=lambda k: (survey.class_instances[k], k))
    turns = [k for pair in zip(ranked, reversed(ranked), strict=True) for k in pair]
    return [(largest[k], names[k]) for k in dict.fromkeys(turns)]


def _smallest(survey: Survey, most: int, broken: set[int | None]) -> list[Choice]:
    """The smallest objects, one of an image, each with its surroundings."""
    annotated, images = survey.annotated, survey.content.images
    shown: dict[int, Choice] = {}
    for k in np.argsort(annotated.areas, kind="stable").tolist():
        i = int(annotated.images[k])
        if len(shown) == most or annotated.areas[k] >= 96**2:
            break
        if not annotated.crowd[k] and i not in shown and images[i].id not in broken:
            x, y, width, height = annotated.boxes[k].tolist()
            side = max(_LEAST, _AROUND * max(width, height))
            window = _inside(x + width / 2, y + height / 2, side, *survey.sizes[i].tolist())
            name = survey.content.categories.names[annotated.classes[k] - 1]
            shown[i] = Choice("Smallest objects", i, window, f"{name}, {annotated.areas[k]:.4g} square pixels")
    return list(shown.values())


def _inside(x: float, y: float, side: float, height: int, width: int) -> Window:
    """A square around (x, y), moved into the image, and cut where it does not fit."""
    x0, y0 = max(0, min(x - side / 2, width - side)), max(0, min(y - side / 2, height - side))
    return (int(x0), int(y0), min(int(x0 + side), width), min(int(y0 + side), height))


def _middle(height: int, width: int) -> Window:
    if max(height, width) <= _EXTREME * min(height, width):
        return (0, 0, width, height)
    return _inside(width / 2, height / 2, _EXTREME * min(height, width), height, width)
