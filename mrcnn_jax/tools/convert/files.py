"""What every conversion does with files: find and pair them, read them in threads, name those that will not do."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn, TypeVar

from mrcnn_jax.data import file_names, image_formats
from mrcnn_jax.data.findings import Refusal, raise_refusals
from mrcnn_jax.errors import DataError, refuse
from mrcnn_jax.runtime.progress import track

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


def find(folder: Path, suffixes: Iterable[str] | None = None, without: Path | None = None) -> list[Path]:
    """Files at any depth of `folder` that end so, sorted, relative to it; by default images, whatever their ending.

    Hidden ones and the folder `without` are not looked at. Raises DataError where `folder` is none, or cannot be read,
    and for names that no JSON can have.
    """
    wanted = is_image if suffixes is None else lambda path: path.suffix.lower() in suffixes and path.is_file()
    found = (path for path in file_names.walk_files(existing(folder), without=without, failed=_fail) if wanted(path))
    relative = sorted(path.relative_to(folder) for path in found)
    files = [path for path in relative if not any(part.startswith("__MACOSX") for part in path.parts)]
    if strange := [ascii(str(path)) for path in files if not file_names.is_utf8(str(path))]:
        refuse(f"{folder}: file names that are not UTF-8", strange, "rename them")
    return files


def is_image(path: Path) -> bool:
    """By its ending, or by what it holds."""
    try:
        return path.is_file() and (
            path.suffix.lower() in image_formats.SUFFIXES or image_formats.detect_kind(_head(path)) == "image"
        )
    except OSError:
        return False


def _fail(error: OSError) -> NoReturn:
    raise DataError(f"{error.filename} cannot be searched: {error.strerror}")


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
    """Height and width of an image file as it is seen, see `image_formats.upright_size`. Raises Rejected."""
    try:
        return image_formats.upright_size(path)
    except Exception as error:  # decoders of broken files fail in many ways
        why = image_formats.describe_error(_head(path), error)
        raise Rejected("images that cannot be read", f"{path.name} ({why})", "replace them") from None


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(image_formats.HEADER_BYTES)
