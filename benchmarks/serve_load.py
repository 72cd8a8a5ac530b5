"""`mrcnn serve` under load: `python -m benchmarks.serve_load IMAGES [--requests=2000] --model=RUN [--batch-size=8]`.

Starts the service with the arguments that this script does not have, and posts the files of the folder IMAGES from
8 clients; after every tenth request a client sends a hostile one. Prints latency, throughput, sizes of batches, and
the server's resident memory. At the end, SIGTERM: the exit status must be 0.
"""

from __future__ import annotations

import argparse
import collections
import http.client
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil

CLIENTS, HOSTILE_EVERY = 8, 10
JPEG = {"Content-Type": "image/jpeg"}


def bomb(side: int = 10_000) -> bytes:
    """Return a PNG file of 100 million black pixels in 13 kB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes((1 + side // 8) * side), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


class Load:
    """The requests of all clients, and their outcomes."""

    def __init__(self, port: int, images: Sequence[bytes], count: int):
        self.port, self.images, self.count = port, images, count
        self.seconds: list[float] = []
        self.outcomes: collections.Counter[str] = collections.Counter()
        self.hostile = [
            (b"", JPEG, 400),
            (b"no image", JPEG, 422),
            (images[0][: len(images[0]) // 2], JPEG, 422),
            (bomb(), JPEG, 413),
            (images[0], {"Content-Type": "text/html"}, 415),
            (bytes(30_000_000), JPEG, 413),
            (b"hang up while it is processed", {}, 0),
            (b"hang up during the upload", {}, 0),
        ]

    def run(self) -> float:
        """Send all requests; return the seconds that they took."""
        threads = [threading.Thread(target=self._client, args=(first,)) for first in range(CLIENTS)]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - start

    def _client(self, first: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        for number in range(first, self.count, CLIENTS):
            start = time.perf_counter()
            status = self._post(connection, self.images[number % len(self.images)], JPEG)
            self.seconds.append(time.perf_counter() - start)
            self.outcomes[f"image {status}"] += 1
            if number % HOSTILE_EVERY == 0:
                self._attack(number // HOSTILE_EVERY % len(self.hostile))

    def _attack(self, kind: int) -> None:
        body, headers, expected = self.hostile[kind]
        if expected:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
            status = self._post(connection, body, headers)
            connection.close()
        else:
            content = self.images[0]
            with socket.create_connection(("127.0.0.1", self.port)) as raw:
                raw.sendall(f"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: {len(content)}\r\n\r\n".encode())
                raw.sendall(content if b"processed" in body else content[:-1])
            status = 0
        self.outcomes[f"hostile {status}" + ("" if status == expected else f" instead of {expected}")] += 1

    def _post(self, connection: http.client.HTTPConnection, body: bytes, headers: dict[str, str]) -> int:
        connection.request("POST", "/predict", body, headers)
        answer = connection.getresponse()
        answer.read()
        return answer.status


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("--requests", type=int, default=2000)
    options, arguments = parser.parse_known_args()
    images = [path.read_bytes() for path in sorted(options.images.iterdir())][:100]
    command = [sys.executable, "-m", "mrcnn_jax.cli", "serve", "--port=0", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            measure(server, images, options.requests)
            server.send_signal(signal.SIGTERM)
            print(f"exit status {server.wait(60)}")
        finally:
            server.kill()


def measure(server: subprocess.Popen[str], images: Sequence[bytes], count: int) -> None:
    port = int(re.search(r":(\d+)/", server.stdout.readline())[1])  # type: ignore[index,union-attr]
    while b" 200 " not in get(port, "/ready"):
        time.sleep(0.1)
    Load(port, images, 100).run()  # warms up threads and allocators
    memory = psutil.Process(server.pid).memory_info
    before = memory().rss
    load = Load(port, images, count)
    seconds = load.run()
    p50, p99 = np.percentile(load.seconds, [50, 99])
    print(f"{count} requests of {CLIENTS} clients: {count / seconds:.1f} images/s, p50 {p50:.3f} s, p99 {p99:.3f} s")
    print(f"resident memory {before / 2**20:.0f} MiB before, {memory().rss / 2**20:.0f} MiB after")
    print(", ".join(f"{name}: {number}" for name, number in sorted(load.outcomes.items())))
    metrics = get(port, "/metrics").decode()
    batches, total = (float(re.search(rf"batch_images_{name} (\S+)", metrics)[1]) for name in ("count", "sum"))  # type: ignore[index]
    print(f"{total / batches:.2f} images in a batch")


def get(port: int, path: str) -> bytes:
    """Return status line, headers and body."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
        return connection.makefile("rb").read()


if __name__ == "__main__":
    main()
