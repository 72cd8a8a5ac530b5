"""Files of the published weights: found in the caches of their projects, or downloaded, and checked.

Downloads are in `$MRCNN_JAX_CACHE/weights`, under the path of their address. `runtime.download` lists the environment
variables of downloads.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from urllib.parse import urlsplit

from mrcnn_jax.runtime import files
from mrcnn_jax.runtime.download import download
from mrcnn_jax.weights.zoo import LICENSES, ZooEntry

log = logging.getLogger(__name__)


def fetch(entry: ZooEntry) -> Path:
    """Return the file of published weights; download it if it is in no cache or has the wrong hash.

    A download whose hash is unknown is compared with the hash of the first download, in a file with the suffix
    ".sha256". The license is logged after a download.

    Raises DownloadError, which says what to do; ConfigError if the folder cannot be written to.
    """
    other = _other_cache(entry)
    if other.is_file():
        problem = _hash_problem(entry, other)
        if problem is None:
            return other
        log.warning("%s: %s; this file is not used", other, problem)
    path = download_path(entry)
    is_new = not path.is_file()
    if is_new:
        files.check_output(files.cache_root(), "MRCNN_JAX_CACHE", folder=True)
    download(entry.url, path, lambda file: _hash_problem(entry, file) or _first_hash_problem(entry, path, file))
    if is_new:
        log.info("%s: downloaded to %s; license: %s", entry.name, path, LICENSES[entry.source])
    return path


def is_cached(entry: ZooEntry) -> bool:
    """Whether `fetch` finds a file; its hash is not checked."""
    return download_path(entry).is_file() or _other_cache(entry).is_file()


def download_path(entry: ZooEntry) -> Path:
    """Return the path to which the file is downloaded."""
    return files.cache_root() / "weights" / urlsplit(entry.url).path.lstrip("/")


def _other_cache(entry: ZooEntry) -> Path:
    """Return the path of the file in the cache of torch, or in that of Detectron2."""
    if entry.source == "torchvision":
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
        torch = os.environ.get("TORCH_HOME") or os.path.join(cache, "torch")
        return files.user_path(torch) / "hub" / "checkpoints" / entry.url.rpartition("/")[2]
    cache = os.environ.get("FVCORE_CACHE") or os.path.join("~", ".torch", "iopath_cache")
    return files.user_path(cache) / urlsplit(entry.url).path.lstrip("/")


def _hash_problem(entry: ZooEntry, file: Path) -> str | None:
    """Return what is wrong with a file of these weights; None if its hash is right or unknown."""
    algorithm = "sha256" if entry.source == "torchvision" else "md5"
    return files.check_hash(file, algorithm, entry.hash_prefix) if entry.hash_prefix else None


def _first_hash_problem(entry: ZooEntry, path: Path, file: Path) -> str | None:
    """Return what is wrong with a download to `path` whose hash is unknown; writes the hash of the first one."""
    if entry.hash_prefix:
        return None
    record = path.with_name(f"{path.name}.sha256")
    if not record.is_file():
        files.write_text(record, files.file_hash(file, "sha256"))
    problem = files.check_hash(file, "sha256", record.read_text().strip())
    return problem and f"{problem}, as recorded in {record} (delete it if a new version is published)"
