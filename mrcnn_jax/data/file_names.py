"""Files of a folder, and those that are not there although one of nearly the same name is."""

from __future__ import annotations

import functools
import logging
import os
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote

from mrcnn_jax.data.image_formats import SUFFIXES
from mrcnn_jax.errors import shown

log = logging.getLogger(__name__)

_DIFFERENCES: dict[str, Callable[[str], str]] = {
    "in Unicode form (NFC, NFD)": lambda name: unicodedata.normalize("NFC", name),
    "in upper and lower case": lambda name: unicodedata.normalize("NFC", name).casefold(),
    "in percent escapes (%20 is a space)": unquote,
    "in suffix": lambda name: _without_suffix(name),
}


def walk(root: Path, *, without: Path | None, failed: Callable[[OSError], None]) -> Iterator[Path]:
    """Files at any depth of `root`, but hidden ones and those of the folder `without`; links to folders are followed.

    A linked folder that is searched anyway, or is around one that is, is logged and left out: no file comes twice.
    failed: gets the error of a folder that cannot be searched.
    """
    top, left_out = root.resolve(), without and without.resolve()
    linked: list[Path] = []

    def wanted(folder: Path) -> bool:
        real = folder.resolve()
        if folder.name.startswith(".") or real == left_out:
            return False
        if not folder.is_symlink():
            return True
        if any(real == other or real in other.parents or other in real.parents for other in (top, *linked)):
            log.info("%s: skipped, it is a link to %s, which is searched anyway, or is around it", folder, real)
            return False
        linked.append(real)
        return True

    for folder, subfolders, files in os.walk(root, onerror=failed, followlinks=True):
        subfolders[:] = [name for name in sorted(subfolders) if wanted(Path(folder, name))]
        yield from (Path(folder, name) for name in files if not name.startswith("."))


def near(folder: Path, name: str) -> str | None:
    """What to say of a file below `folder` whose name differs from the missing `name` in spelling only; None: no such.

    Unicode form, case, percent escapes, backslashes in the place of slashes, bytes that are not UTF-8, spaces at the
    ends, and another suffix of the same name are spelling.
    """
    place, found = folder, []
    for part in name.replace("\\", "/").split("/"):
        if not (place / part).exists():
            there = _names(place, _changed(place)).get(_plain(part), [])
            if len(there) != 1:
                return None
            part = there[0]
        found.append(part)
        place = place / part
    path = "/".join(found)
    return None if path == name else f"{_shown(path)} is there; the names differ {_difference(name, path)}"


def missing(path: Path) -> str:
    """Why a file cannot be read that is not there."""
    absolute = Path(os.path.abspath(path))
    parent = next((parent for parent in absolute.parents if parent.is_dir()), absolute)
    hint = near(parent, str(absolute.relative_to(parent)))
    return "No such file or directory" + (f"; {hint}" if hint else "")


def is_unicode(name: str) -> bool:
    """Whether the bytes of a file's name are UTF-8; Python keeps those that are not as half characters."""
    return name.isascii() or not any("\ud800" <= character <= "\udfff" for character in name)


def _shown(name: str) -> str:
    return shown(name if is_unicode(name) else os.fsencode(name).decode("ascii", "backslashreplace"))


def _difference(name: str, there: str) -> str:
    if not is_unicode(there):
        return "in encoding: it is not UTF-8, rename the file"
    if name.replace("\\", "/") == there:
        return "in backslashes: write / between folders"
    for how, rule in _DIFFERENCES.items():
        if rule(name) == rule(there):
            return how
    return "in spelling"


def _plain(name: str) -> str:
    """What names have in common that differ in spelling only."""
    text = name if is_unicode(name) else os.fsencode(name).decode("latin-1")
    return _without_suffix(unicodedata.normalize("NFC", unquote(text)).casefold().strip())


def _without_suffix(name: str) -> str:
    """Without that of an image."""
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in SUFFIXES else name


def _changed(folder: Path) -> int:
    try:
        return folder.stat().st_mtime_ns
    except OSError:
        return 0


@functools.lru_cache(maxsize=64)
def _names(folder: Path, changed: int) -> dict[str, list[str]]:
    """What lies in `folder`, by plain name; listed once as long as it does not change."""
    names: dict[str, list[str]] = {}
    try:
        for name in sorted(os.listdir(folder)):
            names.setdefault(_plain(name), []).append(name)
    except OSError:
        pass
    return names
