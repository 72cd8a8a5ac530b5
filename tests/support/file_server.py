"""An HTTP server on loopback that counts requests, supports ranges, and can fail in the ways that servers do."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FileServer(ThreadingHTTPServer):
    """Serves `files`. The attributes can be changed between requests.

    Attributes:
      files: content by path, such as "/models/a.pth"; the path of `MRCNN_JAX_MIRROR` + the path of an address.
      requests: (path, Range header or None) of each request.
      close_after: for each of the next requests, the bytes after which the connection is closed.
      statuses: for each of the next requests, an error status.
      ranges: whether Range headers are followed; otherwise the whole file is sent.
      send_length: whether responses have a Content-Length.
      delay: seconds before each response.
    """

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = files
        self.requests: list[tuple[str, str | None]] = []
        self.close_after: list[int] = []
        self.statuses: list[int] = []
        self.ranges = True
        self.send_length = True
        self.delay = 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: FileServer

    def do_GET(self) -> None:
        server, asked = self.server, self.headers.get("Range")
        server.requests.append((self.path, asked))
        time.sleep(server.delay)
        content = server.files.get(self.path)
        if server.statuses or content is None:
            self.send_error(server.statuses.pop(0) if server.statuses else 404)
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and server.ranges else 0  # type: ignore[index]
        if start >= len(content) > 0:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if server.send_length:
            self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        count = server.close_after.pop(0) if server.close_after else len(content)
        self.wfile.write(content[start : start + count])

    def log_message(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def serve(files: dict[str, bytes]) -> Iterator[FileServer]:
    """Serve files until the end of the block."""
    with FileServer(files) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
