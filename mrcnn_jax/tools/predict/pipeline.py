"""Pipeline of a prediction: reads images and frames, runs the model, and writes the results on threads."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from mrcnn_jax.errors import DISK_FULL, ImageError
from mrcnn_jax.inference.postprocess import Prediction
from mrcnn_jax.inference.predictor import Predictor, read_image
from mrcnn_jax.runtime.progress import track
from mrcnn_jax.runtime.threads import map_on_threads
from mrcnn_jax.tools.predict import writers
from mrcnn_jax.tools.predict.signals import StopSignal
from mrcnn_jax.tools.predict.sources import MediaSource, VideoReader
from mrcnn_jax.tools.predict.writers import Summary
from mrcnn_jax.visualize.color_indices import ColorIndices

T = TypeVar("T")


class Frame(NamedTuple):
    """An image, or a frame of a video or camera, to predict on."""

    source: MediaSource
    stem: Path  # of its result files, without suffix
    image_id: int
    pixels: NDArray[np.uint8]
    number: int | None = None  # in a video or camera

    @property
    def record_fields(self) -> dict[str, Any]:
        """Fields that identify the image in result files."""
        frame = {} if self.number is None else {"frame": self.number}
        return {"image_id": self.image_id, "file_name": self.source.path, **frame}


class Rendered(NamedTuple):
    """Results of a frame that remain to be written in order."""

    frame: Frame  # without its pixels
    records: list[dict[str, Any]]
    num_instances: int  # with a score of at least the threshold
    full: bool  # as many detections as the model allows
    overlay: NDArray[np.uint8] | None  # of a video frame
    failures: list[str]  # messages about files that could not be written


class Pipeline:
    """Prediction on images, then on videos and cameras, with common counts and image ids."""

    def __init__(
        self,
        predict: Predictor,
        save: Sequence[str],
        threshold: float,
        value_range: tuple[float, float] | None,
        stop: StopSignal,
        summary: Summary,
        results: writers.ResultsWriter | None,
    ):
        self._predict, self._save = predict, save
        self._threshold, self._value_range = threshold, value_range
        self._stop, self._summary, self._results = stop, summary, results
        self._last_id = 0

    def run(self, inputs: Sequence[tuple[MediaSource, Path]]) -> None:
        """Predict on `inputs`, given with the stems of their result files."""
        images = [(source, stem) for source, stem in inputs if source.kind == "image"]
        if images:
            self._run_images(images)
        for source, stem in inputs:
            if source.kind != "image" and self._stop.number is None:
                try:
                    self._run_video(source, stem)
                except ImageError as error:
                    self._summary.add_failure(str(error))
                except OSError as error:
                    self._summary.add_failure(_write_error(error))

    def _run_images(self, images: Sequence[tuple[MediaSource, Path]]) -> None:
        failed: list[str] = []

        def read() -> Iterator[Frame]:
            for source, stem in self._until_stopped(images):
                self._last_id += 1
                try:
                    yield Frame(source, stem, self._last_id, read_image(source.path, self._value_range))
                except ImageError as error:
                    failed.append(str(error))
                    self._summary.add_failure(str(error))

        def finished() -> Iterator[object]:
            yield from self._render(read())
            yield from failed  # unreadable images count as progress

        for result in track(finished(), len(images), "images"):
            if isinstance(result, Rendered):
                self._summary.images += 1
                self._record(result)

    def _run_video(self, source: MediaSource, stem: Path) -> None:
        with contextlib.ExitStack() as stack:
            reader = stack.enter_context(VideoReader(source))
            overlay = "overlay" in self._save
            writer = (
                stack.enter_context(writers.VideoWriter(Path(f"{stem}.mp4"), reader.frame_rate)) if overlay else None
            )
            first_id = self._last_id
            results = self._render(self._read_frames(reader, source, stem), ColorIndices())
            for result in track(results, reader.num_frames, f"frames of {reader.title}"):
                self._summary.frames += 1
                self._record(result)
                if writer is not None and result.overlay is not None:
                    try:
                        writer.write(result.frame.number or 0, result.overlay)
                    except OSError as error:
                        self._summary.add_failure(_write_error(error))
                        writer = None  # the other results of the video are still written
            message = reader.missing_frames(self._last_id - first_id)
        if message is not None and self._stop.number is None:
            self._summary.add_failure(message)

    def _read_frames(self, reader: VideoReader, source: MediaSource, stem: Path) -> Iterator[Frame]:
        for number, pixels in self._until_stopped(reader.frames()):
            self._last_id += 1
            yield Frame(source, Path(f"{stem}.frames", f"{number:06}"), self._last_id, pixels, number)

    def _until_stopped(self, items: Iterable[T]) -> Iterator[T]:
        for item in items:
            if self._stop.number is not None:
                return
            yield item

    def _record(self, result: Rendered) -> None:
        self._summary.instances += result.num_instances
        self._summary.full += result.full
        for failure in result.failures:
            self._summary.add_failure(failure)
        if self._results is not None:
            self._results.add(result.records)

    def _render(self, frames: Iterator[Frame], colors: ColorIndices | None = None) -> Iterator[Rendered]:
        """Predict on `frames` and write their files on threads; at most a few batches are in memory.

        With `colors`, which needs the frames of a video in order, instances have the colors that it assigns.
        """
        pending: dict[int, Frame] = {}

        def pixels() -> Iterator[NDArray[np.uint8]]:
            for index, frame in enumerate(frames):
                pending[index] = frame
                yield frame.pixels

        def predicted() -> Iterator[tuple[Frame, Prediction, list[int] | None]]:
            for index, prediction in self._predict.stream(pixels()):
                indices = None if colors is None else colors.assign(self._above_threshold(prediction))
                yield pending.pop(index), prediction, indices

        return map_on_threads(lambda work: self._finish(*work), predicted(), min(4, os.cpu_count() or 1))

    def _above_threshold(self, prediction: Prediction) -> Prediction:
        return prediction[prediction.scores >= self._threshold]

    def _finish(self, frame: Frame, prediction: Prediction, colors: list[int] | None) -> Rendered:
        """Write the files of a frame; runs on a thread."""
        selected = self._above_threshold(prediction)
        failures: list[str] = []
        overlay = None
        if "json" in self._save:
            with _collect_write_errors(failures):
                writers.write_json(Path(f"{frame.stem}.json"), selected, frame.record_fields)
        if "mask" in self._save:
            with _collect_write_errors(failures):
                writers.write_image(Path(f"{frame.stem}.mask.png"), writers.instance_map(selected))
        if "overlay" in self._save:
            with _collect_write_errors(failures):
                overlay = self._draw(frame, selected, colors)
        records = _coco_records(frame, prediction) if "coco" in self._save else []
        # A few batches of results may be waiting: do not keep their pixels.
        frame = frame._replace(pixels=frame.pixels[:0])
        return Rendered(frame, records, len(selected), prediction.full, overlay, failures)

    def _draw(self, frame: Frame, selected: Prediction, colors: list[int] | None) -> NDArray[np.uint8] | None:
        """Return the overlay of a video frame; write that of an image and return None."""
        from mrcnn_jax import visualize  # here, because it needs the extra `viz`

        overlay = visualize.draw(frame.pixels, selected, threshold=self._threshold, colors=colors)
        if frame.number is not None:
            return overlay
        writers.write_image(Path(f"{frame.stem}{overlay_suffix(frame.source)}"), overlay)
        return None


def overlay_suffix(source: MediaSource) -> str:
    """Return the suffix of an image's overlay: .jpg for JPEG files, else .png."""
    return ".jpg" if source.path.lower().endswith((".jpg", ".jpeg")) else ".png"


@contextlib.contextmanager
def _collect_write_errors(failures: list[str]) -> Iterator[None]:
    """Append a message to `failures` if a file cannot be written. A full disk still raises."""
    try:
        yield
    except OSError as error:
        failures.append(_write_error(error))


def _write_error(error: OSError) -> str:
    """Return the message about a file that could not be written. Raises `error` itself if the disk is full."""
    if error.errno in DISK_FULL:
        raise error
    return f"{error.filename}: {error.strerror}; it is not written"


def _coco_records(frame: Frame, prediction: Prediction) -> list[dict[str, Any]]:
    return [
        {**record, **frame.record_fields, "category": name}
        for record, name in zip(prediction.to_coco(frame.image_id), prediction.names, strict=True)
    ]
