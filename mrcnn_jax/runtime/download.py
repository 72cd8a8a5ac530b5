"""Downloads over HTTP that are checked, resumed, and done by one process of a machine.

`MRCNN_JAX_OFFLINE=1` forbids requests. `MRCNN_JAX_MIRROR=URL` replaces scheme and host of all addresses.
"""

from __future__ import annotations

import http.client
import logging
import math
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path

from mrcnn_jax.errors import DISK_FULL, ConfigError, DownloadError
from mrcnn_jax.runtime import files, progress

log = logging.getLogger(__name__)

_MEGABYTE = 10**6
_ATTEMPTS = 5  # without progress
_BACKOFF = 1.0  # seconds before the second attempt; doubles


def download(url: str, path: Path, check: Callable[[Path], str | None] = lambda path: None) -> Path:
    """Download `url` to `path`, unless a file there passes `check`, and return `path`.

    An interrupted download leaves a file with the suffix ".part", which the next call continues. Calls for the same
    folder wait for each other, in all processes of the machine, so each file is downloaded once.

    Args:
      check: returns what is wrong with a file, or None. A download gets its name `path` only if it passes.

    Raises DownloadError, which says what to do, and OSError if the disk is full or the folder cannot be written to.
    """
    problem = check(path) if path.is_file() else "it is missing"
    if problem is None:
        return path
    advice = f"try again, or fetch {url} by hand and save it as {path}"
    if is_offline():
        raise DownloadError(f"{path}: {problem}, and MRCNN_JAX_OFFLINE forbids downloads; unset it and {advice}")
    if path.is_file():
        log.warning("%s: %s; downloading it again", path, problem)
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.folder_lock(path.parent):
        if path.is_file() and check(path) is None:  # by another process
            return path
        address, part = _mirrored(url), path.with_name(f"{path.name}.part")
        _complete(address, part, advice)
        with part.open("rb") as file:
            is_page = file.read(64).lstrip().startswith(b"<")
        if problem := "the server sent a web page" if is_page else check(part):
            part.unlink()
            raise DownloadError(f"{address}: {problem}; {advice}")
        part.replace(path)
    return path


def is_offline() -> bool:
    """Whether `MRCNN_JAX_OFFLINE` forbids requests."""
    return os.environ.get("MRCNN_JAX_OFFLINE", "") not in ("", "0")


def _mirrored(url: str) -> str:
    mirror = os.environ.get("MRCNN_JAX_MIRROR", "").rstrip("/")
    if mirror and not mirror.startswith(("http://", "https://")):
        raise ConfigError(f"MRCNN_JAX_MIRROR={mirror}: give an address that begins with http:// or https://")
    return mirror + urllib.parse.urlsplit(url).path if mirror else url


def _complete(url: str, part: Path, advice: str) -> None:
    """Append to `part` until it is complete, in several attempts. Raises DownloadError, which ends with `advice`."""
    failures = 0
    while True:
        start = _size(part)
        try:
            return _append(url, part, start)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416:
                if error.headers["Content-Range"] == f"bytes */{start}":
                    return
                part.unlink()  # the file on the server is shorter
            reason = f"HTTP {error.code} {error.reason}"
            permanent = error.code < 500 and error.code not in (408, 416, 429)
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and error.errno in DISK_FULL:
                raise OSError(error.errno, error.strerror, str(part)) from error
            reason, permanent = str(error), False
        failures = 1 if _size(part) > start else failures + 1
        if permanent or failures == _ATTEMPTS:
            raise DownloadError(f"{url}: {reason}; {advice}")
        time.sleep(_BACKOFF * 2 ** (failures - 1))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _append(url: str, part: Path, start: int) -> None:
    """Append the bytes from `start` on to `part`. Raises OSError or HTTPException."""
    headers = {"User-Agent": "mrcnn-jax", **({"Range": f"bytes={start}-"} if start else {})}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as response:
        start = start if response.status == 206 else 0  # otherwise the server sends the whole file
        length = int(response.headers["Content-Length"] or 0)  # 0: unknown
        blocks = iter(lambda: response.read(_MEGABYTE), b"")
        with part.open("ab" if start else "wb") as file:
            for block in progress.track(blocks, math.ceil(length / _MEGABYTE) or None, f"MB of {part.stem}"):
                file.write(block)
            os.fsync(file.fileno())
    if length and (size := _size(part)) != start + length:
        raise ConnectionError(f"the connection was closed after {size} of {start + length} bytes")
