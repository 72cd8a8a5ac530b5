"""Comparison of the files of a dataset: common and duplicate images, and categories that disagree."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from mrcnn_jax.errors import format_list, format_value
from mrcnn_jax.tools.check.sources import SPLITS, name_words, split_of
from mrcnn_jax.tools.check.survey import Survey, counted


def warnings(surveys: Sequence[Survey]) -> list[str]:
    """Return a warning for everything suspicious in a file or a pair of files. Training refuses none of it."""
    duplicates = [line for survey in surveys for line in _duplicates(survey)]
    pairs = list(itertools.combinations(surveys, 2))
    return duplicates + [line for a, b in pairs for line in (*_shared_images(a, b), *_category_conflicts(a, b))]


def _shared_images(a: Survey, b: Survey) -> list[str]:
    """Return warnings about images of two files, unless both are of the same split."""
    splits = {split_of(a.path), split_of(b.path)}
    if len(splits) == 1 and splits != {""}:
        return []
    first, second = _image_names(a), _image_names(b)
    shared = [first[path] for path in first if path in second]
    if "" in splits:
        advice = "if one is for training and the other for evaluation, remove them from one"
        return [f"{a.path} and {b.path} share {counted(len(shared), 'image')}; {advice}"] if shared else []
    advice = "metrics on training images are misleading: remove them from one of the two"
    lines = []
    if shared:
        lines.append(f"{a.path} and {b.path} share images ({len(shared)}): {format_list(shared, None)}; {advice}")
    copies = _copies([p for p in first if p not in second], [p for p in second if p not in first])
    if copies:
        pairs = format_list([f"{first[p]} = {second[q]}" for p, q in copies], None)
        lines.append(
            f"{a.path} and {b.path} have the same images in different files ({len(copies)}): {pairs}; {advice}"
        )
    return lines


def _duplicates(survey: Survey) -> list[str]:
    """Return a warning about image files of one JSON with the same content."""
    names = _image_names(survey)
    pairs = [f"{names[p]} = {names[q]}" for p, q in _copies(list(names), list(names)) if p < q]
    if not pairs:
        return []
    message = f"different files with the same content ({len(pairs)}): {format_list(pairs, None)}"
    return [f"{survey.path}: {message}; remove one of each pair unless both are intended"]


def _image_names(survey: Survey) -> dict[str, str]:
    """Return a mapping from the real path of every image file to its name in messages."""
    folder = os.path.realpath(survey.folder)
    return {
        os.path.normpath(os.path.join(folder, i.file_name)): f"{format_value(i.file_name)} (id {i.id})"
        for i in survey.content.images
    }


def _copies(first: Iterable[str], second: Iterable[str]) -> list[tuple[str, str]]:
    """Return pairs of files with the same content. Reads only files of equal size."""
    by_size: dict[int, list[str]] = {}
    for path in second:
        by_size.setdefault(_size(path), []).append(path)
    digests: dict[str, bytes] = {}

    def digest(path: str) -> bytes:
        if path not in digests:
            digests[path] = hashlib.sha256(Path(path).read_bytes()).digest()
        return digests[path]

    sized = ((path, size) for path in first if (size := _size(path)) > 0)
    return [(path, other) for path, size in sized for other in by_size.get(size, ()) if digest(path) == digest(other)]


def _size(path: str) -> int:
    """Return the size in bytes; 0 for a missing file, which the survey reports."""
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def _category_conflicts(a: Survey, b: Survey) -> list[str]:
    """Return warnings about contradictory ids and names; for files of one kind, also about missing categories."""
    first = dict(zip(a.content.categories.ids, a.content.categories.names, strict=True))
    second = dict(zip(b.content.categories.ids, b.content.categories.names, strict=True))
    lines = []
    if differing := [
        f"{i} is {format_value(first[i])} and {format_value(second[i])}"
        for i in first
        if i in second and first[i] != second[i]
    ]:
        lines.append(
            f"{a.path} and {b.path} name categories differently ({len(differing)}): {format_list(differing, None)};"
            " a model trained on one is evaluated wrongly on the other"
        )
    ids = {name: i for i, name in second.items()}
    if differing := [
        f"{format_value(name)} is {i} and {ids[name]}" for i, name in first.items() if ids.get(name, i) != i
    ]:
        lines.append(
            f"{a.path} and {b.path} number categories differently ({len(differing)}): {format_list(differing, None)}"
        )
    if _kind(a.path) == _kind(b.path):
        for one, other, names, others in ((a, b, first, second), (b, a, second, first)):
            if only := [format_value(name) for name in names.values() if name not in set(others.values())]:
                lines.append(
                    f"{one.path} has categories that {other.path} lacks ({len(only)}): {format_list(only, None)}"
                )
    return lines


def _kind(path: Path) -> list[str]:
    """Return the words of a file name without its split: the same for instances_train2017 and instances_val2017."""
    return [word for word in name_words(path.stem) if word not in SPLITS]
