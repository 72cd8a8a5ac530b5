"""What only shows when two files are laid beside each other: images in both, and categories that do not agree."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from mrcnn_jax.errors import listing, shown
from mrcnn_jax.tools.check.sources import SPLITS, split_of, words
from mrcnn_jax.tools.check.survey import Survey


def warnings(surveys: Sequence[Survey]) -> list[str]:
    """A line for everything that looks wrong in a file or a pair of files. Nothing of it is refused."""
    own = [line for one in surveys for line in _twins(one)]
    pairs = list(itertools.combinations(surveys, 2))
    return own + [line for a, b in pairs for line in (*_shared_images(a, b), *_categories(a, b))]


def _shared_images(a: Survey, b: Survey) -> list[str]:
    """Images that are in two files: of one split they are meant to be, of different ones they spoil the evaluation."""
    splits = {split_of(a.path), split_of(b.path)}
    if len(splits) == 1 and splits != {""}:
        return []
    first, second = _files(a), _files(b)
    shared = [first[path] for path in first if path in second]
    if "" in splits:
        many = f"{len(shared):,} images; if one is for training and the other for evaluation, take them out of one"
        return [f"{a.path} and {b.path} share {many}"] if shared else []
    advice = "a result on images of the training says little: take them out of one of the two"
    lines = []
    if shared:
        lines.append(f"{a.path} and {b.path} share images ({len(shared)}): {listing(shared, None)}; {advice}")
    pairs = _copies([p for p in first if p not in second], [p for p in second if p not in first])
    if pairs:
        named = listing([f"{first[p]} = {second[q]}" for p, q in pairs], None)
        lines.append(f"{a.path} and {b.path} have the same images in different files ({len(pairs)}): {named}; {advice}")
    return lines


def _twins(survey: Survey) -> list[str]:
    """Files of one JSON with the same content."""
    files = _files(survey)
    named = [f"{files[p]} = {files[q]}" for p, q in _copies(list(files), list(files)) if p < q]
    if not named:
        return []
    what = f"different files with the same content ({len(named)}): {listing(named, None)}"
    return [f"{survey.path}: {what}; take one out, unless both are meant"]


def _files(survey: Survey) -> dict[str, str]:
    """Real path of every image file -> its name for the reader."""
    folder = os.path.realpath(survey.folder)
    return {
        os.path.normpath(os.path.join(folder, i.file_name)): f"{shown(i.file_name)} (id {i.id})"
        for i in survey.content.images
    }


def _copies(first: Iterable[str], second: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of files with the same content. Only those of equal size are read."""
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
    """In bytes; 0 for a file that is not there, which the survey has said."""
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def _categories(a: Survey, b: Survey) -> list[str]:
    """Ids and names that contradict each other; and of files of one kind, what only one of them has."""
    first = dict(zip(a.content.categories.ids, a.content.categories.names, strict=True))
    second = dict(zip(b.content.categories.ids, b.content.categories.names, strict=True))
    lines = []
    if differing := [
        f"{i} is {shown(first[i])} and {shown(second[i])}" for i in first if i in second and first[i] != second[i]
    ]:
        lines.append(
            f"{a.path} and {b.path} name categories differently ({len(differing)}): {listing(differing, None)};"
            " a model trained on one is evaluated wrongly on the other"
        )
    ids = {name: i for i, name in second.items()}
    if moved := [f"{shown(name)} is {i} and {ids[name]}" for i, name in first.items() if ids.get(name, i) != i]:
        lines.append(f"{a.path} and {b.path} number categories differently ({len(moved)}): {listing(moved, None)}")
    if _kind(a.path) == _kind(b.path):
        for one, other, names, others in ((a, b, first, second), (b, a, second, first)):
            if only := [shown(name) for name in names.values() if name not in set(others.values())]:
                lines.append(f"{one.path} has categories that {other.path} lacks ({len(only)}): {listing(only, None)}")
    return lines


def _kind(path: Path) -> list[str]:
    """What is left of a name without its split: instances_train2017 and instances_val2017 are of one kind."""
    return [word for word in words(path.stem) if word not in SPLITS]
