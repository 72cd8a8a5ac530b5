"""Writing of prepared records to an array_record file.

It is written to a temporary folder whose name begins with a dot. A later preparation removes it if the process is
killed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from array_record.python.array_record_module import ArrayRecordWriter

from mrcnn_jax.data.annotations import ImageEntry
from mrcnn_jax.errors import DataError
from mrcnn_jax.runtime.progress import track

FILE_NAME = "images.array_record"
SEPARATOR = b"\0"  # in a record between the annotations as JSON, where it cannot occur, and the image file
_FREE_SPACE_MARGIN = 64 * 2**20  # for annotations, block overhead of the records, and other programs
_STALE_SECONDS = 3600  # a running preparation writes all the time
_TEMPORARY_NAME = re.compile(r"\..+-[0-9a-f]{16}-.+")
_OTHER_DISK_ADVICE = "set data.cache_dir, or the environment variable MRCNN_JAX_CACHE, to a folder on another disk"


class FileStatus(NamedTuple):
    """Size and modification time of a file, by which a change is noticed."""

    size: int
    modified: int  # nanoseconds


def file_status(path: Path) -> FileStatus:
    """Return the status of a file; its size is -1 if the file cannot be read."""
    try:
        stat = path.stat()
    except OSError:
        return FileStatus(-1, 0)
    return FileStatus(stat.st_size, stat.st_mtime_ns)


def read_unchanged(path: Path, status: FileStatus) -> bytes:
    """Return the content of a file. Raises DataError if it has changed since it had this status."""
    advice = "do not change the images while they are prepared, and start again"
    try:
        with path.open("rb") as file:
            content = file.read()
            stat = os.fstat(file.fileno())
    except OSError as error:
        raise DataError(f"{path} was checked, and now it cannot be read ({error.strerror}); {advice}") from None
    if FileStatus(stat.st_size, stat.st_mtime_ns) != status or len(content) != status.size:
        raise DataError(f"{path} changed after it was checked; {advice}")
    return content


@contextlib.contextmanager
def write_records(
    images: Sequence[ImageEntry], folder: Path, statuses: Sequence[FileStatus], target: Path, name: str
) -> Iterator[tuple[Path, str]]:
    """Write the records of the `images` in `folder` to the subfolder `name` of a temporary folder next to `target`.

    A context manager that yields the temporary folder, and the SHA-256 of the names and bytes of the images. On exit
    the temporary folder is removed unless it was renamed.

    Raises DataError if the disk is full, writing fails, or a file has changed since it had its status in `statuses`.
    """
    temporary = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale_folders(target.parent)
        _check_free_space(target, sum(status.size for status in statuses))
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        (temporary / name).mkdir()
        yield temporary, _write_file(temporary / name / FILE_NAME, images, folder, statuses)
    except (OSError, RuntimeError) as error:  # array_record raises RuntimeError if it cannot write
        raise DataError(
            f"{target}: the prepared records could not be written ({error}); free disk space, or {_OTHER_DISK_ADVICE}"
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _write_file(path: Path, images: Sequence[ImageEntry], folder: Path, statuses: Sequence[FileStatus]) -> str:
    """Write one record for each image, in order; return the SHA-256 of the names and bytes of the images."""
    digest = hashlib.sha256()
    with contextlib.closing(ArrayRecordWriter(str(path), "group_size:1")) as writer:  # for random access
        for image, status in track(zip(images, statuses, strict=True), len(images), "images prepared"):
            content = read_unchanged(folder / image.file_name, status)
            digest.update(f"{image.file_name}\0{len(content)}\0".encode())
            digest.update(content)
            writer.write(json.dumps(image.annotations).encode() + SEPARATOR + content)
    return digest.hexdigest()


def _check_free_space(target: Path, size: int) -> None:
    """Raise DataError unless the disk of `target` has enough space for `size` bytes of images."""
    needed, free = size + size // 50 + _FREE_SPACE_MARGIN, shutil.disk_usage(target.parent).free
    if needed > free:
        temporary = [str(path) for path in _temporary_folders(target.parent)]
        hint = f" (or delete {', '.join(temporary)} if no other process is writing there)" if temporary else ""
        raise DataError(
            f"{target}: the prepared records need {needed / 1e9:.2f} GB, and the disk has {free / 1e9:.2f} GB free;"
            f" free disk space{hint}, or {_OTHER_DISK_ADVICE}"
        )


def _temporary_folders(cache: Path) -> list[Path]:
    """Return the folders of running and of interrupted preparations."""
    return sorted(path for path in cache.iterdir() if _TEMPORARY_NAME.fullmatch(path.name))


def _remove_stale_folders(cache: Path) -> None:
    """Remove temporary folders in which nothing has changed for `_STALE_SECONDS`."""
    for folder in _temporary_folders(cache):
        with contextlib.suppress(OSError):
            last_change = max(path.lstat().st_mtime for path in (folder, *folder.rglob("*")))
            if time.time() - last_change > _STALE_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)
