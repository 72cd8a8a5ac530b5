"""Comparison of the files of a dataset: common and duplicate images, and categories that disagree."""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from mrcnn_jax.errors import format_list, format_value
from mrcnn_jax.tools.check.sources import SPLITS, name_words, split_of
from mrcnn_jax.tools.check.survey import Survey
from mrcnn_jax.tools.pages.rendering import counted


def warnings(surveys: Sequence[Survey]) -> list[str]:
    """Return a warning for everything suspicious in a file or a pair of files. Training refuses none of it."""
    duplicates = [line for survey in surveys for line in _duplicates(survey)]
    pairs = list(itertools.combinations(surveys, 2))
    return duplicates + [line for a, b in pairs for line in (*_shared_images(a, b), *_category_conflicts(a, b))]


def _warning(problem: str, items: Sequence[str], advice: str = "") -> list[str]:
    """Return a warning that lists all items; nothing if there are none."""
    return [f"{problem} ({len(items)}): {format_list(items, None)}{advice}"] if items else []


def _shared_images(a: Survey, b: Survey) -> list[str]:
    """Return warnings about images of two files, unless both are of the same split."""
    splits = {split_of(a.path), split_of(b.path)}
    if len(splits) == 1 and splits != {""}:
        return []
    both, first, second = f"{a.path} and {b.path}", _image_names(a), _image_names(b)
    shared = [first[path] for path in first if path in second]
    if "" in splits:
        advice = "if one is for training and the other for evaluation, remove them from one"
        return [f"{both} share {counted(len(shared), 'image')}; {advice}"] if shared else []
    advice = "; metrics on training images are misleading: remove them from one of the two"
    copies = _copies([p for p in first if p not in second], [p for p in second if p not in first])
    pairs = [f"{first[p]} = {second[q]}" for p, q in copies]
    lines = _warning(f"{both} share images", shared, advice)
    return lines + _warning(f"{both} have the same images in different files", pairs, advice)


def _duplicates(survey: Survey) -> list[str]:
    """Return a warning about image files of one JSON with the same content."""
    names = _image_names(survey)
    pairs = [f"{names[p]} = {names[q]}" for p, q in _copies(list(names), list(names)) if p < q]
    advice = "; remove one of each pair unless both are intended"
    return _warning(f"{survey.path}: different files with the same content", pairs, advice)


def _image_names(survey: Survey) -> dict[str, str]:
    """Return a mapping from the real path of every image file to its name in messages."""
    folder = os.path.realpath(survey.folder)
    return {
        os.path.normpath(os.path.join(folder, i.file_name)): f"{format_value(i.file_name)} (id {i.id})"
        for i in survey.content.images
    }


def _copies(first: Iterable[str], second: Iterable[str]) -> list[tuple[str, str]]:
    """Return pairs of files with the same content. Reads only files of equal size."""
    by_size = defaultdict(list)
    for path in second:
        by_size[_size(path)].append(path)
    digest = functools.cache(lambda path: hashlib.sha256(Path(path).read_bytes()).digest())
    sized = ((path, size) for path in first if (size := _size(path)))
    return [(path, other) for path, size in sized for other in by_size[size] if digest(path) == digest(other)]


def _size(path: str) -> int:
    """Return the size in bytes; 0 for a missing file, which the survey reports."""
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def _category_conflicts(a: Survey, b: Survey) -> list[str]:
    """Return warnings about contradictory ids and names; for files of one kind, also about missing categories."""
    first, second = (dict(zip(s.content.categories.ids, s.content.categories.names, strict=True)) for s in (a, b))
    ids, both = {name: i for i, name in second.items()}, f"{a.path} and {b.path}"
    renamed = [
        f"{i} is {format_value(name)} and {format_value(second[i])}"
        for i, name in first.items()
        if second.get(i, name) != name
    ]
    renumbered = [f"{format_value(name)} is {i} and {ids[name]}" for i, name in first.items() if ids.get(name, i) != i]
    lines = _warning(
        f"{both} name categories differently", renamed, "; a model trained on one is evaluated wrongly on the other"
    )
    lines += _warning(f"{both} number categories differently", renumbered)
    if _kind(a.path) == _kind(b.path):
        for one, other, names, others in ((a, b, first, second), (b, a, second, first)):
            only = [format_value(name) for name in names.values() if name not in set(others.values())]
            lines += _warning(f"{one.path} has categories that {other.path} lacks", only)
    return lines


def _kind(path: Path) -> list[str]:
    """Return the words of a file name without its split: the same for instances_train2017 and instances_val2017."""
    return [word for word in name_words(path.stem) if word not in SPLITS]
