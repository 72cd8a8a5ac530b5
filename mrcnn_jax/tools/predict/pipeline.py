"""Pipeline of a prediction: reads images and frames, runs the model, and writes the results on threads."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from mrcnn_jax.errors import DISK_FULL, ImageError
from mrcnn_jax.inference.postprocess import Prediction
from mrcnn_jax.inference.predictor import Predictor, read_image
from mrcnn_jax.runtime.progress import track
from mrcnn_jax.runtime.threads import map_on_threads
from mrcnn_jax.tools.predict import writers
from mrcnn_jax.tools.predict.sources import MediaSource, VideoReader
from mrcnn_jax.tools.predict.writers import Summary

if TYPE_CHECKING:
    from mrcnn_jax.visualize import ColorIndices

T = TypeVar("T")


class StopSignal(contextlib.ExitStack):
    """Context manager that records the first SIGINT or SIGTERM in `number`; a second one has its usual effect.

    Outside of the main thread Python allows no handlers, so signals keep those of the caller.
    """

    number: int | None = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                previous = signal.getsignal(number)
                if previous is not signal.SIG_IGN:  # ignored under nohup and in background jobs of a shell
                    self.callback(signal.signal, number, signal.SIG_DFL if previous is None else previous)
                    signal.signal(number, self._handle)
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self.close()
        with contextlib.suppress(OSError):  # not `print`, which the signal may have interrupted
            os.write(2, b"finishing the images that have been read, then stopping (a second signal stops at once)\n")


class Frame(NamedTuple):
    """An image, or a frame of a video or camera, to predict on."""

    source: MediaSource
    stem: Path  # of its result files, without suffix
    image_id: int
    pixels: NDArray[np.uint8]
    number: int | None = None  # in a video or camera


class Rendered(NamedTuple):
    """Results of a frame that remain to be written in order."""

    number: int | None  # of the frame in a video or camera
    records: list[dict[str, Any]]
    num_instances: int  # with a score of at least the threshold
    full: bool  # as many detections as the model allows
    overlay: NDArray[np.uint8] | None  # of a video frame
    failures: list[str]  # messages about files that could not be written


@dataclass
class Pipeline:
    """Prediction on images, then on videos and cameras, with common counts and image ids."""

    predict: Predictor
    save: Sequence[str]
    threshold: float
    value_range: tuple[float, float] | None
    stop: StopSignal
    summary: Summary
    results: writers.ResultsWriter | None
    last_id: int = 0

    def run(self, inputs: Sequence[tuple[MediaSource, Path]]) -> None:
        """Predict on `inputs`, given with the stems of their result files."""
        images = [(source, stem) for source, stem in inputs if source.kind == "image"]
        if images:
            self._run_images(images)
        for source, stem in self._until_stopped([given for given in inputs if given[0].kind != "image"]):
            try:
                self._run_video(source, stem)
            except ImageError as error:
                self.summary.add_failure(str(error))
            except OSError as error:
                self.summary.add_failure(_write_error(error))

    def _run_images(self, images: Sequence[tuple[MediaSource, Path]]) -> None:
        failed: list[str] = []

        def read() -> Iterator[Frame]:
            for source, stem in self._until_stopped(images):
                self.last_id += 1
                try:
                    yield Frame(source, stem, self.last_id, read_image(source.path, self.value_range))
                except ImageError as error:
                    failed.append(str(error))
                    self.summary.add_failure(str(error))

        def finished() -> Iterator[object]:
            yield from self._render(read())
            yield from failed  # unreadable images count as progress

        for result in track(finished(), len(images), "images"):
            if isinstance(result, Rendered):
                self.summary.images += 1
                self._record(result)

    def _run_video(self, source: MediaSource, stem: Path) -> None:
        colors = writer = None
        with contextlib.ExitStack() as stack:
            reader = stack.enter_context(VideoReader(source))
            if "overlay" in self.save:
                from mrcnn_jax.visualize import ColorIndices  # here, because it takes long to import

                colors = ColorIndices()
                writer = stack.enter_context(writers.VideoWriter(Path(f"{stem}.mp4"), reader.frame_rate))
            first_id = self.last_id
            results = self._render(self._read_frames(reader, source, stem), colors)
            for result in track(results, reader.num_frames, f"frames of {reader.title}"):
                self.summary.frames += 1
                self._record(result)
                if writer is not None and result.overlay is not None:
                    try:
                        writer.write(result.number or 0, result.overlay)
                    except OSError as error:
                        self.summary.add_failure(_write_error(error))
                        writer = None  # the other results of the video are still written
            message = reader.missing_frames(self.last_id - first_id)
        if message is not None and self.stop.number is None:
            self.summary.add_failure(message)

    def _read_frames(self, reader: VideoReader, source: MediaSource, stem: Path) -> Iterator[Frame]:
        for number, pixels in self._until_stopped(reader.frames()):
            self.last_id += 1
            yield Frame(source, Path(f"{stem}.frames", f"{number:06}"), self.last_id, pixels, number)

    def _until_stopped(self, items: Iterable[T]) -> Iterator[T]:
        for item in items:
            if self.stop.number is not None:
                return
            yield item

    def _record(self, result: Rendered) -> None:
        self.summary.instances += result.num_instances
        self.summary.full += result.full
        for failure in result.failures:
            self.summary.add_failure(failure)
        if self.results is not None:
            self.results.add(result.records)

    def _render(self, frames: Iterator[Frame], colors: ColorIndices | None = None) -> Iterator[Rendered]:
        """Predict on `frames` and write their files on threads; at most a few batches are in memory.

        With `colors`, which needs the frames of a video in order, instances have the colors that it assigns.
        """
        pending: dict[int, Frame] = {}

        def pixels() -> Iterator[NDArray[np.uint8]]:
            for index, frame in enumerate(frames):
                pending[index] = frame
                yield frame.pixels

        def predicted() -> Iterator[tuple[Frame, Prediction, Prediction, list[int] | None]]:
            for index, prediction in self.predict.stream(pixels()):
                selected = prediction[prediction.scores >= self.threshold]
                indices = None if colors is None else colors.assign(selected)
                yield pending.pop(index), prediction, selected, indices

        return map_on_threads(lambda work: self._finish(*work), predicted(), min(4, os.cpu_count() or 1))

    def _finish(self, frame: Frame, prediction: Prediction, selected: Prediction, colors: list[int] | None) -> Rendered:
        """Write the files of a frame; runs on a thread. `selected` are the instances of at least the threshold."""
        fields = {"image_id": frame.image_id, "file_name": frame.source.path}
        fields |= {} if frame.number is None else {"frame": frame.number}
        files = result_files(frame.source, frame.stem)
        records, overlay, failures = [], None, []
        for kind in self.save:
            try:
                if kind == "coco":
                    found = zip(prediction.to_coco(frame.image_id), prediction.names, strict=True)
                    records = [{**record, **fields, "category": name} for record, name in found]
                elif kind == "json":
                    writers.write_json(files[kind], selected, fields)
                elif kind == "mask":
                    writers.write_image(files[kind], writers.instance_map(selected))
                else:
                    overlay = self._draw(frame, selected, colors)
            except OSError as error:
                failures.append(_write_error(error))
        return Rendered(frame.number, records, len(selected), prediction.full, overlay, failures)

    def _draw(self, frame: Frame, selected: Prediction, colors: list[int] | None) -> NDArray[np.uint8] | None:
        """Return the overlay of a video frame; write that of an image and return None."""
        from mrcnn_jax import visualize  # here, because it takes long to import

        overlay = visualize.draw(frame.pixels, selected, threshold=self.threshold, colors=colors)
        if frame.number is not None:
            return overlay
        writers.write_image(result_files(frame.source, frame.stem)["overlay"], overlay)
        return None


def result_files(source: MediaSource, stem: Path) -> dict[str, Path]:
    """Return the result files of an image by kind of `--save`."""
    overlay = ".jpg" if source.path.lower().endswith((".jpg", ".jpeg")) else ".png"
    suffixes = {"overlay": overlay, "json": ".json", "mask": ".mask.png"}
    return {kind: Path(f"{stem}{suffix}") for kind, suffix in suffixes.items()}


def _write_error(error: OSError) -> str:
    """Return the message about a file that could not be written. Raises `error` itself if the disk is full."""
    if error.errno in DISK_FULL:
        raise error
    return f"{error.filename}: {error.strerror}; it is not written"
