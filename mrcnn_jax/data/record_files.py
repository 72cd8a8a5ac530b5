"""Writing of prepared records to array_record files, with a tensorflow-datasets builder.

They are written to a temporary folder whose name begins with a dot. A later preparation removes it if the process is
killed.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow_datasets as tfds

from mrcnn_jax.data.annotations import ImageEntry
from mrcnn_jax.errors import DataError
from mrcnn_jax.runtime.progress import track

# tfds keeps a split in memory while it writes it. Above 1 GB it needs TensorFlow, so the records are divided into
# splits well below that.
_PART_BYTES = 256 * 2**20
_FREE_SPACE_MARGIN = 64 * 2**20  # for annotations, block overhead of the records, and other programs
_STALE_SECONDS = 3600  # a running preparation writes a part within minutes
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


class CocoRecords(tfds.core.GeneratorBasedBuilder):
    """A tfds builder that writes one record for each image, in order.

    statuses: of the image files in `folder` when they were checked. Raises DataError if a file has changed since.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, images: Sequence[ImageEntry], folder: Path, statuses: Sequence[FileStatus], **kwargs: Any):
        self._folder, self._counts = folder, _images_per_part([status.size for status in statuses])
        self.content = hashlib.sha256()  # of the names and bytes of all images written so far
        # All parts take their images from one iterator, so that there is one progress bar.
        self._images = track(zip(images, statuses, strict=True), len(images), "images prepared")
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {"image": tfds.features.Image(shape=(None, None, 3)), "annotations": tfds.features.Text()}
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        # The last part exhausts the iterator, which ends the progress bar.
        parts = [itertools.islice(self._images, count) for count in (*self._counts[:-1], None)]
        return {f"part{i:05d}": self._generate_examples(part) for i, part in enumerate(parts)}

    def _log_download_bytes(self) -> None:
        """Do nothing: tfds would log a download, and there is none."""

    def _log_download_done(self) -> None:
        """Do nothing, as `_log_download_bytes`."""

    def _generate_examples(
        self, images: Iterable[tuple[ImageEntry, FileStatus]]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for i, (image, status) in enumerate(images):  # the keys give the order
            content = read_unchanged(self._folder / image.file_name, status)
            self.content.update(f"{image.file_name}\0{len(content)}\0".encode())
            self.content.update(content)
            yield i, {"image": content, "annotations": json.dumps(image.annotations)}


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
        with quiet_tfds():
            builder = CocoRecords(images=images, folder=folder, statuses=statuses, data_dir=temporary / name)
            builder.download_and_prepare()
        shutil.rmtree(temporary / name / "downloads", ignore_errors=True)  # tfds always creates it
        yield temporary, builder.content.hexdigest()
    except (OSError, RuntimeError) as error:  # array_record raises RuntimeError if it cannot write
        raise DataError(
            f"{target}: the prepared records could not be written ({error}); free disk space, or {_OTHER_DISK_ADVICE}"
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def quiet_tfds() -> Iterator[None]:
    """Disable the progress bars and log messages of tfds."""
    absl_logger = logging.getLogger("absl")
    level = absl_logger.level
    absl_logger.setLevel(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        yield
    finally:
        tfds.enable_progress_bar()
        absl_logger.setLevel(level)


def _images_per_part(sizes: Sequence[int]) -> list[int]:
    """Return how many images each part gets, in order; a part exceeds `_PART_BYTES` only for a single large file."""
    counts: list[int] = []
    remaining = 0
    for size in sizes:
        if not counts or size > remaining:
            counts.append(0)
            remaining = _PART_BYTES
        counts[-1] += 1
        remaining -= size
    return counts


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
