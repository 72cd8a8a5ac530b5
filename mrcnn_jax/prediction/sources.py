"""Where the pictures to predict on come from: image files, folders, glob patterns, videos, cameras."""

from __future__ import annotations

import glob
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from mrcnn_jax.predictor import ImageError

IMAGES = (".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")
_USUAL_RATE = 25.0  # frames a second of what does not say it


class Source(NamedTuple):
    """A file or a camera. A file that is not there is a source too: reading it says so."""

    kind: Literal["image", "video", "camera"]
    path: str  # as given or found; the number of a camera
    name: str  # what its results are called: the file's name without suffix; with its subfolders if a folder was given


def find(inputs: Sequence[str], output: Path) -> tuple[list[Source], list[str]]:
    """Sources in the order of `inputs`, and a message for every input in which there is none.

    An input is a file; a folder, searched with all its subfolders but hidden ones and `output`; a glob pattern; or,
    when it is a bare number and no file, a camera. What a folder or a pattern gives is sorted by name. In folders the
    suffix says what is an image or a video; a file that was named is an image if it is not a video.
    """
    sources: list[Source] = []
    nothing: list[str] = []
    for given in inputs:
        if os.path.lexists(given):
            found = _of_path(given, output)
        elif given.isdecimal():
            found = [Source("camera", given, f"camera-{given}")]
        elif glob.has_magic(given):
            matches = sorted(glob.glob(given, recursive=True))
            found = [source for match in matches for source in _of_path(match, output)]
        else:
            found = [_of_file(given, Path(given).name)]
        sources += found
        if not found:
            nothing.append(f"{given}: no image or video is there ({' '.join((*IMAGES, *VIDEOS))})")
    return sources, nothing


def _of_path(path: str, output: Path) -> list[Source]:
    if not os.path.isdir(path):
        return [_of_file(path, Path(path).name)]
    found = []
    for folder, subfolders, files in os.walk(path):
        subfolders[:] = [name for name in subfolders if _wanted(Path(folder, name), output)]
        found += [Path(folder, name) for name in files if not name.startswith(".")]
    return [
        _of_file(str(file), str(file.relative_to(path)))
        for file in sorted(found)
        if file.suffix.lower() in IMAGES + VIDEOS
    ]


def _wanted(folder: Path, output: Path) -> bool:
    """Results that lie among the inputs are not predicted on."""
    return not folder.name.startswith(".") and folder.resolve() != output.resolve()


def _of_file(path: str, name: str) -> Source:
    suffix = Path(path).suffix
    return Source("video" if suffix.lower() in VIDEOS else "image", path, name.removesuffix(suffix) or name)


class Film(AbstractContextManager["Film"]):
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
        return "No such file or directory"
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
