"""Where the pictures to predict on come from: image files, folders, glob patterns, videos, cameras."""

from __future__ import annotations

import glob
import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from mrcnn_jax.data import file_names, image_formats
from mrcnn_jax.errors import ImageError, listing, shown

log = logging.getLogger(__name__)

VIDEOS = (".3gp", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".webm", ".wmv")
_USUAL_RATE = 25.0  # frames a second of what does not say it


class Source(NamedTuple):
    """A file or a camera. A file that is not there is a source too: reading it says so."""

    kind: Literal["image", "video", "camera"]
    path: str  # as given or found; the number of a camera
    name: str  # what its results are called: the file's name without suffix; with its subfolders if a folder was given


def find(inputs: Sequence[str], output: Path) -> tuple[list[Source], list[str]]:
    """Sources in the order of `inputs`, and a message for every input in which there is none.

    An input is a file; a folder, searched with all its subfolders but hidden ones and `output`; a glob pattern; or,
    when it is a bare number and no file, a camera. What a folder or a pattern gives is sorted by name. Suffix or
    content says what is an image or a video. Other files of folders are logged by name; one that was given is an image.
    """
    sources: list[Source] = []
    nothing: list[str] = []
    for given in inputs:
        if os.path.lexists(given):
            found = _of_path(given, output, nothing)
        elif given.isdecimal():
            found = [Source("camera", given, f"camera-{given}")]
        elif "://" in given:
            found = []
            nothing.append(f"{given}: addresses are not read; save it to a file first (ffmpeg -i ADDRESS FILE.mp4)")
        elif glob.has_magic(given):
            matches = sorted(glob.glob(given, recursive=True))
            found = [source for match in matches for source in _of_path(match, output, nothing)]
        else:
            found = [_of_file(given, Path(given).name, _kind(Path(given)))]
        sources += found
        if not found and not any(message.startswith(f"{given}: ") for message in nothing):
            nothing.append(f"{given}: no image or video is there")
    return sources, nothing


def _of_path(path: str, output: Path, nothing: list[str]) -> list[Source]:
    if os.path.exists(path) and not os.path.isdir(path) and not os.path.isfile(path):
        nothing.append(f"{path}: it is a device or a pipe, not a file; a camera is given by its number")
        return []
    if not os.path.isdir(path):
        return [_of_file(path, Path(path).name, _kind(Path(path)))]

    def failed(error: OSError) -> None:
        nothing.append(f"{error.filename}: {error.strerror}")

    # Results that lie among the inputs are not predicted on.
    files = sorted(file_names.walk_files(Path(path), without=output, failed=failed))
    kinds = {file: _kind(file) for file in files}
    if skipped := [shown(str(file.relative_to(path))) for file in files if kinds[file] is None]:
        log.info("%s: skipped %d files, neither images nor videos: %s", path, len(skipped), listing(skipped))
    return [_of_file(str(file), str(file.relative_to(path)), kind) for file, kind in kinds.items() if kind is not None]


def _kind(file: Path) -> Literal["image", "video"] | None:
    """By suffix, else by content; None for other files."""
    suffix = file.suffix.lower()
    if file.exists() and not file.is_file():  # a pipe or the like, which nothing may ever come out of
        return None
    if suffix in VIDEOS:
        return "video"
    if suffix in image_formats.SUFFIXES:
        return "image"
    try:
        with file.open("rb") as opened:
            return image_formats.detect_kind(opened.read(image_formats.HEADER_BYTES))
    except OSError:
        return None


def _of_file(path: str, name: str, kind: Literal["image", "video"] | None) -> Source:
    return Source(kind or "image", path, name.removesuffix(Path(path).suffix) or name)


class VideoReader(AbstractContextManager["VideoReader"]):
    """The frames of a video file or a camera, by OpenCV. Raises ImageError, naming it, when it cannot be opened."""

    def __init__(self, source: Source):
        self._source = source
        _silence()
        self._capture = cv2.VideoCapture(int(source.path) if self.live else source.path)
        if not self._capture.isOpened():
            self._capture.release()
            raise ImageError(f"{self.title}: {_hint(source)}")
        rate = float(self._capture.get(cv2.CAP_PROP_FPS))
        self.rate = rate if 0 < rate <= 1000 else _USUAL_RATE  # frames a second; NaN is not above 0
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.total = None if self.live or not 0 < count < 1e9 else int(count)  # as the file says; None: unknown

    def __exit__(self, *error: object) -> None:
        self._capture.release()

    @property
    def live(self) -> bool:
        return self._source.kind == "camera"

    @property
    def title(self) -> str:
        return f"camera {self._source.path}" if self.live else self._source.path

    def frames(self) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Number and RGB pixels (height, width, 3) of every frame.

        A file's frames count from 0. A camera's number is the time since its first picture in units of 1 / `rate`:
        the numbers of those that nobody had the time to take are left out.
        """
        start, number = None, -1
        while True:
            there, pixels = self._capture.read()
            if not there:
                return
            now = time.monotonic()
            start = now if start is None else start
            number = max(number + 1, int((now - start) * self.rate) if self.live else 0)
            yield number, np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), dtype=np.uint8)

    def missing(self, read: int) -> str | None:
        """What to say after all `frames`, `read` of them: None if they are as many as the file told.

        The number is an estimate in some formats: a hundredth less is nothing missing.
        """
        if self.live:
            return f"{self.title}: it gives no more pictures after {read}"
        if not read:
            return f"{self.title}: none of its frames can be read"
        if self.total is None or read >= self.total - max(1, self.total // 100):
            return None
        return f"{self.title}: only the first {read} of {self.total} frames can be read"


def _hint(source: Source) -> str:
    if source.kind == "camera":
        return f"it cannot be opened; is it connected, and may you read /dev/video{source.path}?"
    if not os.path.exists(source.path):
        return file_names.describe_missing(Path(source.path))
    return "not a video that can be decoded"


def _silence() -> None:
    """What FFmpeg prints names no file; we name those that cannot be read. A level that the user has set stays."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    if "OPENCV_LOG_LEVEL" not in os.environ:
        set_level = getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel  # OpenCV 4 and 5
        set_level(1)  # fatal errors only


def names(sources: Iterable[Source], reserved: Iterable[str] = ()) -> list[str]:
    """What the results of each source are called: its name, with a number where that is taken (in any case).

    A name `a` takes `a.mask` too, which masks are called.
    """
    taken = {name.lower() for name in reserved}
    chosen = []
    for source in sources:
        name, number = source.name, 1
        while {name.lower(), f"{name.lower()}.mask"} & taken:
            number += 1
            name = f"{source.name}-{number}"
        taken |= {name.lower(), f"{name.lower()}.mask"}
        chosen.append(name)
    return chosen
