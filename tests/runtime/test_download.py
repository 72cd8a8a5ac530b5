"""Downloads: checked, resumed, retried, done once by several processes; a one-line error for each failure."""

from __future__ import annotations

import errno
import functools
import hashlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.file_server import FileServer

from mrcnn_jax.cli.common import classify_error
from mrcnn_jax.errors import ConfigError, DownloadError
from mrcnn_jax.runtime.download import download
from mrcnn_jax.runtime.files import check_hash

ROOT = Path(__file__).resolve().parents[2]
URL = "https://files.example/models/weights.pth"
CONTENT = bytes(range(256)) * 10_000
HALF = len(CONTENT) // 2


def sha256(content: bytes = CONTENT):
    return functools.partial(check_hash, algorithm="sha256", prefix=hashlib.sha256(content).hexdigest()[:8])


@pytest.fixture
def server(download_server: FileServer) -> FileServer:
    download_server.files["/models/weights.pth"] = CONTENT
    return download_server


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new" / "weights.pth"


def asked(server: FileServer) -> list[str | None]:
    return [header for _, header in server.requests]


def fail(path: Path, check: Any = None) -> str:
    """Return the error message of a download, which leaves nothing under the name of the file."""
    with pytest.raises(DownloadError) as raised:
        download(URL, path, check or sha256())
    message = str(raised.value)
    assert "\n" not in message
    assert f"fetch {URL} by hand and save it as {path}" in message
    assert not path.exists()
    return message


def test_second_call_sends_no_request(server, path, capsys):
    assert download(URL, path, sha256()) == path
    assert path.read_bytes() == CONTENT
    assert capsys.readouterr().out.startswith("3/3 MB of weights.pth, ")
    download(URL, path, sha256())
    assert server.requests == [("/models/weights.pth", None)]
    assert os.listdir(path.parent) == ["weights.pth"]


def test_without_a_mirror(server, path, monkeypatch):
    monkeypatch.delenv("MRCNN_JAX_MIRROR")
    download(f"{server.url}/models/weights.pth", path)
    assert path.read_bytes() == CONTENT


def test_mirror_with_a_path(server, path, monkeypatch):
    server.files["/copy/models/weights.pth"] = CONTENT
    monkeypatch.setenv("MRCNN_JAX_MIRROR", f"{server.url}/copy/")
    download(URL, path)
    assert [name for name, _ in server.requests] == ["/copy/models/weights.pth"]


def test_mirror_that_is_no_address(server, path, monkeypatch):
    monkeypatch.setenv("MRCNN_JAX_MIRROR", "mirror.example")
    with pytest.raises(ConfigError, match=r"MRCNN_JAX_MIRROR=mirror\.example"):
        download(URL, path)


def test_broken_connection_is_resumed(server, path):
    """However often, if each attempt brings some bytes."""
    server.close_after = [HALF] + 6 * [1000]
    download(URL, path, sha256())
    assert asked(server) == [None, *(f"bytes={HALF + 1000 * i}-" for i in range(7))]
    assert path.read_bytes() == CONTENT


def test_next_call_resumes(server, path):
    server.close_after = [HALF, 0, 0, 0, 0]
    assert "closed after 1280000 of 2560000 bytes" in fail(path)
    assert len(server.requests) == 5  # without progress
    download(URL, path, sha256())
    assert asked(server)[-1] == f"bytes={HALF}-"
    assert path.read_bytes() == CONTENT


def test_server_without_ranges(server, path):
    server.ranges, server.close_after = False, [HALF]
    download(URL, path, sha256())
    assert asked(server) == [None, f"bytes={HALF}-"]
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("part", "requests"),
    [(CONTENT, 1), (CONTENT + b"more", 2)],
    ids=["interrupted before it was renamed", "longer than the file on the server"],
)
def test_part_of_another_size(server, path, part, requests):
    path.parent.mkdir()
    path.with_name("weights.pth.part").write_bytes(part)
    download(URL, path)
    assert asked(server) == [f"bytes={len(part)}-", None][:requests]
    assert path.read_bytes() == CONTENT


def test_part_of_another_version_is_deleted(server, path):
    path.parent.mkdir()
    path.with_name("weights.pth.part").write_bytes(bytes(HALF))
    fail(path)
    download(URL, path, sha256())
    assert asked(server) == [f"bytes={HALF}-", None]


def test_server_without_lengths(server, path):
    server.send_length = False
    download(URL, path, sha256())


def test_temporary_errors_are_retried(server, path):
    server.statuses = [503, 429]
    download(URL, path, sha256())
    assert len(server.requests) == 3


@pytest.mark.parametrize("status", [403, 404])
def test_permanent_errors_are_not(server, path, status):
    server.statuses = [status]
    assert f"HTTP {status} " in fail(path)
    assert len(server.requests) == 1


def test_no_network(server, path):
    server.shutdown()
    server.server_close()
    assert "Connection refused" in fail(path)


def test_wrong_byte_is_refused(server, path):
    server.files["/models/weights.pth"] = wrong = CONTENT[:HALF] + b"!" + CONTENT[HALF + 1 :]
    assert f"its SHA256 is {hashlib.sha256(wrong).hexdigest()}, not " in fail(path)
    assert not list(path.parent.iterdir())


def test_web_page(server, path):
    server.files["/models/weights.pth"] = b"\n<!DOCTYPE html><html>Log in</html>"
    assert "a web page" in fail(path, lambda _: None)
    assert not list(path.parent.iterdir())


def test_changed_file_is_downloaded_again(server, path, caplog):
    download(URL, path, sha256())
    path.write_bytes(CONTENT[:-1])
    download(URL, path, sha256())
    assert path.read_bytes() == CONTENT
    assert "downloading it again" in caplog.text
    assert len(server.requests) == 2


def test_offline(server, path, monkeypatch):
    monkeypatch.setenv("MRCNN_JAX_OFFLINE", "1")
    assert "MRCNN_JAX_OFFLINE" in fail(path)
    assert not server.requests
    assert not path.parent.exists()
    monkeypatch.setenv("MRCNN_JAX_OFFLINE", "0")
    download(URL, path, sha256())


def test_full_disk(server, path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left") as raised:
            download(URL, path, sha256())
    status, message = classify_error(raised.value)
    assert status == 74
    assert f"{path}.part" in message
    assert "free disk space" in message


def test_one_of_several_threads_downloads(server, path):
    server.delay = 0.1
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: download(URL, path, sha256()), range(4)))
    assert len(server.requests) == 1


@pytest.mark.medium
def test_one_of_two_processes_downloads(server, path):
    program = f"""
import functools, pathlib
from mrcnn_jax.runtime.download import download
from mrcnn_jax.runtime.files import check_hash
print("ready", flush=True)
input()
download({URL!r}, pathlib.Path({str(path)!r}))
"""
    server.delay = 0.3
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", program]
    processes = [subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) for _ in range(2)]
    assert {process.stdout.readline() for process in processes} == {"ready\n"}
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=60)
        assert process.returncode == 0
    assert len(server.requests) == 1
