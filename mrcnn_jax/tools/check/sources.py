"""Which COCO JSON files a data set has, and where the images of each lie."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mrcnn_jax.data.annotations import AnnotationFile, inspect
from mrcnn_jax.errors import DataError, listing

_PROBED = 64  # images of a JSON that are looked for in each folder
SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_LISTS = ("images", "annotations", "categories")


@dataclass(frozen=True)
class Source:
    """A COCO JSON that was read, and the folder of its images."""

    path: Path
    folder: Path
    content: AnnotationFile


@dataclass(frozen=True)
class Sources:
    """What a data set consists of."""

    files: list[Source] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)  # why files could not be read, as training says it
    skipped: list[str] = field(default_factory=list)  # JSON files of other kinds, and why they are


class _OtherKindError(DataError):
    """A JSON that is no COCO instances file, and is not meant to be one."""


def find(data: Path, images: Path | None = None) -> Sources:
    """Read the COCO JSON `data`, or all that lie in this folder or in a folder of it.

    images: where the images of all of them are; otherwise each goes with the folder below `data` that has most of its
    images, among equals the one whose name fits best.
    Raises DataError where there is nothing to check.
    """
    if images is not None and not images.is_dir():
        raise DataError(f"no folder {images}; give the folder with the images as --images")
    if not data.exists():
        raise DataError(f"no folder or file {data}; give the folder of a data set, or a COCO JSON")
    sources = Sources()
    for path in _json_files(data):
        try:
            content = _read(path, images, asked_for=data.is_file())
            sources.files.append(_place(path, content, _root(data), images))
        except _OtherKindError as error:
            sources.skipped.append(str(error))
        except DataError as error:
            sources.broken.append(str(error))
    if not sources.files and not sources.broken:
        others = f"; it has {listing(sources.skipped)}" if sources.skipped else ""
        raise DataError(f"no COCO JSON in {data}{others}; give the JSON itself, with --images=FOLDER for its images")
    return sources


def split_of(path: Path) -> str:
    """`train`, `val` or `test` by the name of a JSON, or else of its folder; empty where neither says it."""
    for name in (path.stem, path.parent.name):
        if found := [SPLITS[word] for word in words(name) if word in SPLITS]:
            return found[0]
    return ""


def words(name: str) -> list[str]:
    """The runs of letters in a name, in lower case."""
    return re.findall("[a-z]+", name.lower())


def _read(path: Path, images: Path | None, asked_for: bool) -> AnnotationFile:
    """Raises _OtherKindError for a file that nobody asked for and that is not meant to be read."""
    try:
        content = inspect(path, folder=images)
    except DataError:
        if not asked_for and (kind := _other_kind(path)):
            raise _OtherKindError(f"{path} is {kind}") from None
        raise
    nothing = content.refusals and not any(image.annotations for image in content.images)
    if nothing and not asked_for and (kind := _other_kind(path)):
        raise _OtherKindError(f"{path} is {kind}")
    return content


def _place(path: Path, content: AnnotationFile, root: Path, images: Path | None) -> Source:
    """With the folder of its images. Raises DataError where there is none."""
    if images is not None or not content.images:
        return Source(path, images or path.parent, content)
    names = [image.file_name for image in content.images]
    probed = names[:: max(1, len(names) // _PROBED)]
    folders = sorted(_folders(root) | {path.parent}, key=lambda folder: _rank(folder, path))
    if folder := _fullest(folders, probed):
        return Source(path, folder, content)
    # LVIS gives addresses. Which part of them is the name of the file depends on the folder.
    if folder := _fullest(folders, [os.path.basename(name) for name in probed]):
        content = inspect(path, folder=folder)
        if [image.file_name for image in content.images] != names:
            return Source(path, folder, content)
    raise DataError(
        f"{path}: none of its images ({listing(probed, 3)}) is in {listing(folders)}; give their folder as"
        " --images=FOLDER"
    )


def _fullest(folders: Sequence[Path], names: Sequence[str]) -> Path | None:
    """The folder that has most of these files, the first of equals; None if none has any."""
    found = [sum(os.path.isfile(folder / name) for name in names) for folder in folders]
    return folders[found.index(max(found))] if any(found) else None


def _json_files(data: Path) -> list[Path]:
    if data.is_file():
        return [data]
    return [path for path in [*sorted(data.glob("*.json")), *sorted(data.glob("*/*.json"))] if path.is_file()]


def _root(data: Path) -> Path:
    """The folder in which the images are looked for."""
    if data.is_dir():
        return data
    return data.parent.parent if data.parent.name == "annotations" else data.parent


def _folders(root: Path) -> set[Path]:
    """`root`, its folders, and theirs."""
    folders = {root}
    for parent in (root, *_subfolders(root)):
        folders.update(_subfolders(parent))
    return folders


def _subfolders(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return [folder / entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    except PermissionError:
        return []


def _rank(folder: Path, path: Path) -> tuple[int, str]:
    """Lower for folders that rather belong to the JSON: train2017 to instances_train2017.json, then its own, then
    `images`."""
    words = {path.stem, *re.split(r"[_\-.]", path.stem)}
    fits = (folder.name in words, folder == path.parent, folder.name == "images", True)
    return fits.index(True), str(folder)


def _other_kind(path: Path) -> str | None:
    """What a JSON is that has no COCO instances and is not meant to; None for one that is."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(content, dict):
        return "a list, perhaps of results"
    if lacking := [repr(name) for name in _LISTS if not isinstance(content.get(name), list)]:
        return f"something else: it has no list {listing(lacking)}"
    entries = content["annotations"]
    if entries and all(isinstance(entry, dict) and "segments_info" in entry for entry in entries):
        return "for panoptic segmentation"
    return None
