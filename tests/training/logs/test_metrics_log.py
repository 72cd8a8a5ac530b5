"""Metrics of a run: means, rates, files after a restart, memory."""

from __future__ import annotations

import json
import re
import struct
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from rich.console import Console

from mrcnn_jax.runtime import files
from mrcnn_jax.runtime.progress import track
from mrcnn_jax.training.logs import console as module
from mrcnn_jax.training.logs.console import ConsoleSink, MetricSink, ProgressSink
from mrcnn_jax.training.logs.json_lines import JsonLinesSink
from mrcnn_jax.training.logs.metrics_log import MetricsLog, default_sinks
from mrcnn_jax.training.logs.tensorboard import TensorBoardSink, write_final_evaluation
from mrcnn_jax.training.memory import PEAK_MEMORY, peak_memory

METRICS = {"loss": 1.5, "loss_box": 0.5, "learning_rate": 0.01, "images_per_second": 8.0, "data_wait_fraction": 0.25}


class Recorder(MetricSink):
    def __init__(self):
        self.advanced, self.written, self.found, self.shown, self.closed = [], [], [], [], False

    def advance(self, step):
        self.advanced.append(step)

    def write(self, step, metrics):
        self.written.append((step, dict(metrics)))

    def write_evaluation(self, step, metrics):
        self.found.append((step, metrics))

    def write_images(self, step, images):
        self.shown.append((step, images))

    def close(self):
        self.closed = True


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves only when it is called."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def advance(seconds):
        now[0] += seconds

    return advance


def test_means_and_rates(clock):
    sink = Recorder()
    with MetricsLog([sink], every=2, last_step=5, batch_size=4) as log:
        for step in range(1, 6):
            with log.waiting():
                clock(1.0)
            clock(3.0)
            if step == 1:
                clock(50.0)
                log.exclude(50.0)  # a compilation
            log.step(step, {"loss": step, "learning_rate": 0.1 * step})
    assert sink.advanced == [1, 2, 3, 4, 5]
    assert [step for step, _ in sink.written] == [2, 4, 5]
    assert [values["loss"] for _, values in sink.written] == [1.5, 3.5, 5.0]
    assert [values["learning_rate"] for _, values in sink.written] == pytest.approx([0.2, 0.4, 0.5])
    # two steps of four images in eight seconds, two of which were spent waiting
    assert [values["images_per_second"] for _, values in sink.written] == pytest.approx([1.0, 1.0, 1.0])
    assert [values["data_wait_fraction"] for _, values in sink.written] == pytest.approx([0.25, 0.25, 0.25])
    assert sink.closed


def test_plain_line(capsys):
    ConsoleSink(steps=100, batch_size=4).write(40, METRICS)
    # 60 steps of 4 images at 8 images a second: half a minute
    expected = "step 40/100  loss 1.5000 (box 0.500)  lr 0.01  8.00 images/s  data wait 25%  0:00:30 left\n"
    assert capsys.readouterr().out == expected


EVALUATION = {"validation/loss": 1.25, "validation/loss_box": 0.5, "bbox/AP": 0.31, "bbox/AP50": 0.5, "segm/AP": 0.29}


def test_evaluations_are_printed_and_their_time_is_excluded(clock, capsys):
    recorder = Recorder()
    with MetricsLog([recorder, ConsoleSink(100, 4)], every=2, last_step=100, batch_size=4) as log:
        clock(1.0)
        log.step(1, {"loss": 1.0})
        with log.evaluating():
            clock(500.0)
        log.write_evaluation(1, EVALUATION, {"7": b"an image"})
        clock(1.0)
        log.step(2, {"loss": 1.0})
    assert recorder.found == [(1, EVALUATION)]
    assert recorder.shown == [(1, {"7": b"an image"})]
    assert recorder.written[0][1]["images_per_second"] == pytest.approx(4.0)
    assert capsys.readouterr().out.splitlines()[0] == "step 1/100  box AP 0.310, mask AP 0.290, validation loss 1.250"


def test_json_lines_continue_at_the_checkpoint(tmp_path):
    first = JsonLinesSink(tmp_path, start=0)
    for step in (2, 4, 6):
        first.write(step, {"loss": float(step)})
    first.close()
    path = tmp_path / "metrics.jsonl"
    with path.open("a") as file:
        file.write('{"step": 8, "lo')  # killed while writing
    resumed = JsonLinesSink(tmp_path, start=4)
    resumed.write(6, {"loss": 60.0})
    resumed.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [{"step": 2, "loss": 2.0}, {"step": 4, "loss": 4.0}, {"step": 6, "loss": 60.0}]


def values(folder):
    """Yield (step, value) of every scalar and image in TensorBoard files: length, checksum, event, checksum."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    for path in folder.iterdir():
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = event_pb2.Event.FromString(data[12 : 12 + length])
            yield from ((event.step, value) for value in event.summary.value)
            data = data[16 + length :]


def scalars(folder):
    return [(value.tag, step, value.simple_value) for step, value in values(folder) if value.HasField("simple_value")]


def test_tensorboard_scalars(tmp_path):
    board = TensorBoardSink(tmp_path, start=0)
    board.write(3, {**METRICS, PEAK_MEMORY: 1.5})
    board.write_evaluation(3, {**EVALUATION, "bbox/APl": -1.0})
    board.close()
    found = scalars(tmp_path / "tensorboard")
    assert ("losses/loss", 3, 1.5) in found
    assert ("bbox/AP", 3, pytest.approx(0.31)) in found
    assert "bbox/APl" not in [name for name, _, _ in found]  # there are no large objects
    assert ("speed/images_per_second", 3, 8.0) in found
    assert ("memory/peak_memory_gib", 3, 1.5) in found
    assert ("train/learning_rate", 3, pytest.approx(0.01)) in found


def png(height, width):
    return cv2.imencode(".png", np.full((height, width, 3), (10, 120, 240), np.uint8))[1].tobytes()


def test_tensorboard_images_are_bounded_in_size_and_number(tmp_path):
    images = {f"image {i}": png(60, 90) for i in range(1, 13)} | {"image 0": png(1000, 3200)}
    write_final_evaluation(tmp_path, 5, EVALUATION, images)
    assert ("segm/AP", 5, pytest.approx(0.29)) in scalars(tmp_path / "tensorboard")
    found = {value.tag: value.image for step, value in values(tmp_path / "tensorboard") if value.HasField("image")}
    assert len(found) == 8
    for name, shape in {"found/image 0": (500, 1600, 3), "found/image 1": (60, 90, 3)}.items():
        shown = cv2.imdecode(np.frombuffer(found[name].encoded_image_string, np.uint8), cv2.IMREAD_COLOR)
        assert shown.shape == (found[name].height, found[name].width, 3) == shape
        np.testing.assert_allclose(shown.mean(axis=(0, 1)), (10, 120, 240), atol=3)


def test_invalid_image_is_skipped(tmp_path, caplog):
    write_final_evaluation(tmp_path, 5, EVALUATION, {"7": b"not an image", "8": png(1, 3200)})
    found = {value.tag: value.image for _, value in values(tmp_path / "tensorboard") if value.HasField("image")}
    assert {name: (image.height, image.width) for name, image in found.items()} == {"found/8": (1, 1600)}
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("image 7 is not in the TensorBoard files: ")


def test_tensorboard_write_error_does_not_end_the_training(tmp_path, monkeypatch, caplog):
    """A full disk, for example: logged once."""
    board = TensorBoardSink(tmp_path, start=0)
    board.write_evaluation(3, EVALUATION)

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(board._file, "write_event", fail)
    board.write(4, METRICS)
    board.write_images(4, {"7": png(60, 90)})
    board.close()
    assert caplog.messages == ["no more TensorBoard files are written: OSError: [Errno 28] No space left on device"]


class Device:
    def __init__(self, platform, peak=None):
        self.platform, self._peak = platform, peak

    def memory_stats(self):
        return None if self._peak is None else {"peak_bytes_in_use": self._peak, "bytes_in_use": 0}


def test_memory_is_that_of_the_fullest_device():
    assert peak_memory([Device("gpu", 2**30), Device("gpu", 3 * 2**30)]) == {PEAK_MEMORY: 3.0}
    assert peak_memory([Device("tpu")]) == {}  # no statistics


def test_memory_of_a_cpu_is_that_of_the_process():
    status = Path("/proc/self/status")
    if not status.is_file():
        pytest.skip("needs /proc/self/status")
    (kilobytes,) = re.findall(r"VmHWM:\s+(\d+) kB", status.read_text())
    assert peak_memory([Device("cpu")]) == {PEAK_MEMORY: pytest.approx(int(kilobytes) / 2**20, rel=0.1)}


def test_gauges_are_read_at_each_report(clock):
    recorder, asked = Recorder(), iter((0.5, 0.75))
    with MetricsLog([recorder], every=2, last_step=4, batch_size=4, gauges=lambda: {PEAK_MEMORY: next(asked)}) as log:
        for step in range(1, 5):
            clock(1.0)
            log.step(step, {"loss": 1.0})
    assert [metrics[PEAK_MEMORY] for _, metrics in recorder.written] == [0.5, 0.75]
    assert "  memory 0.8 GiB" in module.format_metrics(recorder.written[-1][1])


def test_progress_bar_on_a_terminal(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    sinks = default_sinks(tmp_path, steps=10, start=4, batch_size=4)
    assert isinstance(sinks[-1], ProgressSink)
    for sink in sinks:
        sink.advance(6)
        sink.write(6, METRICS)
        with sink.evaluating():
            assert list(track("abc", 3, "images evaluated")) == list("abc")  # has a progress bar of its own
        sink.write_evaluation(6, EVALUATION)
        sink.close()
    said = " ".join(capsys.readouterr().out.split())
    assert " 6/10" in said
    assert "loss 1.5000" in said
    assert "images evaluated" in said
    assert "step 6/10 box AP 0.310" in said


def test_progress_bar_is_redrawn_below_other_output(capsys, monkeypatch):
    monkeypatch.setattr("rich._console", Console(force_terminal=True, width=100))
    display = ProgressSink(steps=10, start=0)
    display.write(5, METRICS)
    with display.evaluating():
        print("a table of eight lines")
    display.write_evaluation(5, EVALUATION)
    display.close()
    _, _, after = capsys.readouterr().out.partition("a table of eight lines\n")
    before_the_bar, _, _ = after.partition("step")
    assert "\x1b[1A" not in before_the_bar  # the cursor goes up to write over lines
    assert "box AP 0.310" in after
    # The losses have a line of their own.
    assert re.search(r"loss 1\.5000 \(box 0\.500\)\s*\n\S*lr 0\.01", after)


def test_json_lines_in_a_remote_store(tmp_path, monkeypatch, clock):
    """Objects cannot be appended to: the file is replaced, at most once a minute and at the end."""
    monkeypatch.setattr(files, "is_remote", lambda path: True)
    monkeypatch.setattr(time, "monotonic", time.perf_counter)  # use the clock of the test for both
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 1.0}\n{"step": 9, "loss": 9.0}\n')
    lines = JsonLinesSink(tmp_path, start=4)
    lines.write(5, {"loss": 5.0})
    assert "5.0" not in path.read_text()
    clock(61.0)
    lines.write(6, {"loss": 6.0})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 5, 6]
    lines.write(7, {"loss": 7.0})
    lines.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 5, 6, 7]
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_line_counts_skipped_steps():
    assert "skipped" not in module.format_metrics({**METRICS, "skipped": 0.0})
    assert module.format_metrics({**METRICS, "skipped": 2.0}).endswith("skipped 2")
