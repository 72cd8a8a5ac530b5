"""Files below a folder, and hints for missing files whose name differs from an existing one in spelling."""

from __future__ import annotations

import functools
import logging
import os
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote

from mrcnn_jax.data.image_formats import SUFFIXES
from mrcnn_jax.errors import format_value

log = logging.getLogger(__name__)

_DIFFERENCES: dict[str, Callable[[str], str]] = {
    "in Unicode form (NFC, NFD)": lambda name: unicodedata.normalize("NFC", name),
    "in upper and lower case": lambda name: unicodedata.normalize("NFC", name).casefold(),
    "in percent escapes (%20 is a space)": unquote,
    "in suffix": lambda name: _without_suffix(name),
}


def walk_files(root: Path, *, without: Path | None, failed: Callable[[OSError], None]) -> Iterator[Path]:
    """Yield the files at any depth of `root`, without hidden ones and those in the folder `without`.

    Links to folders are followed, except to a folder that contains or is contained in one that is searched anyway: no
    file comes twice. failed: called with the error of a folder that cannot be searched.
    """
    top, excluded = root.resolve(), without and without.resolve()
    linked: list[Path] = []

    def is_searched(folder: Path) -> bool:
        target = folder.resolve()
        if folder.name.startswith(".") or target == excluded:
            return False
        if not folder.is_symlink():
            return True
        if any(target == other or target in other.parents or other in target.parents for other in (top, *linked)):
            log.info("%s: skipped, because it links to %s, which overlaps a folder that is searched", folder, target)
            return False
        linked.append(target)
        return True

    for folder, subfolders, files in os.walk(root, onerror=failed, followlinks=True):
        subfolders[:] = [name for name in sorted(subfolders) if is_searched(Path(folder, name))]
        yield from (Path(folder, name) for name in files if not name.startswith("."))


def describe_similar(folder: Path, name: str) -> str | None:
    """Return a hint at the file below `folder` that the missing `name` probably means, or None.

    The names may differ in Unicode form, case, percent escapes, backslashes instead of slashes, bytes that are not
    UTF-8, spaces at the ends, and the image suffix.
    """
    parent, parts = folder, []
    try:
        for part in name.replace("\\", "/").split("/"):
            if not (parent / part).exists():
                names = _names_in(parent, parent.stat().st_mtime_ns).get(_normalize(part), [])
                if len(names) != 1:
                    return None
                part = names[0]
            parts.append(part)
            parent = parent / part
    except OSError:  # not a folder, or it cannot be read
        return None
    path = "/".join(parts)
    return None if path == name else f"{_printable(path)} exists, which differs {_difference(name, path)}"


def describe_missing(path: Path) -> str:
    """Return the error message for a missing file, with a hint at a similar name."""
    absolute = Path(os.path.abspath(path))
    parent = next((parent for parent in absolute.parents if parent.is_dir()), absolute)
    hint = describe_similar(parent, str(absolute.relative_to(parent)))
    return "No such file or directory" + (f"; {hint}" if hint else "")


def is_utf8(name: str) -> bool:
    """Whether the bytes of a file name are UTF-8; Python represents other bytes as surrogates."""
    return name.isascii() or not any("\ud800" <= character <= "\udfff" for character in name)


def _printable(name: str) -> str:
    return format_value(name if is_utf8(name) else os.fsencode(name).decode("ascii", "backslashreplace"))


def _difference(name: str, existing: str) -> str:
    if not is_utf8(existing):
        return "in encoding: it is not UTF-8, rename the file"
    if name.replace("\\", "/") == existing:
        return "in backslashes: write / between folders"
    for difference, normalize in _DIFFERENCES.items():
        if normalize(name) == normalize(existing):
            return difference
    return "in spelling"


def _normalize(name: str) -> str:
    """Return a key that is equal for names that differ in spelling only."""
    text = name if is_utf8(name) else os.fsencode(name).decode("latin-1")
    return _without_suffix(unicodedata.normalize("NFC", unquote(text)).casefold().strip())


def _without_suffix(name: str) -> str:
    """Return the name without the suffix of an image format."""
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in SUFFIXES else name


@functools.lru_cache(maxsize=64)
def _names_in(folder: Path, changed: int) -> dict[str, list[str]]:
    """Return the names in `folder` by normalized name, cached until `changed`, its modification time, changes."""
    names: dict[str, list[str]] = {}
    for name in sorted(os.listdir(folder)):
        names.setdefault(_normalize(name), []).append(name)
    return names
