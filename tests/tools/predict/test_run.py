"""Prediction on files: what is written, what cannot be read, what is not overwritten, how it ends early."""

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
from mrcnn_jax.tools.predict import run, sources
from mrcnn_jax.tools.predict.run import predict_files


class Fake:
    """Finds the left half of every picture (and, weakly, the right one); yields in pairs, swapped if sizes differ."""

    config = SimpleNamespace(model=SimpleNamespace(mask=object()))

    def __init__(self, after=lambda index: None, full=False):
        self.after = after  # called with the number of each picture that was read
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


def content(path):
    return json.loads(path.read_text())


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_pictures_and_results_of_the_readable_files(files, tmp_path, capsys, caplog):
    output = tmp_path / "out" / "deep"
    outcome = predict_files(Fake(), files, output)
    assert [Path(message.split(":")[0]).name for message in outcome.failures] == ["broken.png", "missing.png"]
    assert [record.message for record in caplog.records] == outcome.failures
    assert content(output / "summary.json") == {
        "complete": True,
        "images": 3,
        "frames": 0,
        "instances": 3,
        "full": 0,
        "failures": outcome.failures,
    }
    assert names(output) == ["a.jpg", "b.png", "c.png", "results.json", "summary.json"]
    results = content(output / "results.json")
    told = {(record["image_id"], Path(record["file_name"]).name) for record in results}
    assert told == {(1, "a.jpg"), (3, "b.png"), (5, "c.webp")}
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


def test_images_with_as_many_detections_as_there_may_be_are_counted(files, tmp_path, caplog):
    outcome = predict_files(Fake(full=True), [files[0], files[2]], tmp_path / "out", save=["coco"])
    assert outcome.full == content(tmp_path / "out" / "summary.json")["full"] == 2
    assert caplog.messages[0].startswith("2 of 2 images have as many detections as model.box.max_detections allows; ")
    caplog.clear()
    assert predict_files(Fake(), files[:1], tmp_path / "out", save=["coco"]).full == 0
    assert caplog.messages == []


def test_each_kind_of_result_is_written_when_asked_for(files, tmp_path):
    output = tmp_path / "out"
    predict_files(Fake(), files[:1], output, save=["json", "mask"])
    assert names(output) == ["a.json", "a.mask.png", "summary.json"]
    written = content(output / "a.json")
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
    predict_files(Fake(), files[:1], output, save=["mask"], threshold=0.2)  # its own results may be replaced
    numbers = cv2.imread(str(output / "a.mask.png"), cv2.IMREAD_UNCHANGED)
    assert numbers[300, [0, 349, 350]].tolist() == [1, 1, 2]


def test_nothing_readable_leaves_an_empty_result(files, tmp_path):
    (tmp_path / "empty").mkdir()
    outcome = predict_files(Fake(), [files[1], tmp_path / "empty", tmp_path / "*.mov"], tmp_path / "out")
    assert [Path(message.split(":")[0]).name for message in outcome.failures] == ["empty", "*.mov", "broken.png"]
    assert content(tmp_path / "out" / "results.json") == []


def test_a_folder_keeps_its_shape(files, tmp_path):
    inside = tmp_path / "photos" / "old"
    inside.mkdir(parents=True)
    for name in ("photos/a.jpg", "photos/old/a.jpg"):
        (tmp_path / name).write_bytes(files[0].read_bytes())
    for _ in range(2):  # the second time the results of the first lie within the folder
        outcome = predict_files(Fake(), [tmp_path / "photos"], tmp_path / "photos" / "found")
        assert outcome.images == 2
        assert names(tmp_path / "photos" / "found") == ["a.jpg", "old/a.jpg", "results.json", "summary.json"]


@pytest.mark.parametrize("output", [".", "link"])
def test_inputs_are_not_overwritten(files, tmp_path, output):
    (tmp_path / "link").symlink_to(tmp_path)
    before = files[0].read_bytes()
    with pytest.raises(ConfigError, match=r"a\.jpg is an input.*--output"):
        predict_files(Fake(), [files[0]], tmp_path / output)
    assert files[0].read_bytes() == before


def test_files_of_others_are_not_overwritten(files, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    (output / "b.png").write_text("precious")
    with pytest.raises(ConfigError, match=r"b\.png.*no earlier prediction"):
        predict_files(Fake(), [files[0], files[2]], output)
    assert names(output) == ["b.png"]
    with pytest.raises(ConfigError, match="is a file, not a folder; give another --output"):
        predict_files(Fake(), [files[0]], files[2])


@pytest.mark.parametrize("save", [[""], ["overlay", "png"], []])
def test_what_cannot_be_saved_is_refused(files, tmp_path, save):
    with pytest.raises(ConfigError, match="overlay, coco, json, mask"):
        predict_files(Fake(), files, tmp_path / "out", save=save)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("threshold", [50, -0.1, float("nan")])
def test_a_threshold_that_is_no_score_is_refused(files, tmp_path, threshold):
    with pytest.raises(ConfigError, match=r"--threshold=.*: scores are from 0 to 1; 50 % is 0\.5"):
        predict_files(Fake(), files, tmp_path / "out", threshold=threshold)
    assert not (tmp_path / "out").exists()


def test_pictures_that_cannot_be_read_are_named_as_check_names_them(tmp_path):
    found = {"a.heic": bytes(4) + b"ftypheic", "b.jpg": b"", "c.png": b"<html>", "d.tif": b"II*\0" + bytes(50)}
    for name, head in found.items():
        (tmp_path / name).write_bytes(head)
    inputs = [tmp_path / name for name in (*found, "B.JPG")]
    outcome = predict_files(Fake(), inputs, tmp_path / "out", save=["coco"])
    reasons = [message.partition(": ")[2] for message in outcome.failures]
    judged = [
        image_files.validate_image(head, ImageEntry(1, name, 9, 9, [])).refusal.culprit.partition(": ")[2]
        for name, head in found.items()
    ]
    assert reasons[:-1] == judged
    assert reasons[-1] == "No such file or directory; b.jpg is there; the names differ in upper and lower case"


def test_masks_of_a_model_without_are_refused(files, tmp_path):
    boxes = Fake()
    boxes.config = SimpleNamespace(model=SimpleNamespace(mask=None))
    with pytest.raises(ConfigError, match="boxes only"):
        predict_files(boxes, files, tmp_path / "out", save=["mask"])


def test_pictures_without_the_packages_for_them_are_refused_at_once(files, tmp_path, monkeypatch):
    find_spec = run.importlib.util.find_spec
    monkeypatch.setattr(
        run.importlib.util, "find_spec", lambda name: None if name == "supervision" else find_spec(name)
    )
    with pytest.raises(ConfigError, match=r"\[viz\]"):
        predict_files(Fake(), files[:1], tmp_path / "out")
    assert predict_files(Fake(), files[:1], tmp_path / "out", save=["coco", "json", "mask"]).images == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_what_is_done(files, tmp_path, number):
    before = signal.getsignal(number)

    def interrupt(index):
        if index == 1:
            os.kill(os.getpid(), number)

    output = tmp_path / "out"
    with pytest.raises(Interrupted, match="2 instances in 2 images until then") as stopped:
        predict_files(Fake(after=interrupt), [files[0], files[2], files[4]], output)
    assert stopped.value.exit_status == 128 + number
    assert names(output) == ["a.jpg", "b.png", "results.json", "summary.json"]
    assert {record["image_id"] for record in content(output / "results.json")} == {1, 2}
    assert content(output / "summary.json")["complete"] is False
    assert signal.getsignal(number) is before


def test_the_second_signal_ends_it_at_once_and_leaves_whole_files(files, tmp_path):
    def interrupt(index):
        if index:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as stopped:
        predict_files(Fake(after=lambda index: [interrupt(index) for _ in range(2)]), files, tmp_path / "out")
    assert not isinstance(stopped.value, Interrupted)
    assert content(tmp_path / "out" / "results.json") == []
    assert content(tmp_path / "out" / "summary.json")["complete"] is False


def pattern(number):
    """A frame of 96 x 128 whose ten stripes in the right half are the bits of its number; the rest is as bright."""
    frame = np.full((96, 128, 3), number % 250, np.uint8)
    frame[:, 64:] = 0
    for bit in range(10):
        frame[16:80, 64 + 6 * bit : 70 + 6 * bit] = 255 * (number >> bit & 1)
    return frame


def numbers_of(path, scale=1):
    """Numbers that `pattern` drew on the frames of a video; its rate."""
    capture = cv2.VideoCapture(str(path))
    found = []
    while True:
        there, frame = capture.read()
        if not there:
            return found, capture.get(cv2.CAP_PROP_FPS)
        bits = [frame[48 * scale, (67 + 6 * bit) * scale].mean() > 127 for bit in range(10)]
        found.append(sum(1 << bit for bit, on in enumerate(bits) if on))


def film(path, count, rate=30000 / 1001, codec="MJPG"):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), rate, (128, 96))
    assert writer.isOpened()
    for number in range(count):
        writer.write(pattern(number))
    writer.release()
    return path


def brightness(images, image_sizes):
    """In place of a network: finds one thing in each image, whose score is the brightness of the first pixel."""
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
def test_a_video_keeps_number_rate_and_order_of_its_frames(tmp_path, monkeypatch):
    monkeypatch.setattr(detector, "compile_detect", lambda model, variables: brightness)
    config = Config(
        model=ModelConfig(num_classes=1),
        data=DataConfig(buckets=((96, 128),), shortest_edge_eval=96, longest_edge=128),
        eval=EvalConfig(batch_size=7),  # 300 frames are no whole number of batches
    )
    path = film(tmp_path / "walk.avi", 300)
    output = tmp_path / "out"
    outcome = predict_files(Predictor(config, {}), [path], output)
    assert (outcome.complete, outcome.images, outcome.frames, outcome.failures) == (True, 0, 300, [])
    assert names(output) == ["results.json", "summary.json", "walk.mp4"]
    shown, rate = numbers_of(output / "walk.mp4", scale=4)  # small pictures are enlarged
    assert shown == list(range(300))
    assert rate == pytest.approx(30000 / 1001, abs=0.01)
    results = content(output / "results.json")
    assert [record["frame"] for record in results] == list(range(300))
    assert [record["image_id"] for record in results] == list(range(1, 301))
    assert {record["file_name"] for record in results} == {str(path)}
    scores = [round(255 * record["score"]) for record in results]  # what was found in a frame is told of that frame
    np.testing.assert_allclose(scores, np.arange(300) % 250, atol=4)
    assert outcome.instances == sum(record["score"] >= 0.5 for record in results)


def test_frames_have_files_of_their_own_beside_images(tmp_path, files):
    output = tmp_path / "out"
    path = film(tmp_path / "a.mov", 3, codec="mp4v")
    predict_files(Fake(), [path, files[0]], output, save=["overlay", "json", "mask", "coco"])
    frames = [f"a.frames/00000{i}.{suffix}" for i in range(3) for suffix in ("json", "mask.png")]
    image = ["a-2.jpg", "a-2.json", "a-2.mask.png"]
    assert names(output) == sorted([*frames, *image, "a.mp4", "results.json", "summary.json"])
    told = {(record["image_id"], record.get("frame")) for record in content(output / "results.json")}
    assert told == {(1, None), (2, 0), (3, 1), (4, 2)}  # images come first
    assert content(output / "a.frames" / "000001.json")["frame"] == 1


def test_what_cannot_be_written_is_named_and_the_rest_is_done(tmp_path, files):
    """Folders in the place of results, one of each kind; and a film of a rate that MPEG-4 cannot state."""
    odd = film(tmp_path / "odd.avi", 3, rate=1000 / 15)
    lost = film(tmp_path / "lost.avi", 3)
    output = tmp_path / "out"
    blocked = [output / name for name in ("a.jpg", "b.mask.png", "c.json", "lost.mp4")]
    predict_files(Fake(), [files[0]], output, save=["coco"])  # or the folders would be refused
    for path in blocked:
        path.mkdir()
    inputs = [files[0], files[2], files[4], lost, odd]
    outcome = predict_files(Fake(), inputs, output, save=["overlay", "coco", "json", "mask"])
    failures = sorted(outcome.failures)
    assert [message.split(":")[0] for message in failures] == [str(path) for path in blocked]
    assert failures[0].endswith("Is a directory; it is not written")
    assert (outcome.complete, outcome.images, outcome.frames) == (True, 3, 6)
    assert content(output / "summary.json")["failures"] == outcome.failures
    written = {"a.json", "a.mask.png", "b.png", "b.json", "c.png", "c.mask.png", "odd.mp4"}
    assert written <= set(names(output))
    assert len(content(output / "results.json")) == 2 * (3 + 6)
    shown, rate = numbers_of(output / "odd.mp4", scale=4)
    assert shown == [0, 1, 2]
    assert rate == pytest.approx(1000 / 15, abs=0.002)


def test_a_full_disk_ends_the_prediction(tmp_path, files, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "a.json")

    monkeypatch.setattr(run.writers, "write_json", full)
    with pytest.raises(OSError, match="No space left"):
        predict_files(Fake(), files, tmp_path / "out", save=["json"])
    assert not content(tmp_path / "out" / "summary.json")["complete"]


def test_a_second_prediction_into_the_same_folder_is_refused(files, tmp_path):
    output = tmp_path / "out"

    def second(index):
        with pytest.raises(ConfigError, match=f"--output={output}: another prediction is writing there"):
            predict_files(Fake(), [files[2]], output, save=["coco"])
        predict_files(Fake(), [files[2]], tmp_path / "other", save=["coco"])

    assert predict_files(Fake(second), [files[0]], output, save=["coco"]).complete
    assert len(content(output / "results.json")) == 2
    assert predict_files(Fake(), [files[2]], output, save=["coco"]).complete  # now it is free


@pytest.mark.medium
def test_a_prediction_that_was_killed_leaves_its_folder_free(files, tmp_path):
    (tmp_path / "out").mkdir()
    code = (
        "import sys, time, pathlib; from mrcnn_jax.runtime import files\n"
        f"with files.try_lock(pathlib.Path({str(tmp_path / 'out')!r})) as free: print(free, flush=True); time.sleep(99)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "True\n"
        with pytest.raises(ConfigError, match="another prediction"):
            predict_files(Fake(), [files[0]], tmp_path / "out", save=["coco"])
        other.kill()
    assert predict_files(Fake(), [files[0]], tmp_path / "out", save=["coco"]).complete


def test_a_truncated_video_gives_what_is_there_and_is_named(tmp_path):
    path = film(tmp_path / "cut.avi", 100)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.mp4").write_bytes(b"no video")
    good = film(tmp_path / "good.avi", 5)
    output = tmp_path / "out"
    outcome = predict_files(Fake(), [path, tmp_path / "text.mp4", good], output)
    shown, _ = numbers_of(output / "cut.mp4", scale=4)
    assert 20 < len(shown) < 80
    assert shown == list(range(len(shown)))
    assert outcome.frames == len(shown) + 5
    assert outcome.failures == [
        f"{path}: only the first {len(shown)} of 100 frames can be read",
        f"{tmp_path / 'text.mp4'}: not a video that can be decoded",
    ]
    assert names(output) == ["cut.mp4", "good.mp4", "results.json", "summary.json"]


class Camera:
    """A cv2.VideoCapture that gives `pattern`s a quarter of a second apart, and says that it makes 10 a second."""

    def __init__(self, clock, count=1000):
        self.clock, self.count, self.given = clock, count, 0

    def __call__(self, which):
        assert which == 3
        return self

    def isOpened(self):
        return self.count > 0

    def get(self, prop):
        return {cv2.CAP_PROP_FPS: 10.0, cv2.CAP_PROP_FRAME_COUNT: -1.0}[prop]

    def read(self):
        if self.given == self.count:
            return False, None
        self.given += 1
        self.clock.now += 0.25
        return True, pattern(self.given)

    def release(self):
        pass


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(sources.time, "monotonic", lambda: clock.now)
    return clock


def with_camera(monkeypatch, camera):
    """The sources see a camera; the writers' check of their own file sees a file."""
    monkeypatch.setattr(
        sources.cv2,
        "VideoCapture",
        lambda what, real=cv2.VideoCapture: (camera if isinstance(what, int) else real)(what),
    )


def test_a_camera_is_read_until_ctrl_c_and_its_film_runs_in_real_time(tmp_path, monkeypatch, clock, capsys):
    with_camera(monkeypatch, Camera(clock))
    interrupted = Fake(after=lambda index: os.kill(os.getpid(), signal.SIGINT) if index == 3 else None)
    with pytest.raises(Interrupted, match="4 instances in 4 frames until then"):
        predict_files(interrupted, ["3"], tmp_path / "out")
    shown, rate = numbers_of(tmp_path / "out" / "camera-3.mp4", scale=4)
    assert rate == 10
    assert shown == [1, 1, 2, 2, 2, 3, 3, 4]  # where there is no picture the one before is seen
    assert [record["frame"] for record in content(tmp_path / "out" / "results.json")[::2]] == [0, 2, 5, 7]


def test_a_camera_that_is_not_there_or_gives_up_is_named(tmp_path, monkeypatch, clock):
    with_camera(monkeypatch, Camera(clock, count=0))
    outcome = predict_files(Fake(), ["3"], tmp_path / "out")
    assert outcome.failures == ["camera 3: it cannot be opened; is it connected, and may you read /dev/video3?"]
    with_camera(monkeypatch, Camera(clock, count=2))
    outcome = predict_files(Fake(), ["3"], tmp_path / "out")
    assert outcome.failures == ["camera 3: it gives no more pictures after 2"]
    assert outcome.frames == 2
