"""The process of a service: its socket, signals, and a graceful stop."""

from __future__ import annotations

import asyncio
import logging
import math
import signal
import socket
import warnings

import uvicorn
from PIL import Image

from mrcnn_jax.errors import ConfigError
from mrcnn_jax.inference.predictor import Predictor
from mrcnn_jax.tools.serve.service import Service, Settings


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens. Raises ConfigError."""
    try:
        if not 0 <= port < 2**16:
            raise OSError("ports are from 0 to 65535")
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise ConfigError(f"--host={host} --port={port}: {error}; choose another address") from error


def serve(predict: Predictor, listener: socket.socket, settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then answer what was accepted. Raises what the compilation of the model raises."""
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # `max_pixels` decides
    Image.init()  # imports all readers; later there may be too many connections to open a file
    service = Service(predict, settings)
    server = make_server(service, settings)
    for number in (signal.SIGINT, signal.SIGTERM):  # uvicorn raises the signal again when it has stopped
        signal.signal(number, server.handle_exit)
    host, port = listener.getsockname()[:2]
    print(f"http://{f'[{host}]' if ':' in host else host}:{port}/", flush=True)
    asyncio.run(run(server, service, listener))


def make_server(service: Service, settings: Settings) -> uvicorn.Server:
    patience = math.ceil(settings.timeout) + 1  # longer than any request
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # a malformed request is no event for the log
    return uvicorn.Server(
        uvicorn.Config(service.app, http="h11", log_config=None, log_level="error", timeout_graceful_shutdown=patience)
    )


async def run(server: uvicorn.Server, service: Service, listener: socket.socket) -> None:
    """Serve until `server.should_exit` is set. Raises what the compilation of the model raises."""
    batches = asyncio.create_task(service.batcher.run())
    batches.add_done_callback(lambda _: setattr(server, "should_exit", True))  # it has failed
    await server.serve([listener])
    batches.cancel()
    await asyncio.wait([batches])
    if not batches.cancelled():
        batches.result()
