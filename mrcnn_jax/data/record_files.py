"""The files of prepared records: written by a tensorflow-datasets builder beside their place, moved there when whole.

Nothing here looks at what images show. A preparation that is killed leaves a folder whose name begins with a dot;
nobody reads it, and a later preparation removes it.
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

# tfds holds a split in memory while it writes it, and beyond 1 GB it spills to files through TensorFlow, which is not
# there. So the records go to as many splits as keep each one well below that.
_PART_BYTES = 256 * 2**20
_MARGIN = 64 * 2**20  # free space beyond the files themselves: annotations, the blocks of the records, other programs
_STALE_SECONDS = 3600  # a preparation that lives writes a part within minutes
_BUILDING = re.compile(r"\..+-[0-9a-f]{16}-.+")  # names of folders that are not in their place yet, or any more
_ELSEWHERE = "set data.cache_dir, or the environment variable MRCNN_JAX_CACHE, to a folder on another disk"


class Status(NamedTuple):
    """What tells whether a file is still the one that was looked at."""

    size: int
    modified: int  # nanoseconds


def status(path: Path) -> Status:
    """Of a file; of none, that of nothing that could be read."""
    try:
        found = path.stat()
    except OSError:
        return Status(-1, 0)
    return Status(found.st_size, found.st_mtime_ns)


class CocoRecords(tfds.core.GeneratorBasedBuilder):
    """Writes one record for each image of a checked COCO JSON, in its order.

    `statuses`: of the files in `folder` when they were examined. Raises DataError for one that is another now.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, images: Sequence[ImageEntry], folder: Path, statuses: Sequence[Status], **kwargs: Any):
        self._folder, self._counts = folder, _cut([status.size for status in statuses])
        self.content = hashlib.sha256()  # of the names and bytes of all images that were written so far
        # One iterator, from which each part takes its share: so the progress is that of all of them.
        self._images = track(zip(images, statuses, strict=True), len(images), "images prepared")
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {"image": tfds.features.Image(shape=(None, None, 3)), "annotations": tfds.features.Text()}
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        # The last one takes all that is left, to its end, where the progress ends too.
        shares = [itertools.islice(self._images, count) for count in (*self._counts[:-1], None)]
        return {f"part{i:05d}": self._generate_examples(share) for i, share in enumerate(shares)}

    def _log_download_bytes(self) -> None:
        """tfds announces a download here; there is none."""

    def _log_download_done(self) -> None:
        """And here that it is done."""

    def _generate_examples(self, images: Iterable[tuple[ImageEntry, Status]]) -> Iterator[tuple[int, dict[str, Any]]]:
        for i, (image, examined) in enumerate(images):  # the keys decide the order
            content = read_unchanged(self._folder / image.file_name, examined)
            self.content.update(f"{image.file_name}\0{len(content)}\0".encode())
            self.content.update(content)
            yield i, {"image": content, "annotations": json.dumps(image.annotations)}


def read_unchanged(path: Path, examined: Status) -> bytes:
    """The content of a file. Raises DataError if it is not the one that was examined, before or after reading."""
    try:
        with path.open("rb") as file:
            content = file.read()
            now = os.fstat(file.fileno())
    except OSError as error:
        raise DataError(
            f"{path} was there when it was examined and cannot be read now ({error.strerror}); leave the images as"
            " they are while they are prepared, and start again"
        ) from None
    if Status(now.st_size, now.st_mtime_ns) != examined or len(content) != examined.size:
        raise DataError(
            f"{path} changed after it was examined; leave the images as they are while they are prepared, and start"
            " again"
        )
    return content


@contextlib.contextmanager
def written(
    images: Sequence[ImageEntry], folder: Path, statuses: Sequence[Status], place: Path, name: str
) -> Iterator[tuple[Path, str]]:
    """Write the records of `images` in `folder` to a new folder beside `place`, as `name` in it.

    Yields that folder, and the SHA-256 of the names and bytes of the images. The folder is removed afterwards unless it
    was moved. Raises DataError when the disk has no room, when writing fails, or when a file is not the one that was
    examined with these `statuses`.
    """
    building = None
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(place.parent)
        _check_room(place, sum(status.size for status in statuses))
        building = Path(tempfile.mkdtemp(prefix=f".{place.name}-", dir=place.parent))
        with quiet_tfds():
            builder = CocoRecords(images=images, folder=folder, statuses=statuses, data_dir=building / name)
            builder.download_and_prepare()
        shutil.rmtree(building / name / "downloads", ignore_errors=True)  # tfds makes it, and downloads nothing
        yield building, builder.content.hexdigest()
    except (OSError, RuntimeError) as error:  # array_record's is RuntimeError when the system refuses to write
        words = f"the records could not be written ({error}); make room there, or {_ELSEWHERE}"
        raise DataError(f"{place}: {words}") from error
    finally:
        if building is not None:
            shutil.rmtree(building, ignore_errors=True)


@contextlib.contextmanager
def quiet_tfds() -> Iterator[None]:
    """tfds draws progress bars and logs through absl; none of it is for our users."""
    absl_logger = logging.getLogger("absl")
    level = absl_logger.level
    absl_logger.setLevel(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        yield
    finally:
        tfds.enable_progress_bar()
        absl_logger.setLevel(level)


def _cut(sizes: Sequence[int]) -> list[int]:
    """How many files go to each part, in order; no part is larger than `_PART_BYTES`, but for single larger files."""
    counts: list[int] = []
    room = 0
    for size in sizes:
        if not counts or size > room:
            counts.append(0)
            room = _PART_BYTES
        counts[-1] += 1
        room -= size
    return counts


def _check_room(place: Path, size: int) -> None:
    """Raise DataError unless files of `size` bytes in all fit beside `place`."""
    needed, free = size + size // 50 + _MARGIN, shutil.disk_usage(place.parent).free
    if needed > free:
        left = [str(path) for path in _leftovers(place.parent)]
        hint = f" (or delete {', '.join(left)}, if no other process is preparing it)" if left else ""
        raise DataError(
            f"{place}: the prepared records need {needed / 1e9:.2f} GB, and the disk has {free / 1e9:.2f} GB free; make"
            f" room there{hint}, or {_ELSEWHERE}"
        )


def _leftovers(cache: Path) -> list[Path]:
    """Folders of preparations that were cut short, or run now."""
    return sorted(path for path in cache.iterdir() if _BUILDING.fullmatch(path.name))


def _remove_leftovers(cache: Path) -> None:
    """Remove those in which nothing has changed for so long that nobody is at work in them any more."""
    for leftover in _leftovers(cache):
        with contextlib.suppress(OSError):
            last = max(path.lstat().st_mtime for path in (leftover, *leftover.rglob("*")))
            if time.time() - last > _STALE_SECONDS:
                shutil.rmtree(leftover, ignore_errors=True)
