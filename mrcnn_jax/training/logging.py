"""What a run says while it trains: lines or a progress display, metrics.jsonl, TensorBoard."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from datetime import timedelta
from typing import Any

from etils import epath

from mrcnn_jax import paths

METRICS = "metrics.jsonl"
_SECONDS_BETWEEN_UPLOADS = 60.0
LATEST = {"learning_rate", "skipped"}  # reported as they are now; of everything else the mean
INSTALL = "pip install 'mrcnn-jax[viz]'"


class Sink:
    """A place where metrics go; each takes of them what it can show."""

    def advance(self, step: int) -> None:
        """`step` steps are done."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of the steps up to `step`."""

    def measured(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record what was measured on held-back images after `step` steps."""

    def measuring(self) -> AbstractContextManager[object]:
        """What happens within has the terminal to itself."""
        return nullcontext()

    def close(self) -> None:
        """Nothing more will come."""


class MetricsLog:
    """Gathers the metrics of every step and hands their means to the sinks every `every` steps.

    Adds `images_per_second` and `data_wait_fraction`, the part of the time that was spent waiting for batches. The
    time of compilation counts in neither.
    """

    def __init__(self, sinks: list[Sink], *, every: int, last_step: int, batch_size: int):
        self._sinks, self._every, self._last_step, self._batch_size = sinks, every, last_step, batch_size
        self._reset()

    def _reset(self) -> None:
        self._values: dict[str, list[float]] = {}
        self._steps, self._waited, self._excluded, self._since = 0, 0.0, 0.0, time.perf_counter()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time inside is time spent waiting for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def exclude(self, seconds: float) -> None:
        """Leave `seconds` (of compilation) out of the rates."""
        self._excluded += seconds

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics of the training step after which `step` steps are done."""
        self._steps += 1
        for name, value in metrics.items():
            self._values.setdefault(name, []).append(float(value))
        for sink in self._sinks:
            sink.advance(step)
        if step % self._every == 0 or step == self._last_step:
            self._flush(step, metrics)

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Time inside is spent on held-back images, and left out of the rates."""
        start = time.perf_counter()
        with ExitStack() as stack:
            for sink in self._sinks:
                stack.enter_context(sink.measuring())
            yield
        self.exclude(time.perf_counter() - start)

    def measured(self, step: int, metrics: Mapping[str, float]) -> None:
        """What was measured on held-back images after `step` steps."""
        for sink in self._sinks:
            sink.measured(step, metrics)

    def _flush(self, step: int, metrics: Mapping[str, float]) -> None:
        means = {name: sum(values) / len(values) for name, values in self._values.items()}
        for name in LATEST.intersection(metrics):
            means[name] = float(metrics[name])
        seconds = max(time.perf_counter() - self._since - self._excluded, 1e-9)
        means["images_per_second"] = self._steps * self._batch_size / seconds
        means["data_wait_fraction"] = min(self._waited / seconds, 1.0)
        for sink in self._sinks:
            sink.write(step, means)
        self._reset()

    def __enter__(self) -> MetricsLog:
        self._reset()
        return self

    def __exit__(self, *_: object) -> None:
        for sink in self._sinks:
            sink.close()


class Lines(Sink):
    """One plain line for each report, with the time that is left at the rate of this report."""

    def __init__(self, steps: int, batch_size: int):
        self._steps, self._batch_size = steps, batch_size

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        seconds = (self._steps - step) * self._batch_size / metrics["images_per_second"]
        left = timedelta(seconds=round(seconds))
        print(f"step {step}/{self._steps}  {describe(metrics)}  {left} left", flush=True)

    def measured(self, step: int, metrics: Mapping[str, float]) -> None:
        print(f"step {step}/{self._steps}  {describe_measured(metrics)}", flush=True)


class ProgressDisplay(Sink):
    """A bar with the time that is left and, below it, the latest metrics; for a terminal."""

    def __init__(self, steps: int, start: int):
        from rich.console import Group
        from rich.live import Live
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn
        from rich.text import Text

        self._steps = steps
        columns = ("step", MofNCompleteColumn(), BarColumn(), TimeElapsedColumn(), "left", TimeRemainingColumn())
        self._progress = Progress(*columns)
        self._task = self._progress.add_task("", total=steps, completed=start)
        self._metrics = Text()
        self._live = Live(Group(self._progress, self._metrics))
        self._live.start()

    def advance(self, step: int) -> None:
        self._progress.update(self._task, completed=step)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self._metrics.plain = describe(metrics)

    def measured(self, step: int, metrics: Mapping[str, float]) -> None:
        self._live.console.print(f"step {step}/{self._steps}  {describe_measured(metrics)}", highlight=False)

    @contextmanager
    def measuring(self) -> Iterator[None]:
        self._live.stop()  # there can only be one display, and an evaluation has its own
        yield
        self._live.start()

    def close(self) -> None:
        self._live.stop()


class JsonLines(Sink):
    """One JSON object a line in workdir/metrics.jsonl; lines that a resumed run will write again are dropped.

    Objects of a remote store (gs://) cannot grow: there the whole file is written again, at most once a minute.
    """

    def __init__(self, workdir: epath.PathLike, start: int):
        self._path = epath.Path(workdir) / METRICS
        kept = []
        if self._path.is_file():
            content = self._path.read_bytes().decode(errors="replace")  # a power failure leaves any bytes at the end
            kept = [line + "\n" for line in content.splitlines() if _step_of(line) <= start]
            paths.write_text(self._path, "".join(kept))
        self._lines, self._written = kept, time.monotonic()
        self._file = None if paths.is_remote(self._path) else self._path.open("a")

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        line = json.dumps({"step": step, **metrics}) + "\n"
        if self._file is not None:
            self._file.write(line)
            self._file.flush()
            return
        self._lines.append(line)
        if time.monotonic() - self._written > _SECONDS_BETWEEN_UPLOADS:
            self._upload()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        else:
            self._upload()

    def _upload(self) -> None:
        paths.write_text(self._path, "".join(self._lines))
        self._written = time.monotonic()


class TensorBoard(Sink):
    """Scalars for TensorBoard in workdir/tensorboard.

    Not through tensorboardX's SummaryWriter: its thread ends at the first error, of a full disk for example, and who
    then fills its queue waits for ever.
    """

    def __init__(self, workdir: epath.PathLike, start: int):
        from tensorboardX import event_file_writer, record_writer, summary
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        folder = str(epath.Path(workdir) / "tensorboard")
        record_writer.directory_check(folder)
        self._event, self._scalar = Event, summary.scalar
        self._file = event_file_writer.EventsWriter(f"{folder}/events", f".{start}")
        # What an interrupted run wrote after its last checkpoint is purged: those steps come again.
        session = SessionLog(status=SessionLog.START)
        self._file.write_event(Event(wall_time=time.time(), step=start + 1, session_log=session))
        self._written = time.monotonic()

    def _add(self, name: str, value: float, step: int) -> None:
        self._file.write_event(self._event(wall_time=time.time(), step=step, summary=self._scalar(name, value)))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._add(_tag(name), value, step)
        if time.monotonic() - self._written > _SECONDS_BETWEEN_UPLOADS:
            self._file.flush()
            self._written = time.monotonic()

    def measured(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():  # their names have groups: bbox/AP, validation/loss
            self._add(name, value, step)

    def close(self) -> None:
        self._file.close()


def default_sinks(workdir: epath.PathLike, *, steps: int, start: int, batch_size: int) -> list[Sink]:
    """A display on a terminal or plain lines, metrics.jsonl, TensorBoard; says what is missing for which."""
    sinks: list[Sink] = [JsonLines(workdir, start)]
    try:
        sinks.append(TensorBoard(workdir, start))
    except ImportError:
        print(f"no TensorBoard files: tensorboardX is not installed ({INSTALL})", flush=True)
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        print(f"no TensorBoard files: {error}", flush=True)
    if not sys.stdout.isatty():
        return [*sinks, Lines(steps, batch_size)]
    try:
        return [*sinks, ProgressDisplay(steps, start)]
    except ImportError:
        print(f"no progress display: rich is not installed ({INSTALL})", flush=True)
        return [*sinks, Lines(steps, batch_size)]


def describe(metrics: Mapping[str, float]) -> str:
    """The metrics that a person follows, on one line."""
    parts = [f"loss {metrics['loss']:.4f}" if "loss" in metrics else "no finite loss"]
    losses = [f"{n[5:]} {v:.3f}" for n, v in metrics.items() if n.startswith("loss_")]
    if losses:
        parts[0] += f" ({', '.join(losses)})"
    if "learning_rate" in metrics:
        parts.append(f"lr {metrics['learning_rate']:.3g}")
    parts.append(f"{metrics['images_per_second']:.2f} images/s")
    parts.append(f"data wait {metrics['data_wait_fraction']:.0%}")
    if metrics.get("skipped"):
        parts.append(f"skipped {metrics['skipped']:.0f}")
    return "  ".join(parts)


def describe_measured(metrics: Mapping[str, float]) -> str:
    """The measurements on held-back images that a person follows, in a few words."""
    names = {"bbox/AP": "box AP", "segm/AP": "mask AP", "keypoints/AP": "keypoint AP"}
    names["validation/loss"] = "validation loss"
    return ", ".join(f"{name} {metrics[key]:.3f}" for key, name in names.items() if key in metrics)


def record_measured(workdir: epath.PathLike, step: int, metrics: Mapping[str, float]) -> None:
    """Add what was measured after the last step to the TensorBoard files, where there can be any."""
    with suppress(ImportError, FileExistsError, NotADirectoryError, PermissionError):
        board = TensorBoard(workdir, start=step)
        board.measured(step, metrics)
        board.close()


def _tag(name: str) -> str:
    """Losses and speeds get a group each in TensorBoard."""
    if name.startswith("loss"):
        return f"losses/{name}"
    return f"speed/{name}" if name in ("images_per_second", "data_wait_fraction") else f"train/{name}"


def _step_of(line: str) -> Any:
    """The step of a line; beyond all steps for the torn last line of a killed run."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")
