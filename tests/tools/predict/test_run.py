"""Prediction on files: results, unreadable files, overwriting, interruption."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mrcnn_jax.config import Config, DataConfig, EvalConfig, ModelConfig
from mrcnn_jax.data import image_files
from mrcnn_jax.data.annotations import ImageEntry
from mrcnn_jax.errors import ConfigError, Interrupted
from mrcnn_jax.inference import detector
from mrcnn_jax.inference.postprocess import Prediction
from mrcnn_jax.inference.predictor import Predictor
from mrcnn_jax.structures import Detections
from mrcnn_jax.tools.predict import sources, writers
from mrcnn_jax.tools.predict.run import predict_files


class FakePredictor:
    """Detects the left half of every image, and the right half at a low score. Swaps pairs of images of two sizes."""

    config = SimpleNamespace(model=SimpleNamespace(mask=object()))

    def __init__(self, after=lambda index: None, full=False):
        self.after = after  # called with the index of each image that was read
        self.full = full

    def stream(self, images):
        held = []
        for index, image in enumerate(images):
            height, width = image.shape[:2]
            held.append((index, self.prediction(height, width)))
            self.after(index)
            if len(held) == 2:
                same = held[0][1].image_size == held[1][1].image_size
                yield from held if same else reversed(held)
                held = []
        yield from held

    def prediction(self, height, width):
        return Prediction(
            image_size=(height, width),
            boxes=np.array([[0, 0, width // 2, height], [width // 2, 0, width, height]], np.float32),
            scores=np.array([0.8, 0.3], np.float32),
            labels=np.array([1, 1], np.int32),
            category_ids=np.array([17, 17]),
            names=("cat", "cat"),
            mask_probabilities=np.ones((2, 28, 28), np.float32),
            full=self.full,
        )


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / name for name in ("a.jpg", "broken.png", "b.png", "missing.png", "c.webp")]
    for i, path in enumerate(paths):
        if path.stem == "broken":
            path.write_bytes(b"no image")
        elif path.stem != "missing":
            cv2.imwrite(str(path), np.full((600 + i, 700, 3), 50 * i, np.uint8))
    return paths


def read_json(path):
    return json.loads(path.read_text())


def file_names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_overlays_and_results_of_readable_files(files, tmp_path, capsys, caplog):
    output = tmp_path / "out" / "deep"
    summary = predict_files(FakePredictor(), files, output)
    assert [Path(message.split(":")[0]).name for message in summary.failures] == ["broken.png", "missing.png"]
    assert [record.message for record in caplog.records] == summary.failures
    assert read_json(output / "summary.json") == {
        "complete": True,
        "images": 3,
        "frames": 0,
        "instances": 3,
        "full": 0,
        "failures": summary.failures,
    }
    assert file_names(output) == ["a.jpg", "b.png", "c.png", "results.json", "summary.json"]
    results = read_json(output / "results.json")
    identified = {(record["image_id"], Path(record["file_name"]).name) for record in results}
    assert identified == {(1, "a.jpg"), (3, "b.png"), (5, "c.webp")}
    assert {(record["category_id"], record["category"]) for record in results} == {(17, "cat")}
    assert sorted(record["score"] for record in results) == pytest.approx([0.3] * 3 + [0.8] * 3)
    [strong] = [record for record in results if record["image_id"] == 3 and record["score"] > 0.5]
    mask = coco_mask.decode(strong["segmentation"])
    assert mask.shape == (602, 700)
    assert mask[300].tolist() == [1] * 350 + [0] * 350
    drawn = cv2.imread(str(output / "b.png"))
    assert drawn.shape == (602, 700, 3)
    assert np.all(drawn[300, 600] == 100)  # outside the instance nothing changes
    assert np.any(drawn[300, 100] != 100)
    assert "5/5 images" in capsys.readouterr().out


def test_images_with_the_maximum_number_of_detections_are_counted(files, tmp_path, caplog):
    summary = predict_files(FakePredictor(full=True), [files[0], files[2]], tmp_path / "out", save=["coco"])
    assert summary.full == read_json(tmp_path / "out" / "summary.json")["full"] == 2
    assert caplog.messages[0].startswith("2 of 2 images have as many detections as model.box.max_detections allows; ")
    caplog.clear()
    assert predict_files(FakePredictor(), files[:1], tmp_path / "out", save=["coco"]).full == 0
    assert caplog.messages == []


def test_json_and_mask_files(files, tmp_path):
    output = tmp_path / "out"
    predict_files(FakePredictor(), files[:1], output, save=["json", "mask"])
    assert file_names(output) == ["a.json", "a.mask.png", "summary.json"]
    written = read_json(output / "a.json")
    assert (written["file_name"], written["image_id"], written["height"], written["width"]) == (
        str(files[0]),
        1,
        600,
        700,
    )
    [instance] = written["instances"]
    assert instance["name"] == "cat"
    assert instance["score"] == pytest.approx(0.8)
    assert instance["box"] == [0, 0, 350, 600]
    numbers = cv2.imread(str(output / "a.mask.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(numbers, coco_mask.decode(instance["mask"]))
    assert numbers[300, [0, 349, 350]].tolist() == [1, 1, 0]
    predict_files(FakePredictor(), files[:1], output, save=["mask"], threshold=0.2)  # overwrites its own results
    numbers = cv2.imread(str(output / "a.mask.png"), cv2.IMREAD_UNCHANGED)
    assert numbers[300, [0, 349, 350]].tolist() == [1, 1, 2]


def test_no_readable_input_gives_empty_results(files, tmp_path):
    (tmp_path / "empty").mkdir()
    summary = predict_files(FakePredictor(), [files[1], tmp_path / "empty", tmp_path / "*.mov"], tmp_path / "out")
    assert [Path(message.split(":")[0]).name for message in summary.failures] == ["empty", "*.mov", "broken.png"]
    assert read_json(tmp_path / "out" / "results.json") == []


def test_results_of_a_folder_keep_its_subfolders(files, tmp_path):
    inside = tmp_path / "photos" / "old"
    inside.mkdir(parents=True)
    for name in ("photos/a.jpg", "photos/old/a.jpg"):
        (tmp_path / name).write_bytes(files[0].read_bytes())
    for _ in range(2):  # the second time, the results of the first are in the folder
        summary = predict_files(FakePredictor(), [tmp_path / "photos"], tmp_path / "photos" / "found")
        assert summary.images == 2
        assert file_names(tmp_path / "photos" / "found") == ["a.jpg", "old/a.jpg", "results.json", "summary.json"]


@pytest.mark.parametrize("output", [".", "link"])
def test_inputs_are_not_overwritten(files, tmp_path, output):
    (tmp_path / "link").symlink_to(tmp_path)
    before = files[0].read_bytes()
    with pytest.raises(ConfigError, match=r"a\.jpg is an input.*--output"):
        predict_files(FakePredictor(), [files[0]], tmp_path / output)
    assert files[0].read_bytes() == before


def test_files_of_other_programs_are_not_overwritten(files, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    (output / "b.png").write_text("precious")
    with pytest.raises(ConfigError, match=r"b\.png.*no earlier prediction"):
        predict_files(FakePredictor(), [files[0], files[2]], output)
    assert file_names(output) == ["b.png"]
    with pytest.raises(ConfigError, match="is a file, not a folder; give another --output"):
        predict_files(FakePredictor(), [files[0]], files[2])


@pytest.mark.parametrize("save", [[""], ["overlay", "png"], []])
def test_unknown_kinds_to_save_are_refused(files, tmp_path, save):
    with pytest.raises(ConfigError, match="overlay, coco, json, mask"):
        predict_files(FakePredictor(), files, tmp_path / "out", save=save)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("threshold", [50, -0.1, float("nan")])
def test_invalid_threshold_is_refused(files, tmp_path, threshold):
    with pytest.raises(ConfigError, match=r"--threshold=.*: scores are from 0 to 1; 50 % is 0\.5"):
        predict_files(FakePredictor(), files, tmp_path / "out", threshold=threshold)
    assert not (tmp_path / "out").exists()


def test_unreadable_images_have_the_messages_of_check(tmp_path):
    heads = {"a.heic": bytes(4) + b"ftypheic", "b.jpg": b"", "c.png": b"<html>", "d.tif": b"II*\0" + bytes(50)}
    for name, head in heads.items():
        (tmp_path / name).write_bytes(head)
    inputs = [tmp_path / name for name in (*heads, "B.JPG")]
    summary = predict_files(FakePredictor(), inputs, tmp_path / "out", save=["coco"])
    reasons = [message.partition(": ")[2] for message in summary.failures]
    expected = [
        image_files.check_image(head, ImageEntry(1, name, 9, 9, [])).refusal.item.partition(": ")[2]
        for name, head in heads.items()
    ]
    assert reasons[:-1] == expected
    assert reasons[-1] == "No such file or directory; b.jpg exists, which differs in upper and lower case"


def test_mask_files_of_a_model_without_masks_are_refused(files, tmp_path):
    predictor = FakePredictor()
    predictor.config = SimpleNamespace(model=SimpleNamespace(mask=None))
    with pytest.raises(ConfigError, match="boxes only"):
        predict_files(predictor, files, tmp_path / "out", save=["mask"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_finishes_the_images_that_were_read(files, tmp_path, number):
    before = signal.getsignal(number)

    def interrupt(index):
        if index == 1:
            os.kill(os.getpid(), number)

    output = tmp_path / "out"
    with pytest.raises(Interrupted, match="stopped after 2 instances in 2 images; ") as stopped:
        predict_files(FakePredictor(after=interrupt), [files[0], files[2], files[4]], output)
    assert stopped.value.exit_status == 128 + number
    assert file_names(output) == ["a.jpg", "b.png", "results.json", "summary.json"]
    assert {record["image_id"] for record in read_json(output / "results.json")} == {1, 2}
    assert read_json(output / "summary.json")["complete"] is False
    assert signal.getsignal(number) is before


def test_second_signal_stops_at_once_and_leaves_valid_files(files, tmp_path):
    def interrupt(index):
        if index:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as stopped:
        predict_files(FakePredictor(after=lambda index: [interrupt(index) for _ in range(2)]), files, tmp_path / "out")
    assert not isinstance(stopped.value, Interrupted)
    assert read_json(tmp_path / "out" / "results.json") == []
    assert read_json(tmp_path / "out" / "summary.json")["complete"] is False


def numbered_frame(number):
    """A 96x128 frame whose left half has brightness `number`; ten stripes in the right half are the bits of it."""
    frame = np.full((96, 128, 3), number % 250, np.uint8)
    frame[:, 64:] = 0
    for bit in range(10):
        frame[16:80, 64 + 6 * bit : 70 + 6 * bit] = 255 * (number >> bit & 1)
    return frame


def read_numbers(path, scale=1):
    """The numbers drawn by `numbered_frame` on the frames of a video, and its frame rate."""
    capture = cv2.VideoCapture(str(path))
    numbers = []
    while True:
        success, frame = capture.read()
        if not success:
            return numbers, capture.get(cv2.CAP_PROP_FPS)
        bits = [frame[48 * scale, (67 + 6 * bit) * scale].mean() > 127 for bit in range(10)]
        numbers.append(sum(1 << bit for bit, on in enumerate(bits) if on))


def write_video(path, count, rate=30000 / 1001, codec="MJPG"):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), rate, (128, 96))
    assert writer.isOpened()
    for number in range(count):
        writer.write(numbered_frame(number))
    writer.release()
    return path


def detect_brightness(images, image_sizes):
    """Replaces the network: one detection per image, whose score is the brightness of the first pixel."""
    count = len(images)
    return Detections(
        boxes=np.tile(np.array([8, 8, 56, 88], np.float32), (count, 1, 1)),
        scores=(images[:, 0, 0, :1] / 255).astype(np.float32),
        classes=np.ones((count, 1), np.int32),
        masks=np.ones((count, 1, 28, 28), np.float32),
        keypoints=np.zeros((count, 1, 0, 3), np.float32),
        valid=np.ones((count, 1), bool),
        truncated=np.zeros(count, bool),
    )


@pytest.mark.medium
def test_overlay_video_has_the_frames_and_the_rate_of_its_input(tmp_path, monkeypatch):
    monkeypatch.setattr(detector, "compile_detect", lambda model, variables: detect_brightness)
    config = Config(
        model=ModelConfig(num_classes=1),
        data=DataConfig(buckets=((96, 128),), shortest_edge_eval=96, longest_edge=128),
        eval=EvalConfig(batch_size=7),  # does not divide 300 frames
    )
    path = write_video(tmp_path / "walk.avi", 300)
    output = tmp_path / "out"
    summary = predict_files(Predictor(config, {}), [path], output)
    assert (summary.complete, summary.images, summary.frames, summary.failures) == (True, 0, 300, [])
    assert file_names(output) == ["results.json", "summary.json", "walk.mp4"]
    shown, rate = read_numbers(output / "walk.mp4", scale=4)  # small images are enlarged
    assert shown == list(range(300))
    assert rate == pytest.approx(30000 / 1001, abs=0.01)
    results = read_json(output / "results.json")
    assert [record["frame"] for record in results] == list(range(300))
    assert [record["image_id"] for record in results] == list(range(1, 301))
    assert {record["file_name"] for record in results} == {str(path)}
    scores = [round(255 * record["score"]) for record in results]  # each frame has its own score
    np.testing.assert_allclose(scores, np.arange(300) % 250, atol=4)
    assert summary.instances == sum(record["score"] >= 0.5 for record in results)


def test_result_files_of_a_video_and_an_image_of_the_same_name(tmp_path, files):
    output = tmp_path / "out"
    path = write_video(tmp_path / "a.mov", 3, codec="mp4v")
    predict_files(FakePredictor(), [path, files[0]], output, save=["overlay", "json", "mask", "coco"])
    frames = [f"a.frames/00000{i}.{suffix}" for i in range(3) for suffix in ("json", "mask.png")]
    image = ["a-2.jpg", "a-2.json", "a-2.mask.png"]
    assert file_names(output) == sorted([*frames, *image, "a.mp4", "results.json", "summary.json"])
    identified = {(record["image_id"], record.get("frame")) for record in read_json(output / "results.json")}
    assert identified == {(1, None), (2, 0), (3, 1), (4, 2)}  # images come first
    assert read_json(output / "a.frames" / "000001.json")["frame"] == 1


def test_files_that_cannot_be_written_are_reported(tmp_path, files):
    """One result of each kind is blocked by a folder; one video has a rate that MPEG-4 cannot represent."""
    odd = write_video(tmp_path / "odd.avi", 3, rate=1000 / 15)
    lost = write_video(tmp_path / "lost.avi", 3)
    output = tmp_path / "out"
    blocked = [output / name for name in ("a.jpg", "b.mask.png", "c.json", "lost.mp4")]
    predict_files(FakePredictor(), [files[0]], output, save=["coco"])  # marks the folder as an earlier output
    for path in blocked:
        path.mkdir()
    inputs = [files[0], files[2], files[4], lost, odd]
    summary = predict_files(FakePredictor(), inputs, output, save=["overlay", "coco", "json", "mask"])
    failures = sorted(summary.failures)
    assert [message.split(":")[0] for message in failures] == [str(path) for path in blocked]
    assert failures[0].endswith("Is a directory; it is not written")
    assert (summary.complete, summary.images, summary.frames) == (True, 3, 6)
    assert read_json(output / "summary.json")["failures"] == summary.failures
    written = {"a.json", "a.mask.png", "b.png", "b.json", "c.png", "c.mask.png", "odd.mp4"}
    assert written <= set(file_names(output))
    assert len(read_json(output / "results.json")) == 2 * (3 + 6)
    shown, rate = read_numbers(output / "odd.mp4", scale=4)
    assert shown == [0, 1, 2]
    assert rate == pytest.approx(1000 / 15, abs=0.002)


def test_a_full_disk_ends_the_prediction(tmp_path, files, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "a.json")

    monkeypatch.setattr(writers, "write_json", full)
    with pytest.raises(OSError, match="No space left"):
        predict_files(FakePredictor(), files, tmp_path / "out", save=["json"])
    assert not read_json(tmp_path / "out" / "summary.json")["complete"]


def test_a_second_prediction_into_the_same_folder_is_refused(files, tmp_path):
    output = tmp_path / "out"

    def second(index):
        with pytest.raises(ConfigError, match=f"--output={output}: another prediction is writing there"):
            predict_files(FakePredictor(), [files[2]], output, save=["coco"])
        predict_files(FakePredictor(), [files[2]], tmp_path / "other", save=["coco"])

    assert predict_files(FakePredictor(second), [files[0]], output, save=["coco"]).complete
    assert len(read_json(output / "results.json")) == 2
    assert predict_files(FakePredictor(), [files[2]], output, save=["coco"]).complete  # the lock is released


@pytest.mark.medium
def test_killed_prediction_releases_its_lock(files, tmp_path):
    (tmp_path / "out").mkdir()
    code = (
        "import sys, time, pathlib; from mrcnn_jax.runtime import files\n"
        f"with files.folder_lock(pathlib.Path({str(tmp_path / 'out')!r}), wait=False) as free:\n"
        "    print(free, flush=True); time.sleep(99)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "True\n"
        with pytest.raises(ConfigError, match="another prediction"):
            predict_files(FakePredictor(), [files[0]], tmp_path / "out", save=["coco"])
        other.kill()
    assert predict_files(FakePredictor(), [files[0]], tmp_path / "out", save=["coco"]).complete


def test_truncated_video_is_read_as_far_as_possible_and_reported(tmp_path):
    path = write_video(tmp_path / "cut.avi", 100)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.mp4").write_bytes(b"no video")
    good = write_video(tmp_path / "good.avi", 5)
    output = tmp_path / "out"
    summary = predict_files(FakePredictor(), [path, tmp_path / "text.mp4", good], output)
    shown, _ = read_numbers(output / "cut.mp4", scale=4)
    assert 20 < len(shown) < 80
    assert shown == list(range(len(shown)))
    assert summary.frames == len(shown) + 5
    assert summary.failures == [
        f"{path}: only the first {len(shown)} of 100 frames can be read",
        f"{tmp_path / 'text.mp4'}: not a video that can be decoded",
    ]
    assert file_names(output) == ["cut.mp4", "good.mp4", "results.json", "summary.json"]


class Camera:
    """A cv2.VideoCapture that returns numbered frames 0.25 s apart and states 10 frames per second."""

    def __init__(self, clock, count=1000):
        self.clock, self.count, self.num_read = clock, count, 0

    def __call__(self, which):
        assert which == 3
        return self

    def isOpened(self):
        return self.count > 0

    def get(self, prop):
        return {cv2.CAP_PROP_FPS: 10.0, cv2.CAP_PROP_FRAME_COUNT: -1.0}[prop]

    def read(self):
        if self.num_read == self.count:
            return False, None
        self.num_read += 1
        self.clock.now += 0.25
        return True, numbered_frame(self.num_read)

    def release(self):
        pass


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(sources.time, "monotonic", lambda: clock.now)
    return clock


def replace_camera(monkeypatch, camera):
    """Replace cv2.VideoCapture for camera numbers, not for files."""
    monkeypatch.setattr(
        sources.cv2,
        "VideoCapture",
        lambda what, real=cv2.VideoCapture: (camera if isinstance(what, int) else real)(what),
    )


def test_camera_is_read_until_ctrl_c_and_its_video_runs_in_real_time(tmp_path, monkeypatch, clock, capsys):
    replace_camera(monkeypatch, Camera(clock))
    interrupted = FakePredictor(after=lambda index: os.kill(os.getpid(), signal.SIGINT) if index == 3 else None)
    with pytest.raises(Interrupted, match="stopped after 4 instances in 4 frames; "):
        predict_files(interrupted, ["3"], tmp_path / "out")
    shown, rate = read_numbers(tmp_path / "out" / "camera-3.mp4", scale=4)
    assert rate == 10
    assert shown == [1, 1, 2, 2, 2, 3, 3, 4]  # skipped frames repeat the last one
    assert [record["frame"] for record in read_json(tmp_path / "out" / "results.json")[::2]] == [0, 2, 5, 7]


def test_failing_cameras_are_reported(tmp_path, monkeypatch, clock):
    replace_camera(monkeypatch, Camera(clock, count=0))
    summary = predict_files(FakePredictor(), ["3"], tmp_path / "out")
    assert summary.failures == [
        "camera 3: it cannot be opened; check that it is connected and that you may read /dev/video3"
    ]
    replace_camera(monkeypatch, Camera(clock, count=2))
    summary = predict_files(FakePredictor(), ["3"], tmp_path / "out")
    assert summary.failures == ["camera 3: no more frames after 2"]
    assert summary.frames == 2
