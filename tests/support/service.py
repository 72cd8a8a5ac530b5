"""A service on loopback, in a thread of this process, with a predictor that compiles nothing."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
import uvicorn
from prometheus_client.parser import text_string_to_metric_families

from mrcnn_jax.config import Config, DataConfig, ModelConfig
from mrcnn_jax.inference import batcher
from mrcnn_jax.inference.detector import ImageBatch
from mrcnn_jax.structures import Detections
from mrcnn_jax.tools.serve.run import listen, make_server, run
from mrcnn_jax.tools.serve.service import Service, Settings

BUCKETS = ((64, 96), (96, 64))  # images of these sizes are not resized
SETTINGS = Settings(batch_size=4, max_wait=20, queue=8, max_bytes=100_000, max_pixels=30_000, timeout=20)


class FakePredictor:
    """Detects a cat of 20x30 pixels whose left edge is the red value of the image, and a dog at a low score.

    `batches` lists the red values of each batch. While `gate` is cleared, the device is busy.
    """

    def __init__(self, seconds: Callable[[int], float] = lambda count: 0.01):
        """`seconds` returns the time that a batch of `count` images takes."""
        data = DataConfig(buckets=BUCKETS, shortest_edge_eval=64, longest_edge=96)
        model = ModelConfig(num_classes=2, category_ids=(1, 2), category_names=("cat", "dog"))
        self.config = Config("fake", model=model, data=data)
        self.batches: list[list[int]] = []
        self.seconds, self.gate, self.error = seconds, threading.Event(), ""
        self.gate.set()

    def detect(self, prepared: Sequence[ImageBatch]) -> list[Detections]:
        red = [int(image.images[0, 0, 0, 0]) for image in prepared]
        self.batches.append(red)
        time.sleep(self.seconds(len(prepared)))
        assert self.gate.wait(60)
        if self.error:
            raise RuntimeError(self.error)
        return [self.detections(value) for value in red]

    def detections(self, left: int) -> Detections:
        mask = np.zeros((3, 28, 28), np.float32)
        mask[:, :14] = 1  # the upper half
        return Detections(
            boxes=np.array([[left, 10, left + 20, 40], [0, 0, 10, 10], [5, 5, 9, 9]], np.float32),
            scores=np.array([0.9, 0.4, 0.8], np.float32),
            classes=np.array([1, 2, 1], np.int32),
            masks=mask,
            keypoints=np.zeros((3, 0, 3), np.float32),
            valid=np.array([True, True, False]),
            truncated=np.array(False),
        )


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Client:
    """Sends requests to a service."""

    port: int

    def get(self, path: str, method: str = "GET") -> Answer:
        return self.request(method, path, None, {})

    def predict(self, body: Any, query: str = "", **headers: str) -> Answer:
        """POST an image; in the names of `headers`, _ stands for -."""
        named = {name.replace("_", "-").title(): value for name, value in headers.items()}
        return self.request("POST", f"/predict{query}", body, {"Content-Type": "image/png", **named})

    def request(self, method: str, path: str, body: Any, headers: Mapping[str, str]) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, body, dict(headers))
            answer = connection.getresponse()
            return Answer(answer.status, answer.headers, answer.read())

    def send_head(self, length: int, body: bytes) -> socket.socket:
        """Open a connection, and send the beginning of a request with a body of `length` bytes."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        head = f"POST /predict HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
        connection.sendall(head.encode() + body)
        return connection

    def metric(self, name: str, **labels: str) -> float:
        for family in text_string_to_metric_families(self.get("/metrics").body.decode()):
            for sample in family.samples:
                if sample.name == name and sample.labels == labels:
                    return sample.value
        return 0.0

    def listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port)).close()
        except OSError:
            return False
        return True


@dataclass
class LocalClient(Client):
    """Sends requests to a service in this process."""

    server: uvicorn.Server
    main: Callable[[], None]
    failure: Exception | None = None  # that ended the service

    def start(self) -> None:
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.main()
        except Exception as error:
            self.failure = error

    def stop(self) -> None:
        self.server.should_exit = True
        self.join()

    def join(self) -> None:
        """Wait for the end of the service."""
        self.thread.join(60)
        assert not self.thread.is_alive()


@contextlib.contextmanager
def serving(predict: Any, settings: Settings = SETTINGS, *, ready: bool = True) -> Iterator[LocalClient]:
    """Run a service; with `ready`, wait until it has compiled its programs, and forget their batches."""
    batcher._MEASURED_SECONDS = 0.05
    service = Service(predict, settings)
    server = make_server(service, settings)
    listener = listen("127.0.0.1", 0)
    client = LocalClient(listener.getsockname()[1], server, lambda: asyncio.run(run(server, service, listener)))
    client.start()
    try:
        if ready:
            wait_until(lambda: client.get("/ready").status == 200)
            predict.batches.clear()
        yield client
    finally:
        predict.gate.set()
        client.stop()


def wait_until(condition: Callable[[], Any], timeout: float = 30.0) -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.01)


def png(red: int, size: tuple[int, int] = BUCKETS[0]) -> bytes:
    """Return an image of one color."""
    return encode(np.full((*size, 3), (red, 100, 50), np.uint8))


def encode(rgb: np.ndarray, suffix: str = ".png") -> bytes:
    return cv2.imencode(suffix, rgb[..., ::-1])[1].tobytes()
