"""COCO JSON files of a dataset, and the folders of their images."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mrcnn_jax.data.annotations import AnnotationFile, inspect
from mrcnn_jax.errors import DataError, format_list

_NUM_PROBED = 64  # images of a JSON that are searched for in each folder
SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_LISTS = ("images", "annotations", "categories")


@dataclass(frozen=True)
class DatasetFile:
    """A COCO JSON with its content and the folder of its images."""

    path: Path
    folder: Path
    content: AnnotationFile


@dataclass(frozen=True)
class DatasetFiles:
    """The JSON files of a dataset."""

    files: list[DatasetFile] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)  # errors of files that could not be read, as in training
    skipped: list[str] = field(default_factory=list)  # messages about JSON files of other kinds


def find_files(data: Path, images: Path | None = None) -> DatasetFiles:
    """Read the COCO JSON `data`, or all in this folder and its direct subfolders.

    images: the folder with the images of all of them. By default it is, for each JSON, the folder below `data` with
    most of its images, and among equals the one whose name fits best.
    Raises DataError if there is nothing to check.
    """
    if images is not None and not images.is_dir():
        raise DataError(f"no folder {images}; give the folder with the images as --images")
    if not data.exists():
        raise DataError(f"no folder or file {data}; give the folder of a dataset, or a COCO JSON")
    found = DatasetFiles()
    for path in _json_files(data):
        content, file, error = None, None, ""
        try:
            content = inspect(path, folder=images)
            file = _with_image_folder(path, content, _root(data), images)
        except DataError as reason:
            error = str(reason)
        usable = content and (not content.refusals or any(image.annotations for image in content.images))
        if not usable and data.is_dir() and (kind := _other_kind(path)):
            found.skipped.append(f"{path} is {kind}")
        elif file is None:
            found.broken.append(error)
        else:
            found.files.append(file)
    if not found.files and not found.broken:
        others = f"; it has {format_list(found.skipped)}" if found.skipped else ""
        raise DataError(f"no COCO JSON in {data}{others}; give the JSON itself, with --images=FOLDER for its images")
    return found


def split_of(path: Path) -> str:
    """Return `train`, `val` or `test` by the name of a JSON, else of its folder; empty if neither contains one."""
    words = (word for name in (path.stem, path.parent.name) for word in name_words(name))
    return next((SPLITS[word] for word in words if word in SPLITS), "")


def name_words(name: str) -> list[str]:
    """Return the runs of letters in a name, in lower case."""
    return re.findall("[a-z]+", name.lower())


def _with_image_folder(path: Path, content: AnnotationFile, root: Path, images: Path | None) -> DatasetFile:
    """Return the file with the folder of its images. Raises DataError if there is none."""
    if images is not None or not content.images:
        return DatasetFile(path, images or path.parent, content)
    names = [image.file_name for image in content.images]
    probed = names[:: max(1, len(names) // _NUM_PROBED)]
    folders = sorted(_folders(root) | {path.parent}, key=lambda folder: _rank(folder, path))
    if folder := _fullest(folders, probed):
        return DatasetFile(path, folder, content)
    # LVIS has URLs. Which part of a URL is the file name depends on the folder.
    if folder := _fullest(folders, [os.path.basename(name) for name in probed]):
        content = inspect(path, folder=folder)
        if [image.file_name for image in content.images] != names:
            return DatasetFile(path, folder, content)
    raise DataError(
        f"{path}: none of its images ({format_list(probed, 3)}) is in {format_list(folders)}; give their folder as"
        " --images=FOLDER"
    )


def _fullest(folders: Sequence[Path], names: Sequence[str]) -> Path | None:
    """Return the folder with most of these files, the first of equals; None if no folder has any."""
    counts = [sum(os.path.isfile(folder / name) for name in names) for folder in folders]
    return folders[counts.index(max(counts))] if any(counts) else None


def _json_files(data: Path) -> list[Path]:
    paths = [data] if data.is_file() else [*sorted(data.glob("*.json")), *sorted(data.glob("*/*.json"))]
    return [path for path in paths if path.is_file()]


def _root(data: Path) -> Path:
    """Return the folder in which images are searched for."""
    if data.is_dir():
        return data
    return data.parent.parent if data.parent.name == "annotations" else data.parent


def _folders(root: Path) -> set[Path]:
    """Return `root` and its subfolders, two levels deep, without hidden ones."""
    found = [folder for pattern in ("*/", "*/*/") for folder in root.glob(pattern)]
    return {root, *(folder for folder in found if not re.search(r"(^|/)\.", str(folder.relative_to(root))))}


def _rank(folder: Path, path: Path) -> tuple[int, str]:
    """Return a sort key that puts first the folder whose name is in that of the JSON, then its own, then `images`.

    For instances_train2017.json, the first is train2017.
    """
    words = {path.stem, *re.split(r"[_\-.]", path.stem)}
    fits = (folder.name in words, folder == path.parent, folder.name == "images", True)
    return fits.index(True), str(folder)


def _other_kind(path: Path) -> str | None:
    """Return what a JSON without COCO instances contains; None if it should contain instances."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(content, dict):
        return "a list, perhaps of results"
    if lacking := [repr(name) for name in _LISTS if not isinstance(content.get(name), list)]:
        return f"something else: it has no list {format_list(lacking)}"
    entries = content["annotations"]
    if entries and all(isinstance(entry, dict) and "segments_info" in entry for entry in entries):
        return "for panoptic segmentation"
    return None
