"""The application: from the request to the answer, within limits, with errors in JSON."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from mrcnn_jax import visualize
from mrcnn_jax.data import image_files, image_formats
from mrcnn_jax.inference import single_image
from mrcnn_jax.inference.batcher import Batcher
from mrcnn_jax.inference.detector import ImageBatch
from mrcnn_jax.inference.postprocess import Prediction, postprocess
from mrcnn_jax.inference.predictor import Predictor
from mrcnn_jax.tools.pages.rendering import render

_HUNG_UP = 499  # counted only, as in nginx
_HOW = "send an image as the body with Content-Type image/jpeg, or as the only field of a multipart form"


class Settings(NamedTuple):
    """Batches and limits of a service."""

    batch_size: int
    max_wait: float  # milliseconds
    queue: int  # predictions in progress
    max_bytes: int
    max_pixels: int
    timeout: float  # seconds, for upload and prediction together


class Service:
    """The ASGI application `app`, which predicts while `batcher.run` runs."""

    def __init__(self, predict: Predictor, settings: Settings):
        metrics = CollectorRegistry()
        sizes = Histogram("mrcnn_batch_images", "Images of a batch.", buckets=(1, 2, 4, 8, 16, 32), registry=metrics)
        self.batcher = Batcher(predict, settings.batch_size, settings.max_wait / 1000, sizes.observe)
        waiting = Gauge("mrcnn_queue_length", "Images that wait for the device.", registry=metrics)
        waiting.set_function(lambda: self.batcher.waiting)
        self._config, self._settings, self._in_progress = predict.config, settings, 0
        self._answers = Counter("mrcnn_answers", "Predictions (200) and errors.", ["status"], registry=metrics)
        self._seconds = Histogram("mrcnn_predict_seconds", "Time of a prediction.", registry=metrics)
        self._threads = ThreadPoolExecutor(min(4, os.cpu_count() or 1), "images")
        page = render("serve/page.html.jinja", name=predict.config.name)
        routes = [
            Route("/", lambda request: HTMLResponse(page)),
            Route("/predict", self._predict, methods=["POST"]),
            Route("/health", lambda request: JSONResponse({"status": "alive"})),
            Route("/ready", self._ready),
            Route("/metrics", lambda request: Response(generate_latest(metrics), media_type=CONTENT_TYPE_LATEST)),
        ]
        self.app = Starlette(routes=routes, exception_handlers={HTTPException: self._error, Exception: self._error})

    async def _error(self, request: Request, error: Exception) -> Response:
        status = getattr(error, "status_code", 500)
        texts = {404: f"there is no {request.url.path}", 405: f"{request.url.path} does not take {request.method}"}
        text = texts.get(status) or getattr(error, "detail", "internal error: see the server's log")
        self._answers.labels(status).inc()
        return JSONResponse({"error": text}, status, getattr(error, "headers", None))

    async def _ready(self, request: Request) -> Response:
        if not self.batcher.ready:
            raise HTTPException(503, "the model is being compiled: try again later", {"Retry-After": "5"})
        return JSONResponse({"status": "ready"})

    async def _predict(self, request: Request) -> Response:
        start, watcher = time.monotonic(), None
        await self._ready(request)
        threshold, overlay = _options(request)
        if self._in_progress >= self._settings.queue:
            text = f"{self._in_progress} predictions are in progress: try again later"
            raise HTTPException(429, text, {"Retry-After": "1"})
        self._in_progress += 1
        try:
            async with asyncio.timeout(self._settings.timeout) as deadline:
                content = await self._read(request)
                watcher = asyncio.create_task(_expire_at_hang_up(request, deadline))
                try:
                    answer = await self._answer(content, threshold, overlay)
                finally:
                    watcher.cancel()
        except (ClientDisconnect, TimeoutError):
            if await request.is_disconnected():
                raise HTTPException(_HUNG_UP, "the client hung up") from None
            text = f"the {'prediction' if watcher else 'upload'} was not complete after {self._settings.timeout:g} s"
            raise HTTPException(503 if watcher else 408, text, {"Retry-After": "5"}) from None
        finally:
            self._in_progress -= 1
        self._answers.labels(200).inc()
        self._seconds.observe(time.monotonic() - start)
        return answer

    async def _read(self, request: Request) -> bytes:
        """Return the image file in the body."""
        kind, parameters = parse_options_header(request.headers.get("content-type", "image/unknown"))
        if not kind.startswith((b"image/", b"application/octet-stream", b"multipart/form-data")):
            raise HTTPException(415, f"Content-Type {kind.decode('latin1')}: {_HOW}")
        body, limit = bytearray(), self._settings.max_bytes
        declared = int(request.headers.get("content-length", 0))
        async for chunk in request.stream():
            body += chunk
            if max(declared, len(body)) > limit:
                raise HTTPException(413, f"the body has more than {limit:,} bytes")
        content = bytes(body)
        if kind == b"multipart/form-data":
            content = await asyncio.get_running_loop().run_in_executor(self._threads, _field, content, parameters)
        if not content:
            raise HTTPException(400, f"there is no image: {_HOW}")
        return content

    async def _answer(self, content: bytes, threshold: float, overlay: bool) -> Response:
        loop = asyncio.get_running_loop()
        prepared, size = await loop.run_in_executor(self._threads, self._prepare, content)
        detections = await self.batcher.detect(prepared)
        if detections is None:
            raise HTTPException(500, "the model failed: see the server's log")

        def finish() -> Response:
            result = postprocess(detections, prepared.image_sizes[0], size, self._config.model)
            result = result[result.scores >= threshold]
            # Decoded again for an overlay, so that waiting images have no pixels in memory.
            return _draw(self._decode(content), result) if overlay else _to_json(result)

        return await loop.run_in_executor(self._threads, finish)

    def _prepare(self, content: bytes) -> tuple[ImageBatch, tuple[int, int]]:
        pixels = self._decode(content)
        return single_image.prepare(pixels, 0, self._config), (pixels.shape[0], pixels.shape[1])

    def _decode(self, content: bytes) -> NDArray[np.uint8]:
        limit, value_range = self._settings.max_pixels, self._config.data.value_range
        if image_formats.count_pixels(content) > limit:
            raise HTTPException(413, f"the image has more than {limit:,} pixels")
        pixels = image_files.decode(content, value_range=value_range)
        if pixels is None:
            reason = image_files.explain_decode_failure(content, value_range)
            raise HTTPException(422, f"the image cannot be decoded: {reason}")
        return pixels


def _field(form: bytes, parameters: Mapping[bytes, bytes]) -> bytes:
    """Return the only field of a multipart form."""
    fields: list[bytearray] = []
    ends: list[bool] = []
    callbacks: Any = {
        "on_part_begin": lambda: fields.append(bytearray()),
        "on_part_data": lambda data, start, end: fields[-1].extend(data[start:end]),
        "on_end": lambda: ends.append(True),
    }
    with contextlib.suppress(FormParserError):
        MultipartParser(parameters.get(b"boundary", b""), callbacks).write(form)
    if len(fields) != 1 or not ends:
        raise HTTPException(400, f"the form is not complete, or has not exactly one field: {_HOW}")
    return bytes(fields[0])


async def _expire_at_hang_up(request: Request, deadline: asyncio.Timeout) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    deadline.reschedule(0)


def _options(request: Request) -> tuple[float, bool]:
    """Return the score threshold, and whether the answer is an overlay."""
    query = dict(request.query_params)
    output = query.pop("format", "overlay" if request.headers.get("accept", "").startswith("image/png") else "json")
    try:
        threshold = float(query.pop("threshold", 0.5))
    except ValueError:
        threshold = -1.0
    if query or output not in ("json", "overlay") or not 0 <= threshold <= 1:
        raise HTTPException(400, f"?{request.url.query}: give threshold=SCORE from 0 to 1, format=json or overlay")
    return threshold, output == "overlay"


def _draw(pixels: NDArray[np.uint8], result: Prediction) -> Response:
    overlay = visualize.draw(pixels, result, threshold=0)
    return Response(cv2.imencode(".png", overlay[..., ::-1])[1].tobytes(), media_type="image/png")


def _to_json(result: Prediction) -> Response:
    height, width = result.image_size
    content: dict[str, Any] = {"height": height, "width": width, "full": result.full}
    if result.keypoints is not None:
        content |= {"keypoint_names": result.keypoint_names, "skeleton": result.skeleton}
    records = [{**record, "category": name} for record, name in zip(result.to_coco(0), result.names, strict=True)]
    return JSONResponse({**content, "detections": records})
