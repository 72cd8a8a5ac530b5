"""Files of published weights: caches, hashes, records of unknown hashes, the license."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path
from typing import Any

import pytest
from support.file_server import FileServer

from mrcnn_jax.errors import ConfigError, DownloadError
from mrcnn_jax.weights import zoo_files
from mrcnn_jax.weights.zoo import ZooEntry

CONTENT = b"weights" * 1000
SHA256, MD5 = hashlib.sha256(CONTENT).hexdigest(), hashlib.md5(CONTENT).hexdigest()
ENTRIES = {
    "torchvision": ZooEntry("v1", "torchvision", "https://pytorch.example/models/v1-a.pth", SHA256[:8], 1, "COCO"),
    "detectron2": ZooEntry("d2", "detectron2", "https://files.example/detectron2/D/1/d2.pkl", MD5[:6], 1, "COCO"),
    "unknown hash": ZooEntry("R-50", "detectron", "https://files.example/detectron/MSRA/R-50.pkl", "", 1, "ImageNet"),
}
PATHS = {
    "torchvision": "models/v1-a.pth",
    "detectron2": "detectron2/D/1/d2.pkl",
    "unknown hash": "detectron/MSRA/R-50.pkl",
}
OTHER_CACHES = {
    "torchvision": "TORCH_HOME/hub/checkpoints/v1-a.pth",
    "detectron2": "FVCORE_CACHE/detectron2/D/1/d2.pkl",
    "unknown hash": "FVCORE_CACHE/detectron/MSRA/R-50.pkl",
}

every_entry = pytest.mark.parametrize("kind", ENTRIES)


@pytest.fixture
def server(download_server: FileServer) -> FileServer:
    download_server.files |= {f"/{path}": CONTENT for path in PATHS.values()}
    return download_server


def other_cache(tmp_path: Path, kind: str, content: bytes) -> Path:
    path = tmp_path / "caches" / OTHER_CACHES[kind]
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return path


@every_entry
def test_first_use_downloads_and_shows_the_license(server, tmp_path, caplog, kind):
    caplog.set_level(logging.INFO)
    entry = ENTRIES[kind]
    assert not zoo_files.is_cached(entry)
    path = zoo_files.fetch(entry)
    assert path == tmp_path / "caches" / "MRCNN_JAX_CACHE" / "weights" / PATHS[kind]
    assert path.read_bytes() == CONTENT
    license = "BSD-3-Clause" if kind == "torchvision" else "CC BY-SA 3.0"
    assert f"{entry.name}: downloaded to {path}; license: {license}" in caplog.text
    caplog.clear()
    assert zoo_files.fetch(entry) == path
    assert zoo_files.is_cached(entry)
    assert not caplog.text
    assert server.requests == [(f"/{PATHS[kind]}", None)]


@every_entry
def test_other_caches_are_used_in_place(server, tmp_path, kind):
    path = other_cache(tmp_path, kind, CONTENT)
    assert zoo_files.is_cached(ENTRIES[kind])
    assert zoo_files.fetch(ENTRIES[kind]) == path
    assert not server.requests
    assert not (tmp_path / "caches" / "MRCNN_JAX_CACHE").exists()


@pytest.mark.parametrize("kind", ["torchvision", "detectron2"])
def test_other_caches_are_checked(server, tmp_path, caplog, kind):
    path = other_cache(tmp_path, kind, CONTENT[:-1])
    assert zoo_files.fetch(ENTRIES[kind]).read_bytes() == CONTENT
    assert f"{path}: its " in caplog.text
    assert path.read_bytes() == CONTENT[:-1]


@pytest.mark.parametrize(
    ("kind", "variables", "expected"),
    [
        ("torchvision", {}, "home/.cache/torch/hub/checkpoints/v1-a.pth"),
        ("torchvision", {"XDG_CACHE_HOME": "~/xdg"}, "home/xdg/torch/hub/checkpoints/v1-a.pth"),
        ("detectron2", {}, "home/.torch/iopath_cache/detectron2/D/1/d2.pkl"),
    ],
)
def test_folders_of_other_caches(server, tmp_path, monkeypatch, kind, variables, expected):
    for name in ("TORCH_HOME", "FVCORE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": str(tmp_path / "home"), **variables}.items():
        monkeypatch.setenv(name, value)
    (tmp_path / expected).parent.mkdir(parents=True)
    (tmp_path / expected).write_bytes(CONTENT)
    assert zoo_files.fetch(ENTRIES[kind]) == tmp_path / expected


@every_entry
@pytest.mark.parametrize("damaged", [CONTENT[:-1], b"!" + CONTENT[1:]], ids=["cut", "changed"])
def test_damaged_files_are_downloaded_again(server, caplog, kind, damaged):
    path = zoo_files.fetch(ENTRIES[kind])
    path.write_bytes(damaged)
    assert zoo_files.fetch(ENTRIES[kind]).read_bytes() == CONTENT
    assert "downloading it again" in caplog.text
    assert len(server.requests) == 2


@pytest.mark.parametrize("kind", ["torchvision", "detectron2"])
def test_wrong_byte_is_refused(server, kind):
    server.files[f"/{PATHS[kind]}"] = b"!" + CONTENT[1:]
    with pytest.raises(DownloadError, match=r"not .*by hand and save it as"):
        zoo_files.fetch(ENTRIES[kind])
    assert not os.listdir(zoo_files.download_path(ENTRIES[kind]).parent)


def test_another_version_of_a_file_with_unknown_hash_is_refused(server):
    entry = ENTRIES["unknown hash"]
    path = zoo_files.fetch(entry)
    path.unlink()
    server.files[f"/{PATHS['unknown hash']}"] = b"another version"
    with pytest.raises(DownloadError, match=r"R-50\.pkl\.sha256 \(delete it if"):
        zoo_files.fetch(entry)
    path.with_name("R-50.pkl.sha256").unlink()
    assert zoo_files.fetch(entry).read_bytes() == b"another version"


def test_folder_that_cannot_be_written_to(server, tmp_path, monkeypatch: Any):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MRCNN_JAX_CACHE", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match=r"MRCNN_JAX_CACHE=.* is a file, not a folder"):
        zoo_files.fetch(ENTRIES["torchvision"])
