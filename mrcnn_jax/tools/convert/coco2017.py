"""Download of COCO 2017: annotations and images, checked, and unpacked into COCO's layout."""

from __future__ import annotations

import functools
import os
import shutil
import stat
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mrcnn_jax.errors import ConfigError, DataError, raise_data_error
from mrcnn_jax.runtime import files
from mrcnn_jax.runtime.download import download
from mrcnn_jax.runtime.progress import track

_HOST = "http://images.cocodataset.org/"
_TERMS = "https://cocodataset.org/#termsofuse"
_GIGABYTE = 10**9


class Archive(NamedTuple):
    """A zip file of COCO 2017."""

    address: str  # relative to _HOST
    folder: str  # that its files are in
    files: int
    size: int  # bytes
    unpacked_size: int  # bytes on a disk, at most
    md5: str


ANNOTATIONS = Archive(
    "annotations/annotations_trainval2017.zip",
    "annotations",
    6,
    252_907_541,
    840_000_000,
    "f4bbac642086de4f52a3fdda2de5fa2c",
)
IMAGES = {
    "val": Archive("zips/val2017.zip", "val2017", 5000, 815_585_330, 840_000_000, "442b8da7639aecaf257c1dceb8ba8c80"),
    "train": Archive(
        "zips/train2017.zip", "train2017", 118_287, 19_336_861_798, 20_000_000_000, "cced6f7f71b7629ddf16f17bbcfab6b2"
    ),
}


def fetch(root: Path, splits: Sequence[str] = ("val", "train")) -> None:
    """Download what `root` lacks of the annotations and the images of `splits`, and print what is done.

    An interrupted call is continued by the next one. The zip files are deleted when they are unpacked. Raises
    ConfigError if the disk is too small, DownloadError, see `download`, and DataError for an unusable zip file.
    """
    files.check_output(root, "DIR", folder=True)
    archives = [ANNOTATIONS, *(IMAGES[split] for split in splits)]
    missing = [archive for archive in archives if len(_contents(root, archive)) < archive.files]
    if not missing:
        print(f"{root} has the annotations and the images ({', '.join(splits)}) of COCO 2017")
        return
    print(f"COCO 2017 (terms of use: {_TERMS})")
    for archive in missing:
        print(f"  {_HOST}{archive.address}: {archive.size / _GIGABYTE:.1f} GB", flush=True)
    _check_space(root, missing)
    for archive in missing:
        path = download(_HOST + archive.address, _zip_path(root, archive), functools.partial(_problem, archive))
        unpack(path, root)
        path.unlink()
    print(f"{root} has COCO 2017: {', '.join(archive.folder for archive in missing)}")


def _contents(root: Path, archive: Archive) -> list[os.DirEntry[str]]:
    """Return the files of an archive that are unpacked already, or that the user has from elsewhere."""
    folder = root / archive.folder
    return [file for file in os.scandir(folder) if file.name.endswith((".jpg", ".json"))] if folder.is_dir() else []


def _zip_path(root: Path, archive: Archive) -> Path:
    return root / Path(archive.address).name


def _check_space(root: Path, archives: Sequence[Archive]) -> None:
    """Print the disk space that unpacking takes, and raise ConfigError if there is less.

    The archives are unpacked one after another, and each is deleted before the next one is downloaded.
    """
    present = 0
    for archive in archives:
        downloaded = root.glob(f"{_zip_path(root, archive).name}*")
        present += sum(os.path.getsize(file) for file in (*downloaded, *_contents(root, archive)))
    total = sum(archive.unpacked_size for archive in archives) + max(archive.size for archive in archives)
    needed = max(total - present, 0)
    free = shutil.disk_usage(next(parent for parent in (root, *root.absolute().parents) if parent.exists())).free
    text = (
        f"{needed / _GIGABYTE:.1f} GB of disk space are needed, zip files included; {root} has {free / _GIGABYTE:.1f}"
    )
    if free < needed:
        raise ConfigError(f"{text}: free some, name another folder, or fetch the validation images only (--split=val)")
    print(text, flush=True)


def _problem(archive: Archive, path: Path) -> str | None:
    """Return what is wrong with a downloaded file, or None."""
    if (size := path.stat().st_size) != archive.size:
        return f"it has {size} bytes, not {archive.size}"
    return files.check_hash(path, "md5", archive.md5)


def unpack(path: Path, root: Path) -> None:
    """Unpack a zip file into `root`, without the files that are there in their full size.

    A file gets its name when it is complete. Raises DataError, before anything is written, if a name in the zip file is
    outside of the folder or of a symbolic link.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            if outside := [member.filename for member in members if _is_unsafe(member)]:
                raise_data_error(f"{path}: names outside of its folder, or links", outside, "do not use this file")
            for member in track(members, len(members), f"files of {path.name} unpacked"):
                _extract(archive, member, root / member.filename)
    except zipfile.BadZipFile as error:
        raise DataError(f"{path} is damaged ({error}); delete it, then run the same command") from None


def _is_unsafe(member: zipfile.ZipInfo) -> bool:
    name = member.filename.replace("\\", "/")
    return name.startswith("/") or ".." in name.split("/") or stat.S_ISLNK(member.external_attr >> 16)


def _extract(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> None:
    """Write a file under a temporary name, then rename it; does nothing if it is there."""
    if target.is_file() and target.stat().st_size == member.file_size:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(".unpacking")
    with archive.open(member) as source, temporary.open("wb") as file:
        shutil.copyfileobj(source, file)
    temporary.replace(target)
