"""The service over loopback, with a predictor that compiles nothing: answers, limits, batches, failures, metrics."""

from __future__ import annotations

import contextlib
import logging
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from support.service import BUCKETS, SETTINGS, Answer, FakePredictor, LocalClient, encode, png, serving, wait_until

from mrcnn_jax import visualize
from mrcnn_jax.data import image_files
from mrcnn_jax.inference.postprocess import postprocess

# Pillow warns of images with more than 89 million pixels.
pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
BOUNDARY = "----boundary"
FORM = f"multipart/form-data; boundary={BOUNDARY}"


@pytest.fixture(scope="module")
def predict():
    return FakePredictor()


@pytest.fixture(scope="module")
def client(predict):
    """A service for tests that leave it as it is."""
    with serving(predict) as client:
        yield client


def form(*contents: bytes, name: str = "image") -> bytes:
    """Return the body of a multipart form."""
    head = f'Content-Disposition: form-data; name="{name}"; filename="a.png"'
    parts = [f"--{BOUNDARY}\r\n{head}\r\n\r\n".encode() + content + b"\r\n" for content in contents]
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def bomb(side: int) -> bytes:
    """Return a PNG file of side x side black pixels, in a thousandth of their bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    pixels = zlib.compress(bytes((1 + side // 8) * side), 9)
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)  # 1 bit a pixel
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def problems(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno > logging.INFO]


def test_answer_is_in_pixels_of_the_original_image(client):
    answer = client.predict(png(30, (128, 192)))  # twice the bucket
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "application/json"
    (cat,) = answer.json["detections"]
    assert {**answer.json, "detections": 0} == {"height": 128, "width": 192, "full": False, "detections": 0}
    assert (cat["category"], cat["category_id"]) == ("cat", 1)
    np.testing.assert_allclose(cat["bbox"], [60, 20, 40, 60], rtol=1e-5)
    np.testing.assert_allclose(cat["score"], 0.9, rtol=1e-6)
    expected = np.zeros((128, 192), np.uint8)
    expected[20:50, 60:100] = 1
    bitmap = coco_mask.decode(cat["segmentation"])
    assert bitmap.shape == expected.shape
    assert np.mean(bitmap != expected) < 0.005  # 40 pixels of the lower edge are 0.2 %


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("?threshold=0", ["cat", "dog"]),
        ("?threshold=0.4", ["cat", "dog"]),
        ("?threshold=0.41", ["cat"]),
        ("", ["cat"]),
        ("?threshold=1", []),
    ],
)
def test_threshold(client, query, names):
    assert [one["category"] for one in client.predict(png(3), query).json["detections"]] == names


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_each_format_as_body_and_as_form(client, suffix):
    content = encode(np.full((*BUCKETS[1], 3), 40, np.uint8), f".{suffix}")
    answers = [
        client.predict(content, content_type=f"image/{suffix}"),
        client.predict(content, content_type="application/octet-stream"),
        client.predict(form(content), content_type=FORM),
        client.predict(form(content, name="file"), content_type=FORM),
        client.predict([content[:50], content[50:]]),  # chunked
    ]
    assert [answer.status for answer in answers] == [200] * 5
    assert len({answer.body for answer in answers}) == 1
    assert abs(answers[0].json["detections"][0]["bbox"][0] - 40) <= 2  # JPEG and WebP are lossy


@pytest.mark.parametrize(
    ("query", "accept"), [("?format=overlay", "*/*"), ("", "image/png"), ("?threshold=0.5&format=overlay", "text/html")]
)
def test_overlay(client, predict, query, accept):
    answer = client.predict(png(30), query, accept=accept)
    assert (answer.status, answer.headers["Content-Type"]) == (200, "image/png")
    pixels = image_files.decode(png(30))
    result = postprocess(predict.detections(30), np.array(BUCKETS[0]), BUCKETS[0], predict.config.model)
    np.testing.assert_array_equal(image_files.decode(answer.body), visualize.draw(pixels, result, threshold=0.5))


GOOD, JPEG = png(1), encode(np.zeros((64, 64, 3), np.uint8), ".jpg")
BAD = {
    "empty body": (b"", {}, 400, "there is no image: send an image as the body"),
    "empty file": (form(b""), {"content_type": FORM}, 400, "there is no image"),
    "empty form": (form(), {"content_type": FORM}, 400, "the form is not complete"),
    "form with two files": (form(GOOD, GOOD), {"content_type": FORM}, 400, "has not exactly one field"),
    "form without a boundary": (form(GOOD), {"content_type": "multipart/form-data"}, 400, "the form is not complete"),
    "truncated form": (form(GOOD)[:-9], {"content_type": FORM}, 400, "the form is not complete"),
    "not a form": (GOOD, {"content_type": FORM}, 400, "the form is not complete"),
    "text": (b"hello" * 9, {}, 422, "cannot be decoded: it is not one of BMP"),
    "truncated PNG": (GOOD[:-30], {}, 422, "cannot be decoded"),
    "truncated JPEG": (JPEG[:-30], {}, 422, "cannot be decoded"),
    "header of a PNG": (GOOD[:33], {}, 422, "cannot be decoded"),
    "type of curl --data": (GOOD, {"content_type": "application/x-www-form-urlencoded"}, 415, "x-www-form-urlencoded"),
    "text type": (GOOD, {"content_type": "text/html; charset=utf-8"}, 415, "Content-Type text/html: send an image"),
    "long body": (bytes(100_001), {}, 413, "more than 100,000 bytes"),
    "long chunked body": ([bytes(60_000)] * 2, {}, 413, "more than 100,000 bytes"),
    "long form": (form(bytes(100_001)), {"content_type": FORM}, 413, "more than 100,000 bytes"),
    "large image": (png(1, (150, 201)), {}, 413, "more than 30,000 pixels"),
    "bomb": (bomb(10_000), {}, 413, "more than 30,000 pixels"),
    "bomb that Pillow refuses": (bomb(16_000), {}, 413, "more than 30,000 pixels"),
    "score in percent": (GOOD, {"query": "?threshold=50"}, 400, "?threshold=50: give threshold=SCORE from 0 to 1"),
    "score not a number": (GOOD, {"query": "?threshold=nan"}, 400, "from 0 to 1"),
    "unknown format": (GOOD, {"query": "?format=xml"}, 400, "format=json or overlay"),
    "misspelled parameter": (GOOD, {"query": "?treshold=0.5"}, 400, "?treshold=0.5: give threshold"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_in_json(client, predict, name, caplog):
    body, arguments, status, message = BAD[name]
    predict.batches.clear()
    answer = client.predict(body, **arguments)
    assert (answer.status, answer.headers["Content-Type"]) == (status, "application/json"), answer
    assert message in answer.json["error"]
    assert predict.batches == []
    assert problems(caplog) == []


def test_unknown_paths_and_methods_are_refused_in_json(client):
    answers = [client.get("/prediction"), client.get("/predict"), client.get("/ready", "POST")]
    assert [answer.status for answer in answers] == [404, 405, 405]
    assert [answer.json["error"] for answer in answers] == [
        "there is no /prediction",
        "/predict does not take GET",
        "/ready does not take POST",
    ]
    assert answers[1].headers["Allow"] == "POST"


def test_endless_upload_is_refused_at_the_limit(client):
    with socket.create_connection(("127.0.0.1", client.port), timeout=60) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(20):
            connection.sendall(b"1388\r\n" + bytes(5000) + b"\r\n")  # 0x1388 is 5000
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        connection.settimeout(60)
        connection.sendall(b"1388\r\n" + bytes(5000) + b"\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


class Clients:
    """Requests in the background, one thread each."""

    def __init__(self, client: LocalClient, predict: FakePredictor, pool: ThreadPoolExecutor):
        self.client, self.fake, self.pool = client, predict, pool

    def predict(self, red: int, size: tuple[int, int] = BUCKETS[0]) -> Future[Answer]:
        return self.pool.submit(self.client.predict, png(red, size))

    def occupy_device(self, red: int) -> Future[Answer]:
        """Send an image whose detection takes until the gate is opened."""
        self.fake.gate.clear()
        future = self.predict(red)
        wait_until(lambda: self.fake.batches and self.fake.batches[-1] == [red])
        return future

    def wait_for_queue(self, length: int) -> None:
        wait_until(lambda: self.client.metric("mrcnn_queue_length") == length)


@contextlib.contextmanager
def clients_of(predict: FakePredictor, **settings: float) -> Iterator[Clients]:
    with serving(predict, SETTINGS._replace(**settings)) as client, ThreadPoolExecutor(32) as pool:
        yield Clients(client, predict, pool)


def check(answers: dict[int, Future[Answer]]) -> None:
    """Check that each image got its own answer."""
    for red, future in answers.items():
        answer = future.result(60)
        assert answer.status == 200, answer
        assert round(answer.json["detections"][0]["bbox"][0]) == red


def test_images_that_wait_are_batched_by_bucket():
    predict = FakePredictor()
    with clients_of(predict) as clients:
        answers = {1: clients.occupy_device(1)}
        for red in range(2, 9):  # a full batch of one shape and three images of the other, arriving in turns
            answers[red] = clients.predict(red, BUCKETS[red % 2])
            clients.wait_for_queue(red - 1)
        predict.gate.set()
        check(answers)
        assert sorted(predict.batches[1:]) == [[2, 4, 6, 8], [3, 5, 7, 7]]
        assert clients.client.metric("mrcnn_batch_images_sum") == 8
        assert clients.client.metric("mrcnn_batch_images_count") == 3


def test_images_that_do_not_fill_a_batch_run_one_by_one_where_that_is_faster():
    predict = FakePredictor(seconds=lambda count: 0.02 * count)
    with clients_of(predict) as clients:
        answers = {1: clients.occupy_device(1), 2: clients.predict(2), 3: clients.predict(3)}
        clients.wait_for_queue(2)
        predict.gate.set()
        check(answers)
    assert sorted(predict.batches) == [[1], [2], [3]]


def test_an_image_waits_for_others_of_its_batch():
    predict = FakePredictor()
    with clients_of(predict, max_wait=60_000) as clients:
        answers = {red: clients.predict(red) for red in (1, 2, 3)}
        clients.wait_for_queue(3)
        time.sleep(0.1)
        assert predict.batches == []
        check({**answers, 4: clients.predict(4)})
    assert [sorted(batch) for batch in predict.batches] == [[1, 2, 3, 4]]


def test_an_image_waits_no_longer_than_max_wait():
    predict = FakePredictor()
    with clients_of(predict, max_wait=200) as clients:
        start = time.monotonic()
        check({1: clients.predict(1)})
        assert time.monotonic() - start >= 0.2
    assert predict.batches == [[1]]


def test_requests_beyond_the_queue_are_refused():
    predict = FakePredictor()
    with clients_of(predict, queue=2) as clients:
        answers = {1: clients.occupy_device(1), 2: clients.predict(2)}
        clients.wait_for_queue(1)
        refused = [clients.predict(3).result(60) for _ in range(20)]
        assert {answer.status for answer in refused} == {429}
        assert {answer.headers["Retry-After"] for answer in refused} == {"1"}
        assert refused[0].json["error"] == "2 predictions are in progress: try again later"
        assert clients.client.get("/health").status == 200
        predict.gate.set()
        check(answers)
        check({4: clients.predict(4)})
        assert clients.client.metric("mrcnn_answers_total", status="429") == 20
        assert clients.client.metric("mrcnn_answers_total", status="200") == 3


def test_slow_predictions_and_uploads_are_ended():
    predict = FakePredictor()
    with clients_of(predict, timeout=0.5) as clients:
        slow = [future.result(60) for future in (clients.occupy_device(1), clients.predict(2))]
        predict.gate.set()
        assert [answer.status for answer in slow] == [503, 503]
        assert slow[0].json["error"] == "the prediction was not complete after 0.5 s"
        check({3: clients.predict(3)})
        assert predict.batches == [[1], [3]]
        with clients.client.send_head(1000, b"abc") as connection:
            answer = connection.makefile("rb").read()
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"the upload was not complete after 0.5 s" in answer


@pytest.mark.parametrize("missing", [0, 1], ids=["while it waits", "during the upload"])
def test_work_of_a_client_that_hangs_up_is_dropped(missing, caplog):
    predict, content = FakePredictor(), png(2)
    with clients_of(predict, queue=2) as clients:
        answers = {1: clients.occupy_device(1)}
        for _ in range(5):  # more than the queue holds
            connection = clients.client.send_head(len(content), content[: len(content) - missing])
            wait_until(lambda: clients.client.predict(b"").status == 429)
            connection.close()
            wait_until(lambda: clients.client.predict(b"").status == 400)  # there is room again
        assert clients.client.metric("mrcnn_answers_total", status="499") == 5
        assert clients.client.metric("mrcnn_queue_length") == 0
        predict.gate.set()
        check(answers)
        check({3: clients.predict(3)})
    assert predict.batches == [[1], [3]]
    assert problems(caplog) == []


def test_failure_of_the_model_is_logged_once_and_the_service_continues(caplog):
    predict = FakePredictor()
    with clients_of(predict) as clients:
        answers = [clients.occupy_device(0), *(clients.predict(red) for red in (1, 2, 3))]
        clients.wait_for_queue(3)
        predict.error = "out of memory"
        predict.gate.set()
        assert {future.result(60).status for future in answers} == {500}
        assert answers[0].result().json["error"] == "the model failed: see the server's log"
        predict.error = ""
        check({5: clients.predict(5)})
    assert problems(caplog) == [f"the model failed on a batch of {count}" for count in (1, 3)]
    assert caplog.text.count("RuntimeError: out of memory") == 2


def test_unexpected_errors_are_logged_once(client, monkeypatch, caplog):
    monkeypatch.setattr(image_files, "decode", lambda content, value_range: 1 / 0)
    answer = client.predict(png(1))
    assert (answer.status, answer.json) == (500, {"error": "internal error: see the server's log"})
    wait_until(lambda: "ZeroDivisionError" in caplog.text)  # logged after the answer
    assert caplog.text.count("ZeroDivisionError") == 1


def test_not_ready_while_programs_are_compiled():
    predict = FakePredictor()
    predict.gate.clear()
    with serving(predict, ready=False) as client:
        assert client.get("/health").json == {"status": "alive"}
        for answer in (client.get("/ready"), client.predict(png(1))):
            assert (answer.status, answer.headers["Retry-After"]) == (503, "5")
            assert answer.json["error"] == "the model is being compiled: try again later"
        predict.gate.set()
        wait_until(lambda: client.get("/ready").status == 200)
    counts = [len(batch) for batch in predict.batches]
    assert counts[:4] == [1, 4, 1, 4]  # two buckets; others measure


def test_failed_compilation_ends_the_service():
    predict = FakePredictor()
    predict.error = "no device"
    with serving(predict, ready=False) as client:
        client.join()
        assert str(client.failure) == "no device"


def test_stop_during_the_compilation():
    predict = FakePredictor()
    predict.gate.clear()
    with serving(predict, ready=False) as client:
        wait_until(lambda: predict.batches)
        threading.Timer(0.2, predict.gate.set).start()
        client.stop()
        assert client.failure is None
    assert len(predict.batches) < 6


def test_what_was_accepted_is_answered_after_a_stop():
    predict = FakePredictor()
    with clients_of(predict) as clients:
        answers = {0: clients.occupy_device(0), **{red: clients.predict(red) for red in range(1, 7)}}
        clients.wait_for_queue(6)
        clients.client.server.should_exit = True
        wait_until(lambda: not clients.client.listens())
        predict.gate.set()
        check(answers)
        clients.client.join()


def test_metrics(client):
    before = client.metric("mrcnn_predict_seconds_count")
    answer = client.get("/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    client.predict(png(1))
    client.predict(b"")
    assert client.metric("mrcnn_predict_seconds_count") == before + 1
    assert client.metric("mrcnn_predict_seconds_bucket", le="+Inf") == before + 1
    assert client.metric("mrcnn_answers_total", status="200") == before + 1


def test_page_loads_nothing(client):
    answer = client.get("/")
    text = answer.body.decode()
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "<title>fake</title>" in text
    assert "default-src &#39;none&#39;" in text
    assert not [mark for mark in ("src=", "href=", "url(", "@import", "//fonts") if mark in text]
