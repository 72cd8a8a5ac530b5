"""What every conversion does with files: find and pair them, read them in threads, name those that will not do."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from PIL import Image

from mrcnn_jax.data.errors import DataError, refuse
from mrcnn_jax.data.findings import Refusal, raise_refusals
from mrcnn_jax.progress import track

IMAGES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"))
_THREADS = 8  # at most: what takes long is decoding, which runs beside Python

T = TypeVar("T")
R = TypeVar("R")


class Rejected(Exception):
    """One file that cannot be converted. The others are looked at all the same, so that all are named together."""

    def __init__(self, kind: str, culprit: object, advice: str):
        super().__init__(kind, culprit, advice)
        self.refusal = Refusal(kind, str(culprit), advice)


def gather(where: Path, convert: Callable[[T], R], items: Sequence[T], what: str) -> list[R]:
    """`convert(item)` of every item, in their order, made by threads. Raises DataError with all that were `Rejected`.

    where, what: the folder for the message, and how the progress display calls the items.
    """

    def attempt(item: T) -> R | Refusal:
        try:
            return convert(item)
        except Rejected as rejected:
            return rejected.refusal

    pool = ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1))
    try:
        outcomes = list(track(pool.map(attempt, items), len(items), what))
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C does not wait for what has not begun
    raise_refusals(where, [outcome for outcome in outcomes if isinstance(outcome, Refusal)])
    return [outcome for outcome in outcomes if not isinstance(outcome, Refusal)]


def existing(folder: Path) -> Path:
    """`folder`. Raises DataError where there is none."""
    if not folder.is_dir():
        raise DataError(f"no folder {folder}")
    return folder


def find(folder: Path, suffixes: Iterable[str] = IMAGES, without: Path | None = None) -> list[Path]:
    """Files at any depth of `folder` that end so, sorted, relative to it.

    Hidden ones and the folder `without` are not looked at. Raises DataError where `folder` is none.
    """
    endings = frozenset(suffixes)
    found = (path for path in existing(folder).rglob("*") if path.suffix.lower() in endings and path.is_file())
    relative = (path.relative_to(folder) for path in found if without is None or without not in path.parents)
    return sorted(path for path in relative if not any(p.startswith((".", "__MACOSX")) for p in path.parts))


def by_stem(folder: Path, files: Sequence[Path]) -> dict[str, Path]:
    """Relative files of `folder` by path without ending. Raises DataError for two that differ only in that."""
    stems: dict[str, Path] = {}
    double = []
    for file in files:
        if (stem := file.with_suffix("").as_posix()) in stems:
            double.append(f"{stems[stem]} and {file}")
        stems[stem] = file
    if double:
        refuse(f"{folder}: files whose names differ only in the ending", double, "keep one of each")
    return stems


def image_size(path: Path) -> tuple[int, int]:
    """Height and width of an image file as it is seen, that is after its EXIF rotation; only its header is read."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            # The method of PNG files would decode the pixels first. Orientations 5..8 swap the axes.
            turned = Image.Image.getexif(image).get(0x0112, 1) >= 5
    except Exception as error:  # decoders of broken files fail in many ways
        raise Rejected("images that cannot be read", f"{path.name} ({error})", "replace them") from None
    return (width, height) if turned else (height, width)
