"""Files of a conversion: search, matching by name, and concurrent reading with a complete list of errors."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn, TypeVar

from mrcnn_jax.data import file_names, image_formats
from mrcnn_jax.data.findings import Refusal, raise_refusals
from mrcnn_jax.errors import DataError, raise_data_error
from mrcnn_jax.runtime.progress import track
from mrcnn_jax.tools.convert.writer import Annotation, ConvertedImage

_MAX_THREADS = 8  # decoding, which takes most of the time, releases the GIL

T = TypeVar("T")
R = TypeVar("R")
Pairs = dict[Path, list[Path]]  # masks of each image, whose path is relative to the folder of images


class ConversionError(Exception):
    """A file that cannot be converted. `convert_all` collects them and reports all together."""

    def __init__(self, kind: str, culprit: object, advice: str):
        super().__init__(kind, culprit, advice)
        self.refusal = Refusal(kind, str(culprit), advice)


def convert_all(where: Path, convert: Callable[[T], R], items: Sequence[T], label: str) -> list[R]:
    """Return `convert(item)` of every item, in order, computed on threads.

    where: the folder, for messages; label: of the items, for the progress display.
    Raises DataError that lists all `ConversionError`s.
    """

    def attempt(item: T) -> R | Refusal:
        try:
            return convert(item)
        except ConversionError as error:
            return error.refusal

    pool = ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1))
    try:
        outcomes = list(track(pool.map(attempt, items), len(items), label))
    finally:
        pool.shutdown(cancel_futures=True)  # do not wait for them after Ctrl-C
    raise_refusals(where, [outcome for outcome in outcomes if isinstance(outcome, Refusal)])
    return [outcome for outcome in outcomes if not isinstance(outcome, Refusal)]


def convert_images(
    where: Path,
    images: Path,
    pairs: Pairs,
    annotate: Callable[[Sequence[Path], tuple[int, int]], list[Annotation]],
) -> list[ConvertedImage]:
    """Return the images of the folder `images`, with the annotations that `annotate` reads from masks of their size.

    Raises DataError like `convert_all`.
    """

    def convert(pair: tuple[Path, list[Path]]) -> ConvertedImage:
        size = image_size(images / pair[0])
        return ConvertedImage(pair[0].as_posix(), *size, annotate(pair[1], size))

    return convert_all(where, convert, list(pairs.items()), "images converted")


def refuse_unmatched(where: Path, *problems: tuple[str, Sequence[str], str]) -> None:
    """Raise DataError with a line for each problem (kind, names of files, advice) that has names."""
    raise_refusals(where, [Refusal(kind, name, advice) for kind, names, advice in problems for name in names])


def require_folder(folder: Path) -> Path:
    """Return `folder`. Raises DataError if it does not exist."""
    if not folder.is_dir():
        raise DataError(f"no folder {folder}")
    return folder


def find_files(folder: Path, suffixes: Iterable[str] | None = None, without: Path | None = None) -> list[Path]:
    """Return the files with these suffixes at any depth of `folder`, sorted and relative to it; by default all images.

    Hidden files and the folder `without` are skipped. Raises DataError if `folder` does not exist or cannot be read,
    and for file names that are not Unicode.
    """
    is_wanted = is_image if suffixes is None else lambda path: path.suffix.lower() in suffixes and path.is_file()
    found = file_names.walk_files(require_folder(folder), without=without, failed=_raise_search_error)
    relative = sorted(path.relative_to(folder) for path in found if is_wanted(path))
    files = [path for path in relative if not any(part.startswith("__MACOSX") for part in path.parts)]
    if invalid := [ascii(str(path)) for path in files if not file_names.is_utf8(str(path))]:
        raise_data_error(f"{folder}: file names that are not UTF-8", invalid, "rename them")
    return files


def is_image(path: Path) -> bool:
    """Return whether a file is an image, by its suffix or its content."""
    try:
        return path.is_file() and (
            path.suffix.lower() in image_formats.SUFFIXES or image_formats.detect_kind(_head(path)) == "image"
        )
    except OSError:
        return False


def _raise_search_error(error: OSError) -> NoReturn:
    raise DataError(f"{error.filename} cannot be searched: {error.strerror}")


def by_stem(folder: Path, files: Sequence[Path]) -> dict[str, Path]:
    """Return relative files of `folder` by path without suffix. Raises DataError if two differ only in the suffix."""
    stems: dict[str, Path] = {}
    duplicates = []
    for file in files:
        if (stem := file.with_suffix("").as_posix()) in stems:
            duplicates.append(f"{stems[stem]} and {file}")
        stems[stem] = file
    if duplicates:
        raise_data_error(f"{folder}: files whose names differ only in the suffix", duplicates, "keep one of each")
    return stems


def image_size(path: Path) -> tuple[int, int]:
    """Return height and width of an image after EXIF rotation. Raises ConversionError if it cannot be read."""
    try:
        return image_formats.upright_size(path)
    except Exception as error:  # decoders of broken files fail in many ways
        reason = image_formats.describe_error(_head(path), error)
        raise ConversionError("images that cannot be read", f"{path.name} ({reason})", "replace them") from None


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(image_formats.HEADER_BYTES)
